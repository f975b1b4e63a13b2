//! The delta xDS client: the configuration that the control plane tells (docs/wire.md, Discovery).
//!
//! [`start_client`] keeps one stream open, takes each response into a [`Store`] and publishes the result as
//! an immutable [`Snapshot`]. A lost link changes only [`XdsState::link_status`]: the last snapshot stays in
//! force.

mod client;
mod control_plane_status;
mod delta_stream;
mod inherited_configuration_fallback;
mod response_applier;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_api::admin::ControlStreamStatus;
use mesh_api::plan::{Snapshot, Store, WaypointHandling};
use prost::Message;
use tokio::sync::{Notify, oneshot, watch};

use self::client::XdsClient;
use self::control_plane_status::ControlPlaneStatus;
pub use self::inherited_configuration_fallback::InheritedConfiguration;
use self::inherited_configuration_fallback::InheritedFallbackApplier;
use self::response_applier::ResponseApplier;
use crate::certs::{Certificates, ControlPlaneConnector};
use crate::inheritance::BequestSender;
use crate::inheritance::xds_journal::XdsJournal;

/// Where the configuration comes from, and who asks for it.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// Node that the agent serves.
    pub node_name: String,
    /// The control plane's URL, `https://HOST:PORT`.
    pub address: String,
    /// DNS name that its certificate must have.
    pub control_name: String,
    /// PEM file of the roots that its certificate is checked with.
    pub root_cert: PathBuf,
    /// File of the node's token.
    pub token_file: PathBuf,
    /// Name of the cluster.
    pub cluster_id: String,
    /// An address of the node.
    pub instance_ip: String,
    /// How waypoints are treated.
    pub waypoints: WaypointHandling,
    /// Gives memory back to the system, called after work that needed far more than it left.
    pub release_memory: fn(),
}

/// The configuration that has come in. Cheap to clone.
#[derive(Clone)]
pub struct XdsState {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Receiver<Arc<Snapshot>>,
    /// Whether there is a configuration: every required type has had its first response, or what the proxy
    /// before was told is in force.
    pub ready: watch::Receiver<bool>,
    status: Arc<ControlPlaneStatus>,
    store: Arc<Mutex<Store>>,
}

/// Starts to follow the control plane, on the current runtime and for as long as that runs. Its responses are
/// left for the next proxy; send `inherited` what the proxy before has left, if there was one.
pub fn start_client(
    config: XdsConfig,
    certificates: Certificates,
    inheritance: BequestSender,
    inherited: oneshot::Receiver<InheritedConfiguration>,
) -> XdsState {
    let store = Arc::new(Mutex::new(Store::default().with_waypoint_handling(config.waypoints)));
    let status = Arc::new(ControlPlaneStatus::new(config.address.clone()));
    let publisher =
        ResponseApplier::new(Arc::clone(&store), XdsJournal::new(inheritance), config.release_memory);
    let snapshot = Arc::clone(&publisher.snapshot);
    let (updates, ready) = (publisher.updates.subscribe(), publisher.ready.subscribe());
    let unreachable = Arc::new(Notify::new());
    let fallback = InheritedFallbackApplier {
        snapshot: Arc::clone(&snapshot),
        updates: publisher.updates.clone(),
        ready: publisher.ready.clone(),
        unreachable: Arc::clone(&unreachable),
        waypoints: config.waypoints,
    };
    tokio::spawn(fallback.apply_if_unreachable(inherited));
    let client = XdsClient {
        control_plane: ControlPlaneConnector {
            address: config.address.clone(),
            name: config.control_name.clone(),
            root_cert: config.root_cert.clone(),
            token_file: config.token_file.clone(),
            cluster_id: config.cluster_id.clone(),
        },
        config,
        certificates,
        status: Arc::clone(&status),
        publisher,
        unreachable,
    };
    tokio::spawn(client.run());
    XdsState { snapshot, updates, ready, status, store }
}

impl XdsState {
    /// Returns the state of the link to the control plane.
    pub fn link_status(&self) -> ControlStreamStatus {
        self.status.to_control_stream_status()
    }

    /// Returns everything that was accepted: length-delimited responses, each with a part of one type.
    pub fn dump_resources(&self) -> Vec<u8> {
        /// Resources per response.
        const PART: usize = 500;
        // Encoding takes time, during which the control plane's responses must not have to wait.
        let contents = self.store.lock().unwrap_or_else(PoisonError::into_inner).contents();
        contents.discovery_responses(PART).flat_map(|part| part.encode_length_delimited_to_vec()).collect()
    }
}
