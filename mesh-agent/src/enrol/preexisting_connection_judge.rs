//! Preexisting connections: they were open in a pod before the mesh took it in. They are judged as if they
//! were opened now, and closed if policy would not have let them in, or out. The others are judged again when
//! the configuration changes.
//!
//! The kernel does not say which end opened a connection. The end that has a listener on its own port is
//! taken for the server, and so is one whose port is below those for connecting programs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use mesh_api::plan::outbound::{Destination, destination_of};
use mesh_api::plan::policy::Verdict;
use mesh_api::plan::{Snapshot, TunnelProtocol, Workload};
use mesh_common::is_mesh_port;
use mesh_proxy::authorized_connections::AccessRequest;
use mesh_proxy::local_pod_identity::LocalPod;
use mesh_proxy::worker::NEW_POD_WAIT;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::keeper_client::KeeperClient;
use crate::sys::{Connection, PreexistingConnection};

/// Most connections that are being closed at a time.
const AT_ONCE: usize = 4;
/// Pause before closing a connection, or looking up its pod, is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often connections that have ended are forgotten.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Lists of too many connections that are closed before the pod is given up.
const ROUNDS: usize = 16;
/// The kernel's first port for connecting programs (`net.ipv4.ip_local_port_range`).
const FIRST_EPHEMERAL: u16 = 32_768;

/// The preexisting connections of a pod.
pub(super) struct PreexistingJudge {
    pod: Arc<LocalPod>,
    keeper: KeeperClient,
    left: Vec<PreexistingConnection>,
    /// Whether the keeper was told that they have been judged.
    judged: bool,
    /// Until when an unknown pod's connections are left open.
    patience: Instant,
}

/// Lists the connections of a pod that the mesh has just taken in, before it serves any. If there are more
/// than can be listed, those found are closed without being judged. Errors: the keeper can't list them, or
/// they do not get fewer.
pub(super) async fn list_or_close_preexisting(
    keeper: &KeeperClient,
    netns: u64,
) -> Result<Vec<PreexistingConnection>, String> {
    for _ in 0..ROUNDS {
        let listed = keeper.list_preexisting(netns).await?;
        if !listed.more {
            return Ok(listed.found);
        }
        let count = close(keeper, netns, &listed.found).await.0;
        tracing::warn!(netns, count, "more connections than can be looked at: closed what was found of them");
    }
    Err("it has more connections open than can be looked at, or closed".to_owned())
}

/// Closes connections. Returns how many were open, and which could not be closed.
async fn close(
    keeper: &KeeperClient,
    netns: u64,
    all: &[PreexistingConnection],
) -> (usize, Vec<PreexistingConnection>) {
    let close = |open: PreexistingConnection| async move {
        (open, keeper.destroy_connection(netns, open.connection).await)
    };
    let mut closing = futures_util::stream::iter(all.iter().copied().map(close)).buffer_unordered(AT_ONCE);
    let (mut count, mut failed) = (0, Vec::new());
    while let Some((open, closed)) = closing.next().await {
        match closed {
            Ok(was_open) => count += usize::from(was_open),
            Err(error) => {
                let Connection { local, remote, .. } = open.connection;
                tracing::warn!(%local, %remote, error, "a connection that is denied could not be closed");
                failed.push(open);
            }
        }
    }
    (count, failed)
}

impl PreexistingJudge {
    /// Creates one for a pod.
    pub fn new(pod: Arc<LocalPod>, keeper: KeeperClient, left: Vec<PreexistingConnection>) -> Self {
        Self { pod, keeper, left, judged: false, patience: Instant::now() + NEW_POD_WAIT }
    }

    /// Judges them until none is left, or the pod is no longer in the mesh.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let complete = self.judge(&snapshot).await;
            if complete && !self.judged {
                self.judged = self.keeper.report_preexisting_judged(self.pod.netns).await.is_ok();
            }
            if self.left.is_empty() && self.judged {
                return;
            }
            if look_at <= Instant::now() {
                look_at = Instant::now() + LOOK_EVERY;
                let Ok(listed) = self.keeper.list_preexisting(self.pod.netns).await else { return };
                let open: HashSet<u64> = listed.found.iter().map(|it| it.connection.cookie).collect();
                self.left.retain(|it| listed.more || open.contains(&it.connection.cookie));
            }
            let next = if complete { look_at } else { look_at.min(Instant::now() + AGAIN) };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = sleep_until(next) => {}
            }
        }
    }

    /// Closes connections that are not allowed. Returns whether all were judged, and closed where necessary.
    async fn judge(&mut self, snapshot: &Snapshot) -> bool {
        let workload = self.pod.find_workload(snapshot);
        let patient = Instant::now() < self.patience;
        let (denied, left): (Vec<_>, _) = self.left.iter().partition(|open| match &workload {
            Some(workload) => !may_live(snapshot, workload, open),
            // Treated like a new connection of a pod that is not known yet.
            None => is_taken(open) && !patient,
        });
        self.left = left;
        let (count, failed) = close(&self.keeper, self.pod.netns, &denied).await;
        let all_closed = failed.is_empty();
        self.left.extend(failed);
        if count > 0 {
            let pod = &self.pod;
            tracing::info!(%pod, count, "closed connections from before the pod was in the mesh");
        }
        all_closed && (workload.is_some() || self.left.is_empty())
    }
}

/// Whether the other end may have opened a connection.
fn is_taken(open: &PreexistingConnection) -> bool {
    open.taken || open.connection.local.port() < FIRST_EPHEMERAL
}

/// Whether a connection would be let in or out as it is, in plaintext and past the mesh, if it were opened
/// now.
fn may_live(snapshot: &Snapshot, workload: &Arc<Workload>, open: &PreexistingConnection) -> bool {
    let Connection { local, remote, .. } = open.connection;
    let let_in = || {
        let request = AccessRequest {
            identity: None,
            source: remote.ip(),
            destination: local,
            workload: Arc::clone(workload),
        };
        !is_mesh_port(local.port()) && matches!(request.decide(snapshot).verdict, Verdict::Allow(_))
    };
    let let_out = || match destination_of(snapshot, workload, remote) {
        Destination::Passthrough => true,
        Destination::Workload(target) => target.tunnel_protocol == TunnelProtocol::Plain,
        Destination::Service { endpoints, .. } => {
            endpoints.iter().all(|target| target.tunnel_protocol == TunnelProtocol::Plain)
        }
        Destination::Reject(_) => false,
    };
    (!is_taken(open) || let_in()) && (open.taken || let_out())
}

#[cfg(test)]
mod tests {
    use mesh_api::plan::Store;
    use mesh_api::wire::type_url;
    use mesh_api::wire::workload::{self, Address, TunnelProtocol, address};
    use mesh_api::wire::xds::Resource;
    use prost::Message;
    use prost_types::Any;

    use super::*;

    const POD: &str = "10.0.0.1";
    const MESHED: &str = "10.0.0.2";
    const PLAIN: &str = "10.0.0.3";
    const OUTSIDE: &str = "192.0.2.1";

    /// A pod, another in the mesh, and one that is not. A policy that is named and missing denies everything.
    fn mesh(policies: &[&str]) -> (Snapshot, Arc<Workload>) {
        let mut store = Store::default();
        for (name, ip, tunnel) in [
            ("pod", POD, TunnelProtocol::Hbone),
            ("meshed", MESHED, TunnelProtocol::Hbone),
            ("plain", PLAIN, TunnelProtocol::None),
        ] {
            let octets = ip.split('.').map(|octet| octet.parse().unwrap()).collect();
            let workload = workload::Workload {
                uid: name.to_owned(),
                name: name.to_owned(),
                namespace: "app".to_owned(),
                service_account: "default".to_owned(),
                addresses: vec![octets],
                tunnel_protocol: tunnel.into(),
                authorization_policies: policies.iter().map(|it| (*it).to_owned()).collect(),
                ..workload::Workload::default()
            };
            let value = Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec();
            let resource = Some(Any { type_url: type_url::ADDRESS.to_owned(), value });
            let resource = Resource { name: name.to_owned(), resource, ..Resource::default() };
            assert_eq!(store.apply_response(type_url::ADDRESS, vec![resource], Vec::new()), []);
        }
        let snapshot = store.snapshot();
        let pod = snapshot.workload("pod").unwrap();
        (snapshot, pod)
    }

    fn lives(policies: &[&str], taken: bool, local: u16, remote: (&str, u16)) -> bool {
        let (snapshot, pod) = mesh(policies);
        let end = |ip: &str, port| std::net::SocketAddr::new(ip.parse().unwrap(), port);
        let connection = Connection { cookie: 1, local: end(POD, local), remote: end(remote.0, remote.1) };
        may_live(&snapshot, &pod, &PreexistingConnection { connection, taken })
    }

    #[test]
    fn what_came_in_lives_as_long_as_it_may_come_in_plaintext() {
        for (from, listens) in [(OUTSIDE, true), (MESHED, true), (PLAIN, true), (OUTSIDE, false)] {
            assert!(lives(&[], listens, 8080, (from, 40_000)), "{from}");
            assert!(!lives(&["app/strict"], listens, 8080, (from, 40_000)), "{from}");
        }
        assert!(!lives(&["app/strict"], true, 50_000, (OUTSIDE, 40_000)), "a listener on any port");
        assert!(!lives(&[], true, 15_008, (OUTSIDE, 40_000)), "a port of the mesh's own");
    }

    #[test]
    fn what_went_out_lives_where_it_would_go_out_so() {
        for policies in [&[][..], &["app/strict"]] {
            assert!(lives(policies, false, 40_000, (OUTSIDE, 5432)), "the mesh has nothing to do with it");
            assert!(lives(policies, false, 40_000, (PLAIN, 8080)), "who is not in the mesh is spoken to so");
            assert!(!lives(policies, false, 40_000, (MESHED, 8080)), "that goes through the mesh now");
        }
        assert!(!lives(&[], false, 8080, (MESHED, 8080)), "whoever opened it");
    }
}
