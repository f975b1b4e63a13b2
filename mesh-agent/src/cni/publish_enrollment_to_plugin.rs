//! The file that the plugin decides by. The keeper writes it, since the proxy can't open a file for that.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use mesh_cni::state::{LONGEST, State};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::watch;

use crate::keeper_client::KeeperClient;
use crate::pods::NodePods;

/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Has the keeper write every change, until one of the sources ends. `namespaces` are those whose label says
/// that their pods should be in the mesh.
///
/// Call this before the system calls that it needs are given up. Errors: there is no memory.
pub fn publish_enrollment_to_plugin(
    keeper: KeeperClient,
    mut pods: watch::Receiver<Arc<NodePods>>,
    mut namespaces: watch::Receiver<Arc<BTreeSet<String>>>,
) -> io::Result<impl Future<Output = ()>> {
    let memory = Arc::new(memfd_create("nodemesh-cni", MemfdFlags::CLOEXEC)?);
    let mut file = File::from(memory.try_clone()?);
    Ok(async move {
        let mut told = None;
        loop {
            let state = state_of(&pods.borrow_and_update(), &namespaces.borrow_and_update());
            if told.as_ref() != Some(&state) {
                let result = match write(&mut file, &state) {
                    Ok(length) => keeper.write_plugin_state(Arc::clone(&memory), length).await,
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = &result {
                    tracing::error!(
                        error,
                        "the CNI plugin is not told who is to be in the mesh; trying again"
                    );
                }
                told = result.is_ok().then_some(state);
            }
            let goes_on = tokio::select! {
                changed = pods.changed() => changed.is_ok(),
                changed = namespaces.changed() => changed.is_ok(),
                () = tokio::time::sleep(RETRY), if told.is_none() => true,
            };
            if !goes_on {
                return;
            }
        }
    })
}

fn write(file: &mut File, state: &State) -> io::Result<u32> {
    let bytes = state.to_bytes();
    let length = u32::try_from(bytes.len()).ok().filter(|length| u64::from(*length) <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("more namespaces than the plugin reads"))?;
    file.rewind()?;
    file.write_all(&bytes)?;
    Ok(length)
}

/// Returns the plugin's state, which lists pods where they differ from their namespace.
fn state_of(pods: &NodePods, namespaces: &BTreeSet<String>) -> State {
    let differ = pods.values().filter(|pod| pod.should_be_enrolled() != namespaces.contains(&*pod.namespace));
    State {
        namespaces: namespaces.clone(),
        pods: differ.map(|pod| (pod.uid.to_string(), pod.should_be_enrolled())).collect(),
    }
}
