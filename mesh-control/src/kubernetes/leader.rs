//! The one replica that writes: a Lease, held as client-go's leader election holds it.
//!
//! Clocks of replicas are never compared: a holder is taken for gone when its lease was not seen to change
//! for as long as the lease lasts, by this replica's own clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Cluster;
use crate::metrics::Metrics;

/// Name of the Lease.
const NAME: &str = "nodemesh-control";

/// A holder that was not seen for so long is gone.
const LASTS: Duration = Duration::from_secs(15);

/// A holder that could not renew for so long stops to lead: before anybody else begins to.
const GIVES_UP: Duration = Duration::from_secs(10);

/// An answer that takes longer is none: a connection that hangs must not keep a leader from noticing that it
/// is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often the lease is looked at and renewed.
const EVERY: Duration = Duration::from_secs(2);

/// Takes part in the election until `stopping`, and gives the lease back then; the receiver says whether this
/// replica leads.
pub fn take_part(
    cluster: &Cluster,
    metrics: &Arc<Metrics>,
    stopping: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<bool> {
    let (leads, receiver) = watch::channel(false);
    let leases = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let metrics = Arc::clone(metrics);
    let candidate =
        Candidate { leases, name: cluster.pod.clone(), metrics, seen: None, renewed: Instant::now() };
    tasks.spawn(candidate.run(leads, stopping));
    receiver
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    metrics: Arc<Metrics>,
    /// The lease as it was last seen to change, and when.
    seen: Option<(Observed, Instant)>,
    renewed: Instant,
}

/// What of a lease changes when its holder renews it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Observed {
    holder: String,
    renewed: Option<MicroTime>,
}

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Renew,
    Take,
    Wait,
}

impl Candidate {
    async fn run(mut self, leads: watch::Sender<bool>, mut stopping: watch::Receiver<bool>) {
        let mut failing = false;
        loop {
            let began = Instant::now();
            let turn = timeout(PATIENCE, self.turn(began)).await;
            let turn = turn.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())));
            let held = match &turn {
                Ok(held) => *held,
                Err(error) => {
                    if !failing {
                        warn!(%error, "lease not renewed; trying again");
                    }
                    *leads.borrow() && self.renewed.elapsed() < GIVES_UP
                }
            };
            failing = turn.is_err();
            if leads.send_if_modified(|leads| std::mem::replace(leads, held) != held) {
                self.metrics.leader.set(i64::from(held));
                info!(leads = held, replica = self.name, "leader election");
            }
            // An error means that the control plane is gone, which is a stop as well.
            let stop = async { drop(stopping.wait_for(|stopping| *stopping).await) };
            if timeout(EVERY, stop).await.is_ok() {
                break;
            }
        }
        if leads.send_replace(false) {
            self.metrics.leader.set(0);
            self.step_down().await;
        }
    }

    async fn step_down(&self) {
        match timeout(PATIENCE, self.release()).await {
            Ok(Ok(())) => info!(replica = self.name, "gave the lease back"),
            // Others wait for as long as it lasts, then.
            Ok(Err(error)) => warn!(%error, "lease not given back"),
            Err(_) => warn!("lease not given back: no answer"),
        }
    }

    /// Lets another replica lead at once.
    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.leases.get(NAME).await?;
        if observed(&lease).holder != self.name {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        self.leases.replace(NAME, &PostParams::default(), &lease).await.map(drop)
    }

    /// Looks at the lease and takes or renews it if that is due. Says whether it is ours, from `began` on.
    async fn turn(&mut self, began: Instant) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            return self.won(self.leases.create(&PostParams::default(), &self.lease(None)).await, began);
        };
        match self.judge(&observed(&lease), Instant::now()) {
            Turn::Wait => Ok(false),
            Turn::Renew | Turn::Take => {
                let next = self.lease(Some(&lease));
                self.won(self.leases.replace(NAME, &PostParams::default(), &next).await, began)
            }
        }
    }

    fn judge(&mut self, observed: &Observed, now: Instant) -> Turn {
        if observed.holder == self.name {
            return Turn::Renew;
        }
        if observed.holder.is_empty() {
            return Turn::Take;
        }
        match &self.seen {
            Some((seen, at)) if seen == observed => {
                if now.duration_since(*at) >= LASTS {
                    Turn::Take
                } else {
                    Turn::Wait
                }
            }
            _ => {
                self.seen = Some((observed.clone(), now));
                Turn::Wait
            }
        }
    }

    /// Another replica may have been faster, which is no error.
    fn won(&mut self, written: Result<Lease, kube::Error>, began: Instant) -> Result<bool, kube::Error> {
        match written {
            Ok(_) => {
                // Others may have seen it as early as that.
                self.renewed = began;
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lease(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_ours = spec.holder_identity.as_deref() == Some(&self.name);
        let transitions =
            spec.lease_transitions.unwrap_or_default() + i32::from(before.is_some() && !is_ours);
        Lease {
            metadata: before.map_or_else(
                || ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
                acquire_time: if is_ours { spec.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn observed(lease: &Lease) -> Observed {
    let spec = lease.spec.clone().unwrap_or_default();
    Observed { holder: spec.holder_identity.unwrap_or_default(), renewed: spec.renew_time }
}

#[cfg(test)]
mod tests {
    use kube::Client;

    use super::*;

    fn candidate() -> Candidate {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::try_from(config).unwrap();
        let metrics = Arc::default();
        let leases = Api::namespaced(client, "nodemesh-system");
        Candidate { leases, name: "one".into(), metrics, seen: None, renewed: Instant::now() }
    }

    fn held_by(holder: &str, renewed: i64) -> Observed {
        let renewed = Timestamp::from_second(renewed).ok().map(MicroTime);
        Observed { holder: holder.to_owned(), renewed }
    }

    #[tokio::test]
    async fn a_lease_is_taken_only_when_its_holder_was_silent_for_its_length() {
        let (mut candidate, start) = (candidate(), Instant::now());
        let mut judge = |lease: &Observed, after| candidate.judge(lease, start + Duration::from_secs(after));
        assert_eq!(judge(&held_by("two", 100), 0), Turn::Wait, "just seen, whatever its clock says");
        assert_eq!(judge(&held_by("two", 100), 14), Turn::Wait);
        assert_eq!(judge(&held_by("two", 102), 16), Turn::Wait, "it was renewed");
        assert_eq!(judge(&held_by("two", 102), 30), Turn::Wait);
        assert_eq!(judge(&held_by("two", 102), 31), Turn::Take);
        assert_eq!(judge(&held_by("one", 102), 31), Turn::Renew);
        assert_eq!(judge(&held_by("", 102), 31), Turn::Take, "given up");
    }

    #[tokio::test]
    async fn a_change_of_holder_is_counted() {
        let candidate = candidate();
        let first = candidate.lease(None);
        assert_eq!(first.spec.as_ref().unwrap().lease_transitions, Some(0));
        assert_eq!(candidate.lease(Some(&first)).spec.unwrap().lease_transitions, Some(0), "renewed");
        let other = Candidate { name: "two".into(), ..candidate };
        assert_eq!(other.lease(Some(&first)).spec.unwrap().lease_transitions, Some(1));
    }
}
