//! The delta xDS client: the configuration that the control plane tells (docs/wire.md, Discovery).
//!
//! [`start`] keeps one stream open, takes each response into a [`Store`] and publishes the result as an
//! immutable [`Snapshot`]. A lost link changes only [`Xds::link_status`]: the last snapshot stays in force.

mod client;
mod inherited;
mod link;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_api::admin::ControlLink;
use mesh_api::plan::{Snapshot, Store, Waypoints};
use prost::Message;
use tokio::sync::{Notify, oneshot, watch};

use self::client::Client;
use self::inherited::Heir;
pub use self::inherited::InheritedConfiguration;
use self::link::Link;
use self::stream::Publisher;
use crate::certs::{Certificates, ControlPlane};
use crate::inheritance::Inheritance;
use crate::inheritance::journal::Journal;

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
    pub waypoints: Waypoints,
    /// Gives memory back to the system, called after work that needed far more than it left.
    pub give_back: fn(),
}

/// The configuration that has come in. Cheap to clone.
#[derive(Clone)]
pub struct Xds {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Receiver<Arc<Snapshot>>,
    /// Whether there has been a first response of every required type.
    pub ready: watch::Receiver<bool>,
    link: Arc<Link>,
    store: Arc<Mutex<Store>>,
}

/// Starts to follow the control plane, on the current runtime and for as long as that runs. Its responses are
/// left for the next proxy; send `inherited` what the proxy before has left, if there was one.
pub fn start(
    config: XdsConfig,
    certificates: Certificates,
    inheritance: Inheritance,
    inherited: oneshot::Receiver<InheritedConfiguration>,
) -> Xds {
    let store = Arc::new(Mutex::new(Store::default().with_waypoints(config.waypoints)));
    let link = Arc::new(Link::new(config.address.clone()));
    let publisher = Publisher::new(Arc::clone(&store), Journal::new(inheritance), config.give_back);
    let snapshot = Arc::clone(&publisher.snapshot);
    let (updates, ready) = (publisher.updates.subscribe(), publisher.ready.subscribe());
    let unreachable = Arc::new(Notify::new());
    let heir = Heir {
        snapshot: Arc::clone(&snapshot),
        updates: publisher.updates.clone(),
        ready: publisher.ready.clone(),
        unreachable: Arc::clone(&unreachable),
        waypoints: config.waypoints,
    };
    tokio::spawn(heir.use_if_needed(inherited));
    let client = Client {
        control_plane: ControlPlane {
            address: config.address.clone(),
            name: config.control_name.clone(),
            root_cert: config.root_cert.clone(),
            token_file: config.token_file.clone(),
            cluster_id: config.cluster_id.clone(),
        },
        config,
        certificates,
        link: Arc::clone(&link),
        publisher,
        unreachable,
    };
    tokio::spawn(client.run());
    Xds { snapshot, updates, ready, link, store }
}

impl Xds {
    /// Returns the state of the link to the control plane.
    pub fn link_status(&self) -> ControlLink {
        self.link.status()
    }

    /// Returns everything that was accepted: length-delimited responses, each with a part of one type.
    pub fn dump(&self) -> Vec<u8> {
        /// Resources per response.
        const PART: usize = 500;
        // Encoding takes time, during which the control plane's responses must not have to wait.
        let contents = self.store.lock().unwrap_or_else(PoisonError::into_inner).contents();
        contents.responses(PART).flat_map(|part| part.encode_length_delimited_to_vec()).collect()
    }
}
