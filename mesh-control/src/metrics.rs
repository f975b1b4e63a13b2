//! What the control plane counts, served in the `OpenMetrics` text format on port 15014.

use std::fmt;

use mesh_listen::Listeners;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Label of what is counted per resource type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// `Address` or `Authorization`.
    pub r#type: &'static str,
}

/// Label of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A word for the reason.
    pub reason: &'static str,
}

/// All metrics. Each is cheap to update from anywhere.
pub struct Metrics {
    registry: Registry,
    /// Agents with an open stream.
    pub agents: Gauge,
    /// Connections that are open.
    pub connections: Gauge,
    /// TLS handshakes that failed.
    pub handshake_failures: Counter,
    /// Connections ended that had not proved which node's they are.
    pub strangers_ended: Counter,
    /// Responses sent.
    pub responses: Family<TypeLabel, Counter>,
    /// Resources sent, removals included.
    pub resources: Family<TypeLabel, Counter>,
    /// Responses that an agent accepted.
    pub acks: Family<TypeLabel, Counter>,
    /// Responses of which an agent rejected some resource.
    pub nacks: Family<TypeLabel, Counter>,
    /// Seconds from a change being compiled to its being handed to an agent's connection.
    pub propagation: Histogram,
    /// Certificates signed.
    pub certificates_signed: Counter,
    refusals: Family<ReasonLabel, Counter>,
    /// Objects of the configuration.
    pub objects: Gauge,
    /// Documents that are left out.
    pub config_errors: Gauge,
    /// Configurations built.
    pub generation: Gauge,
    /// Seconds that reading and compiling took.
    pub load: Histogram,
    /// Whether this replica leads: 1 or 0.
    pub leader: Gauge,
    /// What became of connections at the HTTP endpoints.
    pub listeners: Listeners,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("mesh_control"),
            agents: Gauge::default(),
            connections: Gauge::default(),
            handshake_failures: Counter::default(),
            strangers_ended: Counter::default(),
            responses: Family::default(),
            resources: Family::default(),
            acks: Family::default(),
            nacks: Family::default(),
            propagation: Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
            certificates_signed: Counter::default(),
            refusals: Family::default(),
            objects: Gauge::default(),
            config_errors: Gauge::default(),
            generation: Gauge::default(),
            load: Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
            leader: Gauge::default(),
            listeners: Listeners::new("listener_"),
        };
        metrics.registry.register_collector(Box::new(metrics.listeners.clone()));
        metrics.register_connections();
        metrics.register_discovery();
        metrics.register_configuration();
        metrics.registry.register_collector(Box::new(LogLines));
        metrics
    }
}

/// What the log counts by itself.
#[derive(Debug)]
struct LogLines;

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Log lines that were not written fast enough";
        encoder
            .encode_descriptor("log_lines_lost", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, u64>(&mesh_log::lost(), None)
    }
}

impl Metrics {
    /// Counts a certificate that was not given.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// All of them as text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    fn register_connections(&mut self) {
        let r = &mut self.registry;
        r.register("agents", "Agents with an open discovery stream", self.agents.clone());
        r.register("connections", "Open connections of the xDS and CA port", self.connections.clone());
        let failures = self.handshake_failures.clone();
        r.register("tls_handshake_failures", "TLS handshakes that failed", failures);
        let help = "Connections ended that had not shown a node's token: in time, or when a newcomer needed their place";
        r.register("unproven_connections_ended", help, self.strangers_ended.clone());
        let signed = self.certificates_signed.clone();
        r.register("certificates_signed", "Certificates signed", signed);
        r.register("leader", "Whether this replica leads (on Kubernetes)", self.leader.clone());
        r.register("certificate_refusals", "Certificates asked for and refused", self.refusals.clone());
    }

    fn register_discovery(&mut self) {
        let r = &mut self.registry;
        r.register("xds_responses", "Responses sent to agents", self.responses.clone());
        r.register("xds_resources", "Resources sent to agents, removals included", self.resources.clone());
        r.register("xds_acks", "Responses that agents accepted", self.acks.clone());
        r.register("xds_nacks", "Responses of which agents rejected a resource", self.nacks.clone());
        let help = "Time from a compiled change to its delivery to an agent's connection";
        r.register_with_unit("xds_propagation", help, Unit::Seconds, self.propagation.clone());
    }

    fn register_configuration(&mut self) {
        let r = &mut self.registry;
        r.register("config_objects", "Objects of the configuration", self.objects.clone());
        r.register("config_errors", "Mistakes in documents that are left out", self.config_errors.clone());
        r.register("config_generation", "Configurations built since the start", self.generation.clone());
        let help = "Time to read and compile the configuration";
        r.register_with_unit("config_load", help, Unit::Seconds, self.load.clone());
    }
}
