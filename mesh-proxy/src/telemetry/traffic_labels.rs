//! The label set of the traffic metrics (docs/wire.md, Metrics).

use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Service, Workload};

use super::response_flag::ResponseFlag;

/// Istio's label value for what is not known.
const UNKNOWN: &str = "unknown";

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

impl Reporter {
    /// Returns the direction that the connection has at its pod: `outbound` or `inbound`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// Path that the bytes of a connection take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarriedBy {
    /// Through the proxy.
    Proxy,
    /// From socket to socket, inside the kernel.
    Direct,
    /// Past the mesh.
    Untouched,
    /// A probe of the node, which no policy is asked about.
    Probe,
}

/// The label set of a connection. Cheap to make; its text is made when the metrics are read.
#[derive(Clone, Debug)]
pub struct TrafficLabels {
    /// Which end reports.
    pub reporter: Reporter,
    /// The client, if the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The server, if the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// The service that the client addressed, if it did.
    pub service: Option<Arc<Service>>,
    /// Identity that the client proved.
    pub source_identity: Option<SpiffeId>,
    /// Identity that the server proved.
    pub destination_identity: Option<SpiffeId>,
    /// Why it failed, if it did.
    pub response_flag: Option<ResponseFlag>,
    /// Path that its bytes take.
    pub path: CarriedBy,
}

impl TrafficLabels {
    /// Returns names and values, in Istio's order.
    pub(super) fn label_pairs(&self) -> Vec<(&'static str, String)> {
        let (source, destination) = (self.source.as_deref(), self.destination.as_deref());
        let service = self.service.as_deref();
        let mutual = self.source_identity.is_some() && self.destination_identity.is_some();
        let identity = |id: &Option<SpiffeId>| id.as_ref().map(|id| id.as_str().to_owned());
        let pairs = [
            ("reporter", Some(self.reporter.as_str().to_owned())),
            ("source_workload", source.map(|it| it.workload_name.to_string())),
            ("source_canonical_service", source.map(|it| it.canonical_name.to_string())),
            ("source_canonical_revision", source.map(|it| it.canonical_revision.to_string())),
            ("source_workload_namespace", source.map(|it| it.namespace.to_string())),
            ("source_principal", identity(&self.source_identity)),
            ("source_app", source.map(|it| it.canonical_name.to_string())),
            ("source_version", source.map(|it| it.canonical_revision.to_string())),
            ("source_cluster", source.map(|it| it.cluster.to_string())),
            ("destination_service", service.map(|it| it.hostname.to_string())),
            ("destination_service_namespace", service.map(|it| it.namespace.to_string())),
            ("destination_service_name", service.map(|it| it.name.to_string())),
            ("destination_workload", destination.map(|it| it.workload_name.to_string())),
            ("destination_canonical_service", destination.map(|it| it.canonical_name.to_string())),
            ("destination_canonical_revision", destination.map(|it| it.canonical_revision.to_string())),
            ("destination_workload_namespace", destination.map(|it| it.namespace.to_string())),
            ("destination_principal", identity(&self.destination_identity)),
            ("destination_app", destination.map(|it| it.canonical_name.to_string())),
            ("destination_version", destination.map(|it| it.canonical_revision.to_string())),
            ("destination_cluster", destination.map(|it| it.cluster.to_string())),
            ("request_protocol", Some("tcp".to_owned())),
            ("response_flags", Some(self.response_flag.map_or("-", ResponseFlag::as_str).to_owned())),
            ("connection_security_policy", mutual.then(|| "mutual_tls".to_owned())),
            ("path", Some(self.path.as_str().to_owned())),
        ];
        let known =
            |value: Option<String>| value.filter(|it| !it.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned());
        pairs.into_iter().map(|(name, value)| (name, known(value))).collect()
    }

    /// Returns a key that is equal where connections are counted together. Workloads are compared by uid: a
    /// new version of one goes on counting.
    pub(super) fn counter_key(&self) -> LabelKey {
        LabelKey {
            reporter: self.reporter,
            source: self.source.as_ref().map(|it| Arc::clone(&it.uid)),
            destination: self.destination.as_ref().map(|it| Arc::clone(&it.uid)),
            service: self.service.as_ref().map(|it| Arc::clone(&it.key)),
            source_identity: self.source_identity.clone(),
            destination_identity: self.destination_identity.clone(),
            response_flag: self.response_flag,
            path: self.path,
        }
    }
}

/// See [`TrafficLabels::counter_key`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LabelKey {
    reporter: Reporter,
    source: Option<Arc<str>>,
    destination: Option<Arc<str>>,
    service: Option<Arc<str>>,
    source_identity: Option<SpiffeId>,
    destination_identity: Option<SpiffeId>,
    response_flag: Option<ResponseFlag>,
    path: CarriedBy,
}

impl CarriedBy {
    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Direct => "direct",
            Self::Untouched => "untouched",
            Self::Probe => "probe",
        }
    }
}

impl Reporter {
    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}
