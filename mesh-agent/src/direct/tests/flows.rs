//! The connections that are open, where the kernel's word of them comes twice or not at all.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_api::plan::Snapshot;
use mesh_common::direct::Happened;
use mesh_common::veth::{EVERYBODY, MOST_OF_CLIENT, MOST_OF_NODE};
use mesh_proxy::telemetry::{AccessLog, WorkerMetrics};

use crate::direct::flows::{Ends, FlowPods, Flows};
use crate::sys::ANY_COOKIE;
use crate::sys::ebpf::{DirectEvent, Totals};

const NOBODY: FlowPods<'static> = FlowPods { client: None, server: None, plan: None };

fn flows() -> Flows {
    Flows::new(WorkerMetrics::new(AccessLog::off()))
}

fn event(happened: Happened, socket: u64) -> DirectEvent {
    let port = u16::try_from(40_000 + socket).unwrap();
    DirectEvent {
        happened,
        rtt: 0,
        socket,
        client_netns: 7,
        server_netns: 8,
        lasted: Duration::ZERO,
        totals: Totals::default(),
        client: SocketAddr::from(([10, 0, 0, 1], port)),
        server: SocketAddr::from(([10, 0, 0, 2], 8080)),
        destination: SocketAddr::from(([10, 96, 0, 1], 80)),
        probe: false,
    }
}

fn open(flows: &mut Flows, event: &DirectEvent) {
    assert_eq!(flows.opening(event, &NOBODY, &Snapshot::default()), None, "nobody denies it");
}

#[test]
fn what_ended_unheard_is_ended_at_the_second_look() {
    let mut flows = flows();
    for (happened, socket) in [(Happened::Opening, 1), (Happened::Opening, 2), (Happened::Unlisted, 3)] {
        open(&mut flows, &event(happened, socket));
    }
    let only_the_second = |socket| socket == 2;
    assert_eq!(flows.sweep(only_the_second), []);
    assert!(flows.know(1), "its end may be waiting to be read");
    assert_eq!(flows.sweep(only_the_second), []);
    assert!(!flows.know(1) && flows.know(2));
    assert!(flows.know(3), "it never was in the list, so nothing follows from that");
    flows.closed(&event(Happened::Closed, 3), &NOBODY, &Snapshot::default());
    assert!(!flows.know(3));
}

#[test]
fn who_has_as_many_as_it_may_is_the_proxys() {
    let mut flows = flows();
    let of = |client_netns, socket| DirectEvent { socket, client_netns, ..event(Happened::Opening, 1) };
    let most = u64::try_from(MOST_OF_CLIENT).unwrap();
    (1..most).for_each(|socket| open(&mut flows, &of(7, socket)));
    assert_eq!(flows.over_limit(), HashSet::new());
    open(&mut flows, &of(7, most));
    assert_eq!(flows.over_limit(), HashSet::from([7]));
    let clients = u64::try_from(MOST_OF_NODE / MOST_OF_CLIENT).unwrap();
    for client in 1..clients {
        (1..=most).for_each(|socket| open(&mut flows, &of(7 + client, client << 32 | socket)));
    }
    assert_eq!(flows.over_limit(), HashSet::from([EVERYBODY]));
    flows.closed(&of(7, 1), &NOBODY, &Snapshot::default());
    assert_eq!(flows.over_limit(), (8..7 + clients).collect());
}

#[test]
fn what_is_denied_and_still_open_is_closed_again() {
    let mut flows = flows();
    let (denied, other) = (event(Happened::Opening, 1), event(Happened::Opening, 2));
    open(&mut flows, &denied);
    open(&mut flows, &other);
    let ends = Ends::from(&denied);
    assert_eq!(flows.astray(&event(Happened::Astray, 1)), Some(ends));
    for _ in 0..3 {
        assert_eq!(flows.sweep(|_| true), [ends]);
    }
    flows.closed(&event(Happened::Closed, 1), &NOBODY, &Snapshot::default());
    assert_eq!(flows.sweep(|_| true), []);
}

#[test]
fn a_beginning_that_is_told_twice_is_one_and_a_socket_may_connect_again() {
    let mut flows = flows();
    let first = event(Happened::Opening, 1);
    open(&mut flows, &first);
    assert!(flows.astray(&first).is_some());
    open(&mut flows, &first);
    assert_eq!(flows.sweep(|_| true), [Ends::from(&first)], "it is the same one");
    let second = DirectEvent { client: "10.0.0.1:50000".parse().unwrap(), ..first };
    open(&mut flows, &second);
    assert_eq!(flows.sweep(|_| true), [], "it is another one");
    assert!(flows.know(1));
}

#[test]
fn each_end_is_found_from_its_own_side() {
    let ends = Ends::from(&event(Happened::Opening, 1));
    let (client, server) = (ends.of_client(), ends.of_server());
    assert_eq!((client.local, client.remote), (server.remote, server.local));
    assert_eq!((client.cookie, server.cookie), (1, ANY_COOKIE));
    assert_eq!(client.local, ends.client);
}
