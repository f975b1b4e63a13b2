//! Connections between two pods of this node that go without the proxy.
//!
//! A connection that the proxy carried and that could have gone directly makes the worker [ask](Direct::ask).
//! What comes of it is a `plan`, decided with the full policy of both ends; the `table` keeps the plans in
//! line with configuration and pods, and with what the kernel was told of them. `flows` are the connections
//! that then go directly, known by the kernel's [`events`](crate::sys::ebpf::DirectKernel). `task` runs all
//! of it.

mod flows;
mod plan;
mod pod_links;
mod table;
mod task;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::fault::{Event, Fault};
use mesh_proxy::pod::LocalPod;
pub use task::{Task, Work};
use tokio::sync::mpsc;

/// Asks that may wait. More are dropped: the next connection asks again.
const MOST_ASKS: usize = 1024;

/// Refusals that may wait to be recorded. More are only counted (`nodemesh_ebpf_faults_total`).
const MOST_REFUSALS: usize = 1024;

/// Tells of pods and asks for direct ways.
#[derive(Clone)]
pub struct Direct {
    pods: mpsc::UnboundedSender<PodEvent>,
    asks: mpsc::Sender<Ask>,
    refusals: mpsc::Sender<Refusal>,
}

/// What the enroller tells.
enum PodEvent {
    /// A pod is enrolled.
    Enrolled(Arc<LocalPod>),
    /// A pod, by its uid, is no longer enrolled.
    Dismissed(Arc<str>),
    /// Another proxy has taken over.
    Relieved,
}

/// A pod connected to a destination.
struct Ask {
    client: u64,
    destination: SocketAddr,
}

/// A pod's connection that the kernel refused, since nobody is there.
struct Refusal {
    client: u64,
    destination: SocketAddr,
    why: Fault,
}

/// The task's end of [`Direct`].
pub struct DirectReceiver {
    pods: mpsc::UnboundedReceiver<PodEvent>,
    asks: mpsc::Receiver<Ask>,
    refusals: mpsc::Receiver<Refusal>,
}

/// A way to tell the task, and its end of it.
pub fn channel() -> (Direct, DirectReceiver) {
    let (pods, pod_events) = mpsc::unbounded_channel();
    let (asks, asked) = mpsc::channel(MOST_ASKS);
    let (refusals, refused) = mpsc::channel(MOST_REFUSALS);
    let receiver = DirectReceiver { pods: pod_events, asks: asked, refusals: refused };
    (Direct { pods, asks, refusals }, receiver)
}

impl Direct {
    /// A pod is enrolled.
    pub fn enrolled(&self, pod: &Arc<LocalPod>) {
        // Nobody listens where everything goes through the proxy.
        let _unheard = self.pods.send(PodEvent::Enrolled(Arc::clone(pod)));
    }

    /// A pod is no longer enrolled.
    pub fn dismissed(&self, uid: &Arc<str>) {
        let _unheard = self.pods.send(PodEvent::Dismissed(Arc::clone(uid)));
    }

    /// Another proxy has taken over: routes and records are its own from here on.
    pub fn relieved(&self) {
        let _unheard = self.pods.send(PodEvent::Relieved);
    }

    /// A pod connected to a destination that has an endpoint on this node: could the next connection go
    /// directly?
    pub fn ask(&self, client: &LocalPod, destination: SocketAddr) {
        let _unheard = self.asks.try_send(Ask { client: client.netns, destination });
    }

    /// The kernel refused a connection of a pod, since nobody is at its destination.
    pub fn refused(&self, why: Fault, event: Event) {
        let destination = event.destination.into();
        let _counted = self.refusals.try_send(Refusal { client: event.netns, destination, why });
    }
}
