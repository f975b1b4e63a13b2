//! Which pods run on the node: one task for each that should, until it should not.

use std::{collections::HashMap, sync::Arc};

use mesh_api::manifest::Kind;
use tokio::{sync::watch, task::JoinSet};

use super::{Node, pod};
use crate::cluster::Stored;

/// Runs for as long as the lab does.
pub async fn run(node: Arc<Node>) {
    let mut changes = node.store.changes();
    let mut running: HashMap<String, watch::Sender<bool>> = HashMap::new();
    let mut tasks: JoinSet<String> = JoinSet::new();
    loop {
        changes.borrow_and_update();
        for stored in node.store.list(Kind::Pod) {
            look_at(&node, stored, &mut running, &mut tasks);
        }
        tokio::select! {
            more = changes.changed() => if more.is_err() { return },
            Some(ended) = tasks.join_next() => match ended {
                Ok(uid) => drop(running.remove(&uid)),
                Err(error) => tracing::error!(%error, "a pod's task ended abnormally"),
            },
        }
    }
}

fn look_at(
    node: &Arc<Node>,
    stored: Arc<Stored>,
    running: &mut HashMap<String, watch::Sender<bool>>,
    tasks: &mut JoinSet<String>,
) {
    let Some(pod) = stored.pod().filter(|pod| pod.spec.node_name == node.name) else { return };
    let uid = pod.metadata.uid.clone();
    match (running.get(&uid), pod.is_terminating()) {
        (Some(stop), true) => drop(stop.send(true)),
        (Some(_), false) => {}
        (None, true) => forget(node, &stored, &uid),
        (None, false) if pod.is_terminal() => {}
        (None, false) => {
            let (stop, stopped) = watch::channel(false);
            running.insert(uid.clone(), stop);
            let node = node.clone();
            tasks.spawn(async move {
                pod::run(&node, &stored, stopped).await;
                uid
            });
        }
    }
}

/// A pod that is being deleted and of which nothing runs any more.
fn forget(node: &Node, stored: &Stored, uid: &str) {
    let metadata = stored.object.metadata();
    let removed = crate::host::files::remove_all(&node.pod_directory(&metadata.namespace, &metadata.name))
        .map_err(Into::into)
        .and_then(|()| node.store.remove(&stored.object.key(), Some(uid)));
    if let Err(error) = removed {
        tracing::error!(pod = %metadata.full_name(), %error, "a deleted pod left something behind");
    }
}
