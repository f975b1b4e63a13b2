//! How this node's pods are connected, as plans need it; read from the kernel now and then.

use std::collections::HashMap;

use mesh_common::veth::{self, Veth, Wanted, Way};

/// The pods' links, by the cookies of their network namespaces.
#[derive(Debug)]
pub(super) struct PodLinks {
    /// Which connections should be direct; none if there should be no direct ones.
    wanted: Option<Wanted>,
    known: HashMap<u64, Veth>,
}

impl PodLinks {
    /// Creates an empty one.
    pub fn new(wanted: Option<Wanted>) -> Self {
        Self { wanted, known: HashMap::new() }
    }

    /// Reads these pods' links again. Returns whether any has changed.
    pub fn look(&mut self, pods: impl Iterator<Item = u64>, link: impl Fn(u64) -> Option<Veth>) -> bool {
        let now: HashMap<_, _> = pods.filter_map(|pod| Some((pod, link(pod)?))).collect();
        let changed = now != self.known;
        self.known = now;
        changed
    }

    /// Whether connections between two pods may be direct.
    pub fn may_be_direct(&self, client: u64, server: u64) -> bool {
        let link = |pod: u64| self.known.get(&pod).copied();
        self.wanted.is_some_and(|wanted| veth::way(wanted, link(client), link(server)) != Way::Proxy)
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::veth::Link;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_direct() {
        let links_of = |pod: u64| {
            let link = [Link::Guarded, Link::Guarded, Link::Routed, Link::Routed, Link::Shared];
            let index = usize::try_from(pod).unwrap();
            link.get(index).map(|link| Veth { ifindex: 7, link: *link as u16, obstacle: 0 })
        };
        let mut links = PodLinks::new(Some(Wanted::Auto));
        assert!(!links.may_be_direct(0, 1));
        assert!(links.look(0..5, links_of));
        assert!(!links.look(0..5, links_of), "nothing has changed");
        let direct = |links: &PodLinks| {
            [(0, 1), (2, 3), (0, 2), (0, 4), (0, 9)].map(|(a, b)| links.may_be_direct(a, b))
        };
        assert_eq!(direct(&links), [true, true, false, false, false]);
        links.wanted = Some(Wanted::Direct);
        assert_eq!(direct(&links), [true; 5]);
        links.wanted = None;
        assert_eq!(direct(&links), [false; 5]);
    }
}
