//! A yes that is used later than it was given: a program puts time between its `connect()` and its SYN, or
//! the network between the SYN and its arrival. Meanwhile anything may happen.

use mesh_api::plan::policy::{Peer, authorize};
use mesh_common::direct::{Arrival, Choice, Filed, NO_SERVER, RouteKey, choose, leads_to};
use std::net::{IpAddr, SocketAddr};

use super::Node;
use crate::direct::task::may_arrive;
use crate::sys::ebpf::UnderWay;

/// Sockets that have a yes, and connections that are under way by one.
#[derive(Default)]
pub struct Late {
    drawn: Vec<(RouteKey, Choice)>,
    filed: Vec<(UnderWay, Filed)>,
    /// Yeses that were used later: the test would prove nothing without them.
    pub used: usize,
    /// Yeses that were no more.
    pub refused: usize,
}

impl Node {
    /// Sends every SYN that was left to be sent, lets everything arrive that is under way, and draws anew.
    pub fn use_late(&mut self, context: &str) {
        let before = std::mem::take(&mut self.late.drawn);
        self.arrive(context);
        for (key, choice) in before {
            self.send(&key, &choice, context);
        }
        for (key, route) in &self.routes {
            let tickets = (0..route.tickets.min(40)).chain([route.tickets - 1]);
            let owned = |choice: &&Choice| self.owners.get(&choice.endpoint.address) == Some(&choice.server);
            let drawn = tickets.filter_map(|ticket| choose(route, ticket)).filter(owned);
            self.late.drawn.extend(drawn.map(|choice| (*key, *choice)));
        }
    }

    /// What `sockops` does with a yes that is old.
    fn send(&mut self, key: &RouteKey, choice: &Choice, context: &str) {
        let owned = self.owners.get(&choice.endpoint.address) == Some(&choice.server);
        let route = self.routes.get(key);
        if !owned || !route.is_some_and(|route| leads_to(route, choice.server, &choice.endpoint)) {
            self.late.refused += 1;
            return;
        }
        let problem = self.objection(key, choice);
        assert_eq!(problem, None, "{context}: {key:?} is sent to {choice:?}");
        let pod = |cookie| self.pods.iter().find(|pod| pod.cookie == cookie).unwrap();
        let server = SocketAddr::new(IpAddr::from(choice.endpoint.address), choice.endpoint.port);
        let source = pod(key.client).address_like(server.ip()).unwrap();
        let under_way = UnderWay {
            client_netns: key.client,
            server_netns: choice.server,
            client: (source, 40_000).into(),
            server,
        };
        self.late.filed.push((under_way, Filed { server: choice.server, client: key.client, at: 0 }));
    }

    /// What the task takes back, and what `sk_lookup` then does.
    fn arrive(&mut self, context: &str) {
        let mut filed = std::mem::take(&mut self.late.filed);
        if std::mem::take(&mut self.taken_back) {
            for (under_way, filed) in &mut filed {
                if !may_arrive(&self.table, under_way, &self.snapshot) {
                    filed.server = NO_SERVER;
                }
            }
        }
        for (under_way, filed) in filed {
            let arrives_at = self.owners.get(&under_way.server.ip().into()).copied().unwrap_or(NO_SERVER);
            if filed.arrives(arrives_at, 1, true) == Arrival::Direct {
                self.late.used += 1;
                assert!(self.is_allowed(&under_way), "{context}: {under_way:?} arrives");
            } else {
                self.late.refused += 1;
            }
        }
    }

    /// What the evaluator says of a connection between two pods that are both there.
    fn is_allowed(&self, under_way: &UnderWay) -> bool {
        let pod = |cookie: u64| self.pods.iter().find(|pod| pod.cookie == cookie);
        let (Some(client), Some(_)) = (pod(under_way.client_netns), pod(under_way.server_netns)) else {
            return false;
        };
        let Some(workload) = self.snapshot.workload_by_address(under_way.server.ip()) else { return false };
        let peer = Peer {
            identity: Some(&client.identity),
            source_ip: under_way.client.ip(),
            destination_ip: under_way.server.ip(),
            destination_port: under_way.server.port(),
        };
        authorize(&self.snapshot, &workload, &peer).is_allowed()
    }
}
