//! Strict egress in the kernel and the workers: pods that may go only to destinations that the mesh knows, or
//! to networks that their namespace names.
//!
//! The kernel refuses at `connect()`, whether an agent runs or not. The workers refuse connections that the
//! kernel let through since it knew a destination that the mesh has just forgotten.

mod egress_enforcer;
mod refusal_log;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_api::resource::egress::StrictEgress;

pub use egress_enforcer::{EgressEnforcer, StrictEgressError};
pub use refusal_log::RefusalLog;

/// The pods with strict egress, for look-ups. Cheap to clone.
#[derive(Clone, Default)]
pub struct StrictPods(Arc<ArcSwap<HashMap<u64, StrictPod>>>);

/// A pod whose egress is strict.
#[derive(Clone)]
pub struct StrictPod {
    /// `namespace/name`.
    pub pod: Arc<str>,
    /// Source of the rule, and its exceptions.
    pub egress: Arc<StrictEgress>,
}

impl StrictPods {
    /// Returns the pod with this network namespace, if its egress is strict.
    pub fn by_netns(&self, netns: u64) -> Option<StrictPod> {
        self.0.load().get(&netns).cloned()
    }

    /// Whether a pod may not connect to a destination that the mesh does not know.
    pub fn refuses(&self, netns: u64, destination: SocketAddr) -> bool {
        self.by_netns(netns).is_some_and(|strict_pod| !strict_pod.egress.allows(destination))
    }
}
