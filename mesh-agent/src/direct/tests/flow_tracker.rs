//! The connections that are open, where the kernel's word of them comes twice or not at all.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_api::plan::Snapshot;
use mesh_common::direct::DirectEventKind;
use mesh_common::veth::{CROWDED_ALL_CLIENTS, MAX_FLOWS_OF_CLIENT, MAX_FLOWS_OF_NODE};
use mesh_proxy::telemetry::{AccessLog, WorkerMetrics};

use crate::direct::flow_tracker::{ConnectionEnds, FlowPods, FlowTracker};
use crate::sys::ANY_COOKIE;
use crate::sys::ebpf::{ByteTotals, DirectEvent};

const NOBODY: FlowPods<'static> = FlowPods { client: None, server: None, plan: None };

fn flows() -> FlowTracker {
    FlowTracker::new(WorkerMetrics::new(AccessLog::disabled()))
}

fn event(kind: DirectEventKind, socket: u64) -> DirectEvent {
    let port = u16::try_from(40_000 + socket).unwrap();
    DirectEvent {
        kind,
        rtt: 0,
        socket,
        client_netns: 7,
        server_netns: 8,
        lasted: Duration::ZERO,
        totals: ByteTotals::default(),
        client: SocketAddr::from(([10, 0, 0, 1], port)),
        server: SocketAddr::from(([10, 0, 0, 2], 8080)),
        destination: SocketAddr::from(([10, 96, 0, 1], 80)),
        probe: false,
    }
}

fn open(flows: &mut FlowTracker, event: &DirectEvent) {
    assert_eq!(
        flows.record_and_check_opening(event, &NOBODY, &Snapshot::default()),
        None,
        "nobody denies it"
    );
}

#[test]
fn what_ended_unheard_is_ended_at_the_second_look() {
    let mut flows = flows();
    for (kind, socket) in
        [(DirectEventKind::Opening, 1), (DirectEventKind::Opening, 2), (DirectEventKind::Unlisted, 3)]
    {
        open(&mut flows, &event(kind, socket));
    }
    let only_the_second = |socket| socket == 2;
    assert_eq!(flows.end_lost_and_list_denied(only_the_second), []);
    assert!(flows.is_recorded(1), "its end may be waiting to be read");
    assert_eq!(flows.end_lost_and_list_denied(only_the_second), []);
    assert!(!flows.is_recorded(1) && flows.is_recorded(2));
    assert!(flows.is_recorded(3), "it never was in the list, so nothing follows from that");
    flows.record_closed(&event(DirectEventKind::Closed, 3), &NOBODY, &Snapshot::default());
    assert!(!flows.is_recorded(3));
}

#[test]
fn who_has_as_many_as_it_may_is_the_proxys() {
    let mut flows = flows();
    let of =
        |client_netns, socket| DirectEvent { socket, client_netns, ..event(DirectEventKind::Opening, 1) };
    let most = u64::try_from(MAX_FLOWS_OF_CLIENT).unwrap();
    (1..most).for_each(|socket| open(&mut flows, &of(7, socket)));
    assert_eq!(flows.clients_to_send_through_proxy(), HashSet::new());
    open(&mut flows, &of(7, most));
    assert_eq!(flows.clients_to_send_through_proxy(), HashSet::from([7]));
    let clients = u64::try_from(MAX_FLOWS_OF_NODE / MAX_FLOWS_OF_CLIENT).unwrap();
    for client in 1..clients {
        (1..=most).for_each(|socket| open(&mut flows, &of(7 + client, client << 32 | socket)));
    }
    assert_eq!(flows.clients_to_send_through_proxy(), HashSet::from([CROWDED_ALL_CLIENTS]));
    flows.record_closed(&of(7, 1), &NOBODY, &Snapshot::default());
    assert_eq!(flows.clients_to_send_through_proxy(), (8..7 + clients).collect());
}

#[test]
fn what_is_denied_and_still_open_is_closed_again() {
    let mut flows = flows();
    let (denied, other) = (event(DirectEventKind::Opening, 1), event(DirectEventKind::Opening, 2));
    open(&mut flows, &denied);
    open(&mut flows, &other);
    let ends = ConnectionEnds::from(&denied);
    assert_eq!(flows.revoke_misdelivered_flow(&event(DirectEventKind::Astray, 1)), Some(ends));
    for _ in 0..3 {
        assert_eq!(flows.end_lost_and_list_denied(|_| true), [ends]);
    }
    flows.record_closed(&event(DirectEventKind::Closed, 1), &NOBODY, &Snapshot::default());
    assert_eq!(flows.end_lost_and_list_denied(|_| true), []);
}

#[test]
fn a_beginning_that_is_told_twice_is_one_and_a_socket_may_connect_again() {
    let mut flows = flows();
    let first = event(DirectEventKind::Opening, 1);
    open(&mut flows, &first);
    assert!(flows.revoke_misdelivered_flow(&first).is_some());
    open(&mut flows, &first);
    assert_eq!(
        flows.end_lost_and_list_denied(|_| true),
        [ConnectionEnds::from(&first)],
        "it is the same one"
    );
    let second = DirectEvent { client: "10.0.0.1:50000".parse().unwrap(), ..first };
    open(&mut flows, &second);
    assert_eq!(flows.end_lost_and_list_denied(|_| true), [], "it is another one");
    assert!(flows.is_recorded(1));
}

#[test]
fn each_end_is_found_from_its_own_side() {
    let ends = ConnectionEnds::from(&event(DirectEventKind::Opening, 1));
    let (client, server) = (ends.client_socket(), ends.server_socket());
    assert_eq!((client.local, client.remote), (server.remote, server.local));
    assert_eq!((client.cookie, server.cookie), (1, ANY_COOKIE));
    assert_eq!(client.local, ends.client);
}
