//! The pods of this node: where they are read from, and what the agent needs to know of each.

pub mod kubernetes;
pub mod manifest_directory;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::identity::{InvalidSpiffeId, SpiffeId};
use mesh_api::resource::egress::StrictEgress;
use mesh_api::resource::enrolment::{Enrolment, is_enrolled};
use mesh_api::resource::{Metadata, Pod};

/// All pods of the node, by uid.
pub type NodePods = BTreeMap<Arc<str>, NodePod>;

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// Kubernetes' uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Identity of its processes.
    pub identity: SpiffeId,
    /// Addresses, canonical; none until they are told.
    pub addresses: Vec<IpAddr>,
    /// Ports of its probes.
    pub probe_ports: Vec<u16>,
    /// Whether the runtime makes it a user namespace of its own (`hostUsers: false`).
    pub own_userns: bool,
    /// Whether it should be in the mesh, and why not.
    pub enrolment: Enrolment,
    /// Strict egress: it may connect only to what the mesh knows, or to networks that its namespace names.
    pub egress: Option<StrictEgress>,
}

impl NodePod {
    /// Reads a pod object. Errors: its names can't be part of an identity.
    fn new(pod: &Pod, namespace: &Metadata, trust_domain: &str) -> Result<Self, InvalidSpiffeId> {
        let metadata = &pod.metadata;
        Ok(Self {
            uid: metadata.uid.as_str().into(),
            namespace: metadata.namespace.as_str().into(),
            name: metadata.name.as_str().into(),
            identity: SpiffeId::new(trust_domain, &metadata.namespace, pod.service_account())?,
            addresses: pod.addresses().iter().map(IpAddr::to_canonical).collect(),
            probe_ports: pod.probe_ports().into_iter().collect(),
            own_userns: pod.spec.host_users == Some(false),
            enrolment: is_enrolled(&namespace.labels, &metadata.labels, pod.spec.host_network),
            egress: StrictEgress::of(namespace, &metadata.labels),
        })
    }

    /// Whether the mesh should have it, as soon as it has a network.
    pub fn should_be_enrolled(&self) -> bool {
        self.enrolment.is_selected()
    }

    /// Whether `enrolled` is still as this pod should be. Addresses that are not told yet were found in its
    /// namespace; they, and those of a sandbox that was made again, stay as long as the pod is said to have
    /// what it was `told` to have when it was enrolled. Told addresses of a family that it has switched off
    /// are missing. Its egress is changed in place.
    pub fn matches_enrolled(&self, enrolled: &Self, told: &[IpAddr]) -> bool {
        let holds = |family: fn(&IpAddr) -> bool| {
            let of = |pod: &Self| {
                let mut addresses: Vec<_> = pod.addresses.iter().copied().filter(family).collect();
                addresses.sort_unstable();
                addresses
            };
            of(self) == of(enrolled)
        };
        let without_ipv6 = !enrolled.addresses.is_empty() && enrolled.addresses.iter().all(IpAddr::is_ipv4);
        let addresses_hold = self.addresses.is_empty()
            || self.addresses == told
            || holds(IpAddr::is_ipv4) && (without_ipv6 || holds(IpAddr::is_ipv6));
        addresses_hold
            && Self { addresses: enrolled.addresses.clone(), egress: enrolled.egress.clone(), ..self.clone() }
                == *enrolled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_has_not_told_yet_of_a_new_sandbox_does_not_count() {
        let [old, new, other] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|it| it.parse::<IpAddr>().unwrap());
        let pod = |addresses: &[IpAddr]| NodePod {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: "web".into(),
            identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            addresses: addresses.to_vec(),
            probe_ports: Vec::new(),
            enrolment: Enrolment::Selected,
            own_userns: false,
            egress: None,
        };
        let enrolled = pod(&[new]);
        for (told, now, served) in [
            (&[][..], &[][..], true),
            (&[], &[new], true),
            (&[], &[old], false),
            (&[old], &[old], true),
            (&[old], &[new], true),
            (&[old], &[other], false),
        ] {
            assert_eq!(pod(now).matches_enrolled(&enrolled, told), served, "{told:?} {now:?}");
        }
        let probed = NodePod { probe_ports: vec![80], ..pod(&[old]) };
        assert!(!probed.matches_enrolled(&enrolled, &[old]), "what else changed counts");
    }
}
