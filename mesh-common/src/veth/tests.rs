use super::*;

impl PacketBytes for Vec<u8> {
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        let found = self.get(at as usize..).and_then(|bytes| bytes.first_chunk());
        found.is_some_and(|bytes| {
            *to = *bytes;
            true
        })
    }
}

/// The packet alone.
fn packet(bytes: &Vec<u8>) -> ParsedPacket {
    parse_packet(bytes, 0, &mut { FlowDirection::NONE })
}

const CLIENT: AddressPort = AddressPort::new(Address::v4([10, 244, 1, 2]), 40_000);
const SERVER: AddressPort = AddressPort::new(Address::v4([10, 244, 1, 3]), 8080);
const V6: [[u8; 16]; 2] = [
    [0xfd, 0, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    [0xfd, 0, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
];
const ACK: u8 = 0x10;

fn segment(flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(CLIENT.port.to_be_bytes());
    tcp.extend(SERVER.port.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend([8 << 4, flags]);
    // Window, checksum, urgent pointer and twelve bytes of options.
    tcp.extend([0; 18]);
    tcp.extend(payload);
    tcp
}

fn v4(options: usize, fragment: u16, tcp: &[u8]) -> Vec<u8> {
    let header = 20 + options;
    let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    ip.extend(u16::try_from(header + tcp.len()).unwrap().to_be_bytes());
    ip.extend([0; 2]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, TCP, 0, 0, 10, 244, 1, 2, 10, 244, 1, 3]);
    ip.extend(vec![1; options]);
    ip.extend(tcp);
    ip
}

/// With these extension headers, each of so many bytes.
fn v6(extensions: &[(u8, usize)], last: u8, tcp: &[u8]) -> Vec<u8> {
    let length: usize = extensions.iter().map(|(_, length)| length).sum::<usize>() + tcp.len();
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(u16::try_from(length).unwrap().to_be_bytes());
    ip.extend([extensions.first().map_or(last, |(kind, _)| *kind), 64]);
    ip.extend(V6.as_flattened());
    for (index, (_, length)) in extensions.iter().enumerate() {
        let next = extensions.get(index + 1).map_or(last, |(kind, _)| *kind);
        ip.extend([next, u8::try_from(length / 8 - 1).unwrap()]);
        ip.extend(vec![0; length - 2]);
    }
    ip.extend(tcp);
    ip
}

fn tcp_of(packet: &Vec<u8>) -> (FlowDirection, TcpSegment) {
    let mut direction = FlowDirection::NONE;
    match parse_packet(packet, 0, &mut direction) {
        ParsedPacket::Tcp(segment) => (direction, segment),
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_are_read_in_both_families() {
    let data = segment(ACK, 7, b"secret");
    for options in [0, 4, 40] {
        let (direction, segment) = tcp_of(&v4(options, 0x4000, &data));
        assert_eq!(direction, FlowDirection { from: CLIENT, to: SERVER });
        assert_eq!(segment, TcpSegment { seq: 7, flags: ACK, payload: true });
    }
    let syn = segment(SYN, 9, b"");
    for packet in [v4(0, 0x4000, &syn), v6(&[], TCP, &syn), v6(&[(60, 8), (0, 16), (43, 24)], TCP, &syn)] {
        let mut padded = packet.clone();
        padded.extend([0; 6]);
        for packet in [packet, padded] {
            let (direction, segment) = tcp_of(&packet);
            assert_eq!((direction.from.port, direction.to.port), (CLIENT.port, SERVER.port));
            assert_eq!(segment, TcpSegment { seq: 9, flags: SYN, payload: false });
        }
    }
    let (direction, _) = tcp_of(&v6(&[], TCP, &syn));
    assert_eq!([direction.from.address.0, direction.to.address.0], V6);
    // Longer than the length's field counts to, as packets are between two sockets of one machine.
    let mut long = v6(&[], TCP, &syn);
    long[4..6].fill(0);
    assert!(tcp_of(&long).1.payload);
    let mut long = v4(0, 0, &syn);
    long[2..4].fill(0);
    assert!(tcp_of(&long).1.payload);
}

#[test]
fn what_can_not_be_read_is_not_taken_for_something_else() {
    let data = segment(ACK, 7, b"secret");
    let unreadable = |bytes: &Vec<u8>| packet(bytes) == ParsedPacket::Unreadable;
    for fragment in [0x2000, 0x2001, 1, 0x1fff, 0x4001] {
        assert!(unreadable(&v4(0, fragment, &data)), "{fragment:#x}");
    }
    assert!(unreadable(&v6(&[(44, 8)], TCP, &data)), "an atomic fragment");
    assert!(unreadable(&v6(&[(44, 8)], 60, &data)), "one that may begin with options");
    assert!(unreadable(&v6(&[(60, 8); 7], TCP, &data)));
    assert!(unreadable(&v6(&[(51, 24)], TCP, &data)));
    let whole = v4(0, 0, &data);
    for length in 20..34 {
        assert!(unreadable(&whole[..length].to_vec()), "{length} bytes");
    }
    let mut odd = whole.clone();
    odd[0] = 0x44;
    assert!(unreadable(&odd), "a header shorter than headers are");
    let mut odd = whole;
    odd[32] = 4 << 4;
    assert!(unreadable(&odd));
}

#[test]
fn what_is_no_tcp_is_left_alone() {
    const UDP: u8 = 17;
    let mut udp = v4(0, 0x2000, &[0; 8]);
    udp[9] = UDP;
    for bytes in [
        udp,
        v6(&[], UDP, &[0; 8]),
        v6(&[(44, 8)], UDP, &[0; 8]),
        v6(&[(60, 8)], 58, &[]),
        Vec::new(),
        vec![0x45],
    ] {
        assert_eq!(packet(&bytes), ParsedPacket::Other, "{bytes:?}");
    }
}

#[test]
fn no_bytes_are_too_strange() {
    let whole = v6(&[(60, 8), (0, 16)], TCP, &segment(ACK, 7, b"secret"));
    for place in 0..whole.len() {
        for value in 0..=255 {
            let mut strange = whole.clone();
            strange[place] = value;
            let _total = packet(&strange);
            let _total = packet(&strange[..place].to_vec());
        }
    }
}

fn flow() -> VethFlow {
    VethFlow { in_if: 5, out_if: 6, isn: 1000, seen: 1, ..VethFlow::NONE }
}

#[test]
fn only_its_own_veth_sends_a_flow_and_only_handshakes_go_the_ordinary_way() {
    let segment = |flags, payload| TcpSegment { seq: 1000, flags, payload };
    let at = |ifindex, tagged, segment| departure_action(&flow(), segment, ifindex, tagged);
    for flags in [SYN, SYN | ACK, SYN | 0xc0] {
        assert_eq!(at(5, false, segment(flags, false)), DepartureAction::Noted);
        assert_eq!(at(5, false, segment(flags, true)), DepartureAction::Dropped, "fast open");
    }
    for flags in [ACK, ACK | FIN, RST, RST | ACK, 0, SYN | FIN, SYN | RST] {
        for payload in [false, true] {
            assert_eq!(at(5, false, segment(flags, payload)), DepartureAction::Redirected);
            assert_eq!(at(6, false, segment(flags, payload)), DepartureAction::Dropped, "another pod");
            assert_eq!(at(5, true, segment(flags, payload)), DepartureAction::Dropped, "tagged");
        }
    }
    let blocked = VethFlow { out_if: 0, ..flow() };
    assert_eq!(departure_action(&blocked, segment(ACK, true), 5, false), DepartureAction::Dropped);
}

#[test]
fn a_socket_takes_the_handshake_as_it_was_sent_and_nothing_else() {
    let arrives = |seq, flags, payload, connecting| {
        accepts_unredirected(&flow(), TcpSegment { seq, flags, payload }, connecting)
    };
    for connecting in [false, true] {
        assert!(arrives(1000, SYN, false, connecting));
        assert!(arrives(1000, SYN | ACK, false, connecting));
        assert!(!arrives(1001, SYN, false, connecting), "shifted");
        assert!(!arrives(1000, SYN, true, connecting));
        for flags in [ACK, ACK | FIN, SYN | FIN, 0] {
            assert!(!arrives(1000, flags, false, connecting));
        }
    }
    assert!(arrives(0, RST | ACK, false, true), "a firewall says no");
    assert!(!arrives(1000, RST | ACK, false, false));
    assert!(!arrives(1000, SYN | RST, false, true));
    let unseen = VethFlow { seen: 0, ..flow() };
    assert!(!accepts_unredirected(&unseen, TcpSegment { seq: 1000, flags: SYN, payload: false }, false));
}

#[test]
fn ways_are_chosen_for_each_pair() {
    let veth = |link: PodLinkKind| Some(PodVeth { ifindex: 5, link: link as u16, obstacle: 0 });
    let all = [
        None,
        veth(PodLinkKind::Guarded),
        veth(PodLinkKind::Routed),
        veth(PodLinkKind::Shared),
        Some(PodVeth { ifindex: 5, link: 9, obstacle: 0 }),
    ];
    for client in all {
        for server in all {
            let of = |link: PodLinkKind| client == veth(link) && server == veth(link);
            let expected = match () {
                () if of(PodLinkKind::Guarded) => (SameNodePath::Veth, SameNodePath::Veth),
                () if of(PodLinkKind::Routed) => (SameNodePath::Plain, SameNodePath::Plain),
                () => (SameNodePath::Proxy, SameNodePath::Plain),
            };
            let ways = (
                same_node_path(DirectPathMode::Auto, client, server),
                same_node_path(DirectPathMode::Direct, client, server),
            );
            assert_eq!(ways, expected, "{client:?} to {server:?}");
        }
    }
}

#[test]
fn an_entry_is_left_behind_when_nothing_can_use_it() {
    let flow = VethFlow { filed: 1000, ..flow() };
    let later = 1001 + VethFlow::HANDSHAKE;
    assert!(flow.is_stale(true, later));
    assert!(!flow.is_stale(true, 2000), "its handshake may go on");
    assert!(!flow.is_stale(false, later));
    assert!(!VethFlow { server: 9, ..flow }.is_stale(true, later), "the server's socket lives");
}

#[test]
fn notes_are_no_directions() {
    let direction = FlowDirection { from: CLIENT, to: SERVER };
    let keys = [direction, direction.reversed(), direction.half_closed_key()];
    assert!(keys[2].is_half_closed_key() && !keys[0].is_half_closed_key() && !keys[1].is_half_closed_key());
    assert!(keys[0] != keys[1] && keys[0] != keys[2]);
    assert_eq!(direction.reversed().reversed(), direction);
    assert!(has_veth_flow_ports(&CLIENT, &SERVER));
    assert!(!has_veth_flow_ports(&AddressPort { port: 15008, ..CLIENT }, &SERVER));
}

#[test]
fn neighbours_have_slots_of_their_own() {
    let mut slots: Vec<u32> =
        (2..=250).map(|last| neighbour_slot(&Address::v4([10, 244, 1, last]))).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), 249);
    assert!(slots.iter().all(|slot| *slot < NEIGHBOUR_SLOTS));
    assert!(!slots.contains(&neighbour_slot(&Address::v4([10, 244, 2, 7]))), "another node's");
}

#[test]
fn numbers_and_obstacles_agree() {
    for number in 0..5 {
        assert_eq!(VethObstacle::from_number(number) as u16, number);
        assert_eq!(VethObstacle::from_number(number).describe().is_none(), number == 0);
    }
    assert_eq!(VethObstacle::from_number(5), VethObstacle::None);
}
