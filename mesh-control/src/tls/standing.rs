//! Who holds a connection, and for how long one may who has not said so.
//!
//! A stranger has one of few places and a short time to prove which node's agent it is, with a token that a
//! call brings. From then on its connection counts as that node's, and has no end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_listen::{Bounds, Gate, Place};
use thiserror::Error;
use tonic::Status;

/// Connections of whoever has not proved anything, handshakes included: in all, and of one address or IPv6
/// network. Each holds some 60 kB, and a quarter of a megabyte at most.
const STRANGERS: Bounds = Bounds { total: 512, each: 128 };

/// Connections of a node: one for discovery, one for certificates, and those of predecessors that nobody has
/// missed yet.
const EACH_NODE: usize = 64;

/// Connections of all nodes.
const NODES: usize = 16 * 1024;

/// The places of all connections.
#[derive(Clone)]
pub(super) struct Places {
    pub strangers: Gate,
    nodes: Arc<Mutex<Nodes>>,
}

#[derive(Default)]
struct Nodes {
    all: usize,
    each: HashMap<Arc<str>, usize>,
}

impl Default for Places {
    fn default() -> Self {
        Self { strangers: Gate::new(STRANGERS), nodes: Arc::default() }
    }
}

/// What is known of a connection.
pub(super) struct Standing {
    proven: Arc<AtomicBool>,
    /// Among the strangers.
    place: Place,
    nodes: Arc<Mutex<Nodes>>,
    node: Mutex<Option<Arc<str>>>,
}

impl Standing {
    pub fn new(place: Place, places: &Places) -> Self {
        let nodes = Arc::clone(&places.nodes);
        Self { proven: Arc::default(), place, nodes, node: Mutex::default() }
    }

    /// Turns true when the connection is a node's.
    pub fn proven(&self) -> &Arc<AtomicBool> {
        &self.proven
    }

    /// Whether it is.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Returns when a newcomer needs the place of this stranger.
    pub async fn evicted(&self) {
        self.place.evicted().await;
    }

    /// The connection is a node's, from now on.
    pub fn prove(&self, node: &Arc<str>) -> Result<(), Crowded> {
        let mut of = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        if of.is_some() {
            // Whatever tokens come later, it is counted.
            return Ok(());
        }
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).enter(node)?;
        *of = Some(Arc::clone(node));
        self.proven.store(true, Ordering::Relaxed);
        self.place.leave();
        Ok(())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let node = self.node.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = node {
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).leave(node);
        }
    }
}

impl Nodes {
    fn enter(&mut self, node: &Arc<str>) -> Result<(), Crowded> {
        let of_node = self.each.get(node).copied().unwrap_or_default();
        if of_node >= EACH_NODE {
            return Err(Crowded::Node(Arc::clone(node)));
        }
        if self.all >= NODES {
            return Err(Crowded::All);
        }
        self.all += 1;
        self.each.insert(Arc::clone(node), of_node + 1);
        Ok(())
    }

    fn leave(&mut self, node: &Arc<str>) {
        self.all -= 1;
        if let Some(of_node) = self.each.get_mut(node) {
            *of_node -= 1;
            if *of_node == 0 {
                self.each.remove(node);
            }
        }
    }
}

/// There is no place for the connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Crowded {
    /// The node has as many as it may.
    #[error("node {0} has {EACH_NODE} connections already")]
    Node(Arc<str>),
    /// All nodes together have.
    #[error("nodes have {NODES} connections already")]
    All,
}

impl From<Crowded> for Status {
    fn from(crowded: Crowded) -> Self {
        Self::resource_exhausted(crowded.to_string())
    }
}

#[cfg(test)]
mod tests {
    use mesh_listen::Group;

    use super::*;

    fn stranger(places: &Places, last: u8) -> Standing {
        let group = Group::of([10, 0, 0, last].into());
        Standing::new(places.strangers.enter(group).expect("a place"), places)
    }

    #[tokio::test]
    async fn strangers_make_room_for_newcomers_and_nodes_do_not() {
        let places = Places::default();
        let agent = stranger(&places, 1);
        agent.prove(&Arc::from("node1")).unwrap();
        let first = stranger(&places, 1);
        let crowd: Vec<_> = (0..=255).cycle().take(2000).map(|last| stranger(&places, last)).collect();
        first.evicted().await;
        let still = tokio::time::timeout(std::time::Duration::from_millis(20), agent.evicted()).await;
        assert!(still.is_err() && places.strangers.held() <= STRANGERS.total);
        drop((crowd, first));
        assert_eq!(places.strangers.held(), 0, "a node's is none of the strangers'");
    }

    #[test]
    fn a_node_has_so_many_and_others_have_theirs() {
        let places = Places::default();
        let (one, other) = (Arc::from("one"), Arc::from("other"));
        let held: Vec<_> = (0..EACH_NODE).map(|_| stranger(&places, 1)).collect();
        held.iter().for_each(|standing| standing.prove(&one).unwrap());
        let more = stranger(&places, 1);
        assert_eq!(more.prove(&one), Err(Crowded::Node(Arc::clone(&one))));
        assert_eq!(held[0].prove(&one), Ok(()), "it is counted already");
        assert_eq!(more.prove(&other), Ok(()));
        drop(held);
        drop(more);
        let nodes = places.nodes.lock().unwrap();
        assert!(nodes.all == 0 && nodes.each.is_empty());
    }
}
