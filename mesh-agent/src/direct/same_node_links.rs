//! How this node's pods are connected, as plans need it; read from the kernel now and then.

use std::collections::HashMap;

use mesh_common::veth::{self, DirectPathMode, PodVeth, SameNodePath};

/// The pods' links, by the cookies of their network namespaces.
#[derive(Debug)]
pub(super) struct PodLinks {
    /// Which connections should be direct; none if there should be no direct ones.
    wanted: Option<DirectPathMode>,
    known: HashMap<u64, PodVeth>,
}

impl PodLinks {
    /// Creates an empty one.
    pub fn new(wanted: Option<DirectPathMode>) -> Self {
        Self { wanted, known: HashMap::new() }
    }

    /// Reads these pods' links again. Returns whether any has changed.
    pub fn refresh(
        &mut self,
        pods: impl Iterator<Item = u64>,
        link: impl Fn(u64) -> Option<PodVeth>,
    ) -> bool {
        let now: HashMap<_, _> = pods.filter_map(|pod| Some((pod, link(pod)?))).collect();
        let changed = now != self.known;
        self.known = now;
        changed
    }

    /// Whether connections between two pods may be direct.
    pub fn may_be_direct(&self, client: u64, server: u64) -> bool {
        let link = |pod: u64| self.known.get(&pod).copied();
        self.wanted.is_some_and(|wanted| {
            veth::same_node_path(wanted, link(client), link(server)) != SameNodePath::Proxy
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::veth::PodLinkKind;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_direct() {
        let links_of = |pod: u64| {
            let link = [
                PodLinkKind::Guarded,
                PodLinkKind::Guarded,
                PodLinkKind::Routed,
                PodLinkKind::Routed,
                PodLinkKind::Shared,
            ];
            let index = usize::try_from(pod).unwrap();
            link.get(index).map(|link| PodVeth { ifindex: 7, link: *link as u16, obstacle: 0 })
        };
        let mut links = PodLinks::new(Some(DirectPathMode::Auto));
        assert!(!links.may_be_direct(0, 1));
        assert!(links.refresh(0..5, links_of));
        assert!(!links.refresh(0..5, links_of), "nothing has changed");
        let direct = |links: &PodLinks| {
            [(0, 1), (2, 3), (0, 2), (0, 4), (0, 9)].map(|(a, b)| links.may_be_direct(a, b))
        };
        assert_eq!(direct(&links), [true, true, false, false, false]);
        links.wanted = Some(DirectPathMode::Direct);
        assert_eq!(direct(&links), [true; 5]);
        links.wanted = None;
        assert_eq!(direct(&links), [false; 5]);
    }
}
