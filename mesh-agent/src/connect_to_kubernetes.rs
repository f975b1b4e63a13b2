//! The agent's client of the Kubernetes API.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::Client;
use kube::runtime::watcher::ExponentialBackoff;

/// Connects as the pod's service account, or as `KUBECONFIG` says outside of a cluster. Errors: there is
/// neither.
pub async fn connect() -> Result<Client, kube::Error> {
    // The control plane's client uses the same provider.
    let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_default().await
}

/// Returns the pauses before a lost watch is tried again. They are short, since a pod that starts meanwhile
/// is not in the mesh, and have jitter, so that not all nodes ask the API server at once.
pub fn watch_backoff() -> ExponentialBackoff {
    let (first, longest) = (Duration::from_millis(250), Duration::from_secs(5));
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .into()
}
