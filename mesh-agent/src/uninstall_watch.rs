//! Whether the mesh is being uninstalled: whether the agents' `DaemonSet` is still there.

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use crate::connect_to_kubernetes::watch_backoff;

/// Name of the agents' `DaemonSet`, in the agent's own namespace.
const DAEMON_SET: &str = "mesh-agent";

/// Follows whether the agents' `DaemonSet` is there. It is watched all the time, since an uninstallation also
/// takes away the permission to ask.
pub fn watch_own_daemon_set(client: Client, namespace: &str) -> watch::Receiver<bool> {
    let (sender, installed) = watch::channel(true);
    let api: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(client, namespace);
    let own = Config::default().fields(&format!("metadata.name={DAEMON_SET}"));
    tokio::spawn(async move {
        let events = watcher(api, own).backoff(watch_backoff());
        pin_mut!(events);
        let mut listed = false;
        while let Some(event) = events.next().await {
            let there = match event {
                Ok(Event::Init) => {
                    listed = false;
                    continue;
                }
                Ok(Event::InitApply(set)) => {
                    listed = true;
                    stays(&set)
                }
                Ok(Event::InitDone) if listed => continue,
                Ok(Event::InitDone | Event::Delete(_)) => false,
                Ok(Event::Apply(set)) => stays(&set),
                Err(error) => {
                    tracing::debug!(%error, "own DaemonSet not watched; trying again");
                    continue;
                }
            };
            sender.send_replace(there);
        }
    });
    installed
}

fn stays(set: &impl ResourceExt) -> bool {
    set.meta().deletion_timestamp.is_none()
}
