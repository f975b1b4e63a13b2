//! Nodes: where pods run, and how far apart that is.

use std::net::IpAddr;

use serde::Deserialize;

use super::{Metadata, Readable, lenient};
use crate::document::{cursor::Findings, yaml_tree};

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name and labels; the topology labels tell region and zone.
    pub metadata: Metadata,
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// Region, zone and sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: String,
    /// `topology.kubernetes.io/zone`.
    pub zone: String,
    /// `topology.istio.io/subzone`.
    pub subzone: String,
}

impl Readable for Node {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let status = lenient::field(root, "status", findings)?;
        Some(Self { metadata, status })
    }
}

impl Node {
    /// Addresses of type `InternalIP`.
    pub fn internal_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let internal = self.status.addresses.iter().filter(|address| address.kind == "InternalIP");
        internal.filter_map(|address| address.address.parse().ok())
    }

    /// Where the node stands, by its labels.
    pub fn locality(&self) -> Locality {
        let label = |key: &str| self.metadata.labels.get(key).cloned().unwrap_or_default();
        Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        }
    }
}
