//! Endpoint slices: the addresses behind a service, and which of them are ready.

use std::net::IpAddr;

use serde::Deserialize;

use super::{Metadata, Readable, lenient, pod::Protocol};
use crate::document::{cursor::Findings, yaml_tree};

/// A part of a service's endpoints.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    /// Name and labels; a label names the service.
    pub metadata: Metadata,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Their ports, the same for all.
    pub ports: Vec<EndpointPort>,
}

/// One endpoint: an address, usually a pod's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses of the slice's family; all lead to the same place.
    pub addresses: Vec<String>,
    /// Readiness.
    pub conditions: EndpointConditions,
    /// Node that it is on.
    pub node_name: String,
    /// Zone that it is in.
    pub zone: String,
    /// The object that it stands for.
    pub target_ref: Option<TargetReference>,
}

/// `conditions` of an endpoint. Absent means unknown, to be read as true (`ready`, `serving`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Should get traffic.
    pub ready: Option<bool>,
    /// Could serve, were it not for termination.
    pub serving: Option<bool>,
    /// Is ending.
    pub terminating: Option<bool>,
}

/// `targetRef` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// Kind, nearly always `Pod`.
    pub kind: String,
    /// Namespace; empty means the slice's own.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// One port of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the service port that it belongs to.
    pub name: String,
    /// Number on the endpoints; absent means all ports.
    #[serde(deserialize_with = "lenient::optional_port")]
    pub port: Option<u16>,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Readable for EndpointSlice {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let endpoints = lenient::field(root, "endpoints", findings)?;
        let ports = lenient::field(root, "ports", findings)?;
        Some(Self { metadata, endpoints, ports })
    }
}

impl EndpointSlice {
    /// Name of the service that the slice belongs to.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get("kubernetes.io/service-name").map(String::as_str)
    }
}

impl Endpoint {
    /// The addresses that are IP addresses.
    pub fn ip_addresses(&self) -> Vec<IpAddr> {
        self.addresses
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(|ip| ip.to_canonical())
            .collect()
    }

    /// Whether it should get traffic.
    pub fn is_ready(&self) -> bool {
        self.conditions.ready.unwrap_or(true)
    }

    /// Whether it could serve, termination or not.
    pub fn is_serving(&self) -> bool {
        self.conditions.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Whether it serves for the last time: it gets traffic where nobody is ready.
    pub fn is_last_resort(&self) -> bool {
        !self.is_ready() && self.is_serving() && self.conditions.terminating == Some(true)
    }
}
