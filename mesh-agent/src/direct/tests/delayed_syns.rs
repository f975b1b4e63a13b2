//! A yes that is used later than it was given: a program puts time between its `connect()` and its SYN, or
//! the network between the SYN and its arrival. Meanwhile anything may happen.

use mesh_api::plan::policy::{ConnectionAttributes, authorize};
use mesh_common::direct::{
    ArrivalVerdict, DirectFlowEntry, DirectRouteKey, NO_SERVER, RouteEndpoint, endpoint_for_ticket,
    route_has_endpoint,
};
use std::net::{IpAddr, SocketAddr};

use super::Node;
use crate::direct::direct_task::is_pending_connection_allowed;
use crate::sys::ebpf::PendingDirectConnection;

/// Sockets that have a yes, and connections that are under way by one.
#[derive(Default)]
pub struct DelayedSyns {
    drawn: Vec<(DirectRouteKey, RouteEndpoint)>,
    filed: Vec<(PendingDirectConnection, DirectFlowEntry)>,
    /// Yeses that were used later: the test would prove nothing without them.
    pub used: usize,
    /// Yeses that were no more.
    pub refused: usize,
}

impl Node {
    /// Sends every SYN that was left to be sent, lets everything arrive that is under way, and draws anew.
    pub fn send_delayed(&mut self, context: &str) {
        let before = std::mem::take(&mut self.delayed.drawn);
        self.arrive(context);
        for (key, choice) in before {
            self.send(&key, &choice, context);
        }
        for (key, route) in &self.routes {
            let tickets = (0..route.tickets.min(40)).chain([route.tickets - 1]);
            let owned =
                |choice: &&RouteEndpoint| self.owners.get(&choice.endpoint.address) == Some(&choice.server);
            let drawn = tickets.filter_map(|ticket| endpoint_for_ticket(route, ticket)).filter(owned);
            self.delayed.drawn.extend(drawn.map(|choice| (*key, *choice)));
        }
    }

    /// What `sockops` does with a yes that is old.
    fn send(&mut self, key: &DirectRouteKey, choice: &RouteEndpoint, context: &str) {
        let owned = self.owners.get(&choice.endpoint.address) == Some(&choice.server);
        let route = self.routes.get(key);
        if !owned || !route.is_some_and(|route| route_has_endpoint(route, choice.server, &choice.endpoint)) {
            self.delayed.refused += 1;
            return;
        }
        let problem = self.objection(key, choice);
        assert_eq!(problem, None, "{context}: {key:?} is sent to {choice:?}");
        let pod = |cookie| self.pods.iter().find(|pod| pod.cookie == cookie).unwrap();
        let server = SocketAddr::new(IpAddr::from(choice.endpoint.address), choice.endpoint.port);
        let source = pod(key.client).address_of_family(server.ip()).unwrap();
        let handshake = PendingDirectConnection {
            client_netns: key.client,
            server_netns: choice.server,
            client: (source, 40_000).into(),
            server,
        };
        self.delayed
            .filed
            .push((handshake, DirectFlowEntry { server: choice.server, client: key.client, at: 0 }));
    }

    /// What the task takes back, and what `sk_lookup` then does.
    fn arrive(&mut self, context: &str) {
        let mut filed = std::mem::take(&mut self.delayed.filed);
        if std::mem::take(&mut self.taken_back) {
            for (handshake, filed) in &mut filed {
                if !is_pending_connection_allowed(&self.table, handshake, &self.snapshot) {
                    filed.server = NO_SERVER;
                }
            }
        }
        for (handshake, filed) in filed {
            let arrives_at = self.owners.get(&handshake.server.ip().into()).copied().unwrap_or(NO_SERVER);
            if filed.arrival_verdict(arrives_at, 1, true) == ArrivalVerdict::Direct {
                self.delayed.used += 1;
                assert!(self.is_allowed(&handshake), "{context}: {handshake:?} arrives");
            } else {
                self.delayed.refused += 1;
            }
        }
    }

    /// What the evaluator says of a connection between two pods that are both there.
    fn is_allowed(&self, handshake: &PendingDirectConnection) -> bool {
        let pod = |cookie: u64| self.pods.iter().find(|pod| pod.cookie == cookie);
        let (Some(client), Some(_)) = (pod(handshake.client_netns), pod(handshake.server_netns)) else {
            return false;
        };
        let Some(workload) = self.snapshot.workload_by_address(handshake.server.ip()) else { return false };
        let peer = ConnectionAttributes {
            identity: Some(&client.identity),
            source_ip: handshake.client.ip(),
            destination_ip: handshake.server.ip(),
            destination_port: handshake.server.port(),
        };
        authorize(&self.snapshot, &workload, &peer).is_allowed()
    }
}
