//! Direct connections: between two pods of this node, without the proxy.
//!
//! For a connection that the proxy carried and that could have been direct the worker
//! [asks](DirectHandle::request_route) for a direct route. A `route_plan` decides that by the full policy of
//! both ends; the `planned_routes` keeps plans in line with configuration and pods, and remembers what the
//! kernel was told. `flow_tracker` has the connections that are then direct, known by the kernel's
//! [`events`](crate::sys::ebpf::DirectMaps). `task` runs all of it.

mod direct_task;
mod flow_tracker;
mod planned_routes;
mod route_plan;
mod same_node_links;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

pub use direct_task::{DirectTask, DirectTaskSetup};
use mesh_common::fault::{Fault, FaultEvent};
use mesh_proxy::local_pod_identity::LocalPod;
use tokio::sync::mpsc;

/// Most asks that wait. Further ones are dropped: the next connection asks again.
const MOST_ASKS: usize = 1024;

/// Most refusals that wait to be recorded. Further ones are only counted (`nodemesh_ebpf_faults_total`).
const MOST_REFUSALS: usize = 1024;

/// Tells the task of pods, and asks it for direct routes.
#[derive(Clone)]
pub struct DirectHandle {
    pods: mpsc::UnboundedSender<PodEvent>,
    asks: mpsc::Sender<Ask>,
    refusals: mpsc::Sender<Refusal>,
}

/// News for the task.
enum PodEvent {
    /// A pod is enrolled.
    Enrolled(Arc<LocalPod>),
    /// A pod, by its uid, is no longer enrolled.
    Unenrolled(Arc<str>),
    /// Another proxy has taken over.
    Relieved,
}

/// A pod that connected to a destination.
struct Ask {
    client: u64,
    destination: SocketAddr,
}

/// A pod's connection that the kernel refused, since its destination has no endpoint.
struct Refusal {
    client: u64,
    destination: SocketAddr,
    why: Fault,
}

/// The task's end of [`DirectHandle`].
pub struct DirectReceiver {
    pods: mpsc::UnboundedReceiver<PodEvent>,
    asks: mpsc::Receiver<Ask>,
    refusals: mpsc::Receiver<Refusal>,
}

/// Creates both ends.
pub fn channel() -> (DirectHandle, DirectReceiver) {
    let (pods, pod_events) = mpsc::unbounded_channel();
    let (asks, asked) = mpsc::channel(MOST_ASKS);
    let (refusals, refused) = mpsc::channel(MOST_REFUSALS);
    let receiver = DirectReceiver { pods: pod_events, asks: asked, refusals: refused };
    (DirectHandle { pods, asks, refusals }, receiver)
}

impl DirectHandle {
    /// Tells of a pod that is enrolled.
    pub fn notify_enrolled(&self, pod: &Arc<LocalPod>) {
        // Nobody listens where everything goes through the proxy.
        let _unheard = self.pods.send(PodEvent::Enrolled(Arc::clone(pod)));
    }

    /// Tells of a pod that is no longer enrolled.
    pub fn notify_unenrolled(&self, uid: &Arc<str>) {
        let _unheard = self.pods.send(PodEvent::Unenrolled(Arc::clone(uid)));
    }

    /// Tells that another proxy has taken over: routes and records are that one's from here on.
    pub fn notify_successor_took_over(&self) {
        let _unheard = self.pods.send(PodEvent::Relieved);
    }

    /// Asks for a direct route from a pod to a destination that has an endpoint on this node.
    pub fn request_route(&self, client: &LocalPod, destination: SocketAddr) {
        let _unheard = self.asks.try_send(Ask { client: client.netns, destination });
    }

    /// Tells of a pod's connection that the kernel refused, since its destination has no endpoint.
    pub fn report_refused(&self, why: Fault, event: FaultEvent) {
        let destination = event.destination.into();
        let _counted = self.refusals.try_send(Refusal { client: event.netns, destination, why });
    }
}
