//! The Kubernetes API: where the configuration comes from, who agents are, where the roots are kept.
//!
//! Reading order: [`watch`] follows the kinds that the mesh reads and fills [`objects`], which the publisher
//! compiles; [`review`] says which node a token is of; [`roots`] keeps the authority in a Secret and
//! [`bundle`] publishes what to trust. [`leader`] chooses the replica that writes [`status`] on resources
//! (`route_status` on routes),
//! tells those that are [`unread`] and those that can be reached [`past`] the mesh, and keeps the
//! [`last_good`] state of broken ones, and takes the startup [`taint`] off nodes.

pub mod bundle;
mod expiry;
mod gate;
pub mod last_good;
pub mod leader;
mod notice;
pub mod objects;
pub mod past;
pub mod review;
pub mod roots;
mod route_status;
pub mod status;
pub mod taint;
pub mod unread;
pub mod watch;

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::Client;
use kube::runtime::watcher::ExponentialBackoff;

/// Who this control plane is in the cluster.
#[derive(Clone)]
pub struct Cluster {
    /// The API.
    pub client: Client,
    /// Namespace that it runs in: its Secret, Lease and `ConfigMap`s are there.
    pub namespace: String,
    /// Name of this replica's pod.
    pub pod: String,
}

impl Cluster {
    /// Connects as the pod's service account, or as `KUBECONFIG` says outside of a cluster.
    pub async fn connect(namespace: &str, pod: &str) -> Result<Self, kube::Error> {
        // Whoever starts first has installed the same.
        let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::try_default().await?;
        Ok(Self { client, namespace: namespace.to_owned(), pod: pod.to_owned() })
    }
}

/// The pauses after which a watch that was lost is tried again. Short enough that everything is known again
/// soon after an outage of the API server, and with jitter, so that not everybody asks it at once.
fn pauses() -> ExponentialBackoff {
    let (first, longest) = (Duration::from_millis(250), Duration::from_secs(5));
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .into()
}
