//! The metrics of all workers and of the agent, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use mesh_api::admin::ConnectionStatus;
use mesh_listen::Listeners;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::access_log::AccessLog;
use super::encode_request_metrics::{encode_over_request_limits, encode_request_metrics};
use super::traffic_labels::TrafficLabels;
use super::worker_metrics::{DURATION_BOUNDS, DurationHistogram, TrafficCounters, WorkerMetrics};

type LabelText = Vec<(&'static str, String)>;

/// Everything that the agent counts.
pub struct AgentMetrics {
    registry: Registry,
    workers: Arc<Workers>,
    /// Pods that are enrolled.
    pub enrolled_pods: Gauge<i64, AtomicI64>,
    /// Pods that should be enrolled and could not be.
    pub pods_not_enrolled: Gauge<i64, AtomicI64>,
    /// 1 if the control plane is connected, else 0.
    pub control_connected: Gauge<i64, AtomicI64>,
    /// Generation of the configuration in force.
    pub generation: Gauge<i64, AtomicI64>,
    /// 1 if the kernel does not know all addresses of the mesh, else 0.
    pub destinations_incomplete: Gauge<i64, AtomicI64>,
    /// Seconds until the first of the certificates in use expires; -1 if there is none.
    pub first_expiry: Gauge<i64, AtomicI64>,
    /// Faults that the eBPF programs reported, by kind.
    pub ebpf_faults: Family<[(&'static str, String); 1], Counter>,
    /// Outcomes of connections at the node's own listeners.
    pub listeners: Listeners,
}

/// The workers' metrics, summed at each scrape.
struct Workers {
    all: Vec<Arc<WorkerMetrics>>,
    log: AccessLog,
}

impl AgentMetrics {
    /// Registers the metrics, over those of the workers.
    pub fn new(all: Vec<Arc<WorkerMetrics>>, log: AccessLog) -> Self {
        let workers = Arc::new(Workers { all, log });
        let mut metrics = Self {
            registry: Registry::default(),
            workers: Arc::clone(&workers),
            enrolled_pods: Gauge::default(),
            pods_not_enrolled: Gauge::default(),
            control_connected: Gauge::default(),
            generation: Gauge::default(),
            destinations_incomplete: Gauge::default(),
            first_expiry: Gauge::default(),
            ebpf_faults: Family::default(),
            listeners: Listeners::new("nodemesh_listener_"),
        };
        metrics.register(workers);
        metrics
    }

    fn register(&mut self, workers: Arc<Workers>) {
        let registry = &mut self.registry;
        registry.register("nodemesh_enrolled_pods", "Pods enrolled now", self.enrolled_pods.clone());
        let failed = self.pods_not_enrolled.clone();
        registry.register("nodemesh_pods_not_enrolled", "Pods whose enrolment fails", failed);
        registry.register(
            "nodemesh_control_connected",
            "Whether the control plane is connected",
            self.control_connected.clone(),
        );
        registry.register(
            "nodemesh_snapshot_generation",
            "Generation of the configuration in force",
            self.generation.clone(),
        );
        registry.register(
            "nodemesh_destinations_incomplete",
            "Whether the kernel knows less than all addresses of the mesh; connections to the rest pass it by",
            self.destinations_incomplete.clone(),
        );
        registry.register(
            "nodemesh_certificate_expiry_seconds",
            "Seconds until the first of the certificates in use expires; -1 if there is none",
            self.first_expiry.clone(),
        );
        registry.register(
            "nodemesh_ebpf_faults",
            "Faults that the eBPF programs reported",
            self.ebpf_faults.clone(),
        );
        registry.register_collector(Box::new(self.listeners.clone()));
        registry.register_collector(Box::new(workers));
    }

    /// Returns the text that Prometheus scrapes. Errors: a value can't be written.
    pub fn render_prometheus(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Returns the number of open connections.
    pub fn open_connection_count(&self) -> usize {
        self.workers.all.iter().map(|worker| worker.open.len()).sum()
    }

    /// Returns the open connections.
    pub fn list_open_connections(&self) -> Vec<ConnectionStatus> {
        self.workers.all.iter().flat_map(|worker| worker.open.list_statuses()).collect()
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "metrics of {} workers", self.all.len())
    }
}

#[derive(Default)]
struct Sum {
    opened: u64,
    closed: u64,
    failed: u64,
    received: u64,
    sent: u64,
}

impl Workers {
    /// Sums the workers' counts by label text. Different keys may have the same text (two pods of one
    /// Deployment), and Prometheus refuses a text twice.
    fn sums(&self) -> BTreeMap<LabelText, Sum> {
        let mut sums: BTreeMap<LabelText, Sum> = BTreeMap::new();
        let mut add = |labels: &TrafficLabels, traffic: &TrafficCounters| {
            let sum = sums.entry(labels.label_pairs()).or_default();
            sum.opened += traffic.opened.load(Ordering::Relaxed);
            sum.closed += traffic.closed.load(Ordering::Relaxed);
            sum.failed += traffic.failed.load(Ordering::Relaxed);
            sum.received += traffic.received.load(Ordering::Relaxed);
            sum.sent += traffic.sent.load(Ordering::Relaxed);
        };
        for worker in &self.all {
            worker.all_traffic_counters().iter().for_each(|(labels, traffic)| add(labels, traffic));
        }
        sums
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        of: impl Fn(&WorkerMetrics) -> &DurationHistogram,
    ) -> fmt::Result {
        let mut buckets: Vec<(f64, u64)> =
            DURATION_BOUNDS.iter().copied().chain([f64::MAX]).map(|bound| (bound, 0)).collect();
        let mut microseconds = 0;
        for worker in &self.all {
            let durations = of(worker);
            for (bucket, count) in buckets.iter_mut().zip(&durations.buckets) {
                bucket.1 += count.load(Ordering::Relaxed);
            }
            microseconds += durations.microseconds.load(Ordering::Relaxed);
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        // Exact below 285 years of summed durations.
        #[allow(clippy::cast_precision_loss)]
        let seconds = microseconds as f64 / 1e6;
        encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}

/// Name, help text and value of one traffic counter.
type TrafficFamily = (&'static str, &'static str, fn(&Sum) -> u64);

const TRAFFIC: [TrafficFamily; 5] = [
    ("istio_tcp_connections_opened", "Connections opened", |sum| sum.opened),
    ("istio_tcp_connections_closed", "Connections closed", |sum| sum.closed),
    ("istio_tcp_connections_failed", "Connections refused or not made", |sum| sum.failed),
    ("istio_tcp_received_bytes", "Bytes from clients", |sum| sum.received),
    ("istio_tcp_sent_bytes", "Bytes to clients", |sum| sum.sent),
];

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let sums = self.sums();
        for (name, help, choose) in TRAFFIC {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, sum) in &sums {
                family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&choose(sum), None)?;
            }
        }
        encode_request_metrics(&mut encoder, &self.all)?;
        encode_over_request_limits(&mut encoder, &self.all)?;
        self.histogram(
            &mut encoder,
            "nodemesh_connect_duration_seconds",
            "Time to reach an endpoint",
            |worker| &worker.connects,
        )?;
        self.histogram(
            &mut encoder,
            "nodemesh_tls_handshake_duration_seconds",
            "Time of a mutual TLS handshake",
            |worker| &worker.handshakes,
        )?;
        let total = |of: fn(&WorkerMetrics) -> &AtomicU64| -> u64 {
            self.all.iter().map(|worker| of(worker).load(Ordering::Relaxed)).sum()
        };
        let accept_errors = total(|worker| &worker.accept_errors);
        let revoked = total(|worker| &worker.revoked);
        let over_limit = total(|worker| &worker.over_limit);
        let (idle, aged) = (total(|worker| &worker.idle), total(|worker| &worker.aged));
        let handshake_over_limit = total(|worker| &worker.handshake_over_limit);
        let window_capped = total(|worker| &worker.window_capped);
        let (copies, copies_failed) = (total(|worker| &worker.copies), total(|worker| &worker.copies_failed));
        for (name, help, value) in [
            ("nodemesh_accept_errors", "Accepts that failed for lack of something", accept_errors),
            ("nodemesh_connections_revoked", "Connections closed because a policy changed", revoked),
            ("nodemesh_connections_over_limit", "Connections refused because of a pod's limit", over_limit),
            ("nodemesh_connections_over_idle_timeout", "Connections ended by an idleTimeout", idle),
            ("nodemesh_connections_over_duration", "Connections ended by a maxConnectionDuration", aged),
            (
                "nodemesh_handshakes_over_limit",
                "Connections refused because too many had not proved yet who they are",
                handshake_over_limit,
            ),
            ("nodemesh_windows_over_limit", "Windows of streams kept small by a pod's limit", window_capped),
            ("nodemesh_requests_mirrored", "Copies of requests that a mirror answered", copies),
            (
                "nodemesh_requests_not_mirrored",
                "Copies of requests that no mirror answered, or that were not sent",
                copies_failed,
            ),
            (
                "nodemesh_access_log_lost",
                "Access log lines that were not written fast enough",
                self.log.lost_line_count(),
            ),
            ("nodemesh_log_lines_lost", "Log lines that were not written fast enough", mesh_log::lost()),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        let open: usize = self.all.iter().map(|worker| worker.open.len()).sum();
        encoder
            .encode_descriptor("nodemesh_open_connections", "Connections open now", None, MetricType::Gauge)?
            .encode_gauge(&i64::try_from(open).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection_details::ConnectionDetails;
    use super::super::connection_record::{ConnectionOutcome, ConnectionRecord, LifetimeExpiry};
    use super::super::response_flag::ResponseFlag;
    use super::super::traffic_labels::Reporter;
    use super::*;

    fn details() -> ConnectionDetails {
        let [client, server] = ["10.0.0.1:1", "10.0.0.2:80"].map(|address| address.parse().unwrap());
        ConnectionDetails::new(Reporter::Source, client, server)
    }

    #[test]
    fn workers_are_summed_under_istios_names() {
        let workers: Vec<_> = (0..2).map(|_| WorkerMetrics::new(AccessLog::disabled())).collect();
        let metrics = AgentMetrics::new(workers.clone(), AccessLog::disabled());
        for worker in &workers {
            let mut record = ConnectionRecord::new(worker, details());
            record.record_opened().received.fetch_add(5, Ordering::Relaxed);
            record.record_outcome(&ConnectionOutcome::Closed, (5, 0));
            ConnectionRecord::new(worker, details())
                .record_outcome(&ConnectionOutcome::Failed(ResponseFlag::Denied, "no".to_owned()), (0, 0));
            worker.observe_handshake_time(std::time::Duration::from_millis(2));
            let idle = LifetimeExpiry::Idle(std::time::Duration::from_millis(1500));
            ConnectionRecord::new(worker, details())
                .record_outcome(&ConnectionOutcome::Expired(idle), (1, 1));
        }
        let text = metrics.render_prometheus().unwrap();
        let value = |start: &str, with: &str| -> String {
            let line = text.lines().find(|line| line.starts_with(start) && line.contains(with));
            line.unwrap_or_else(|| panic!("no {start} in {text}")).rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("istio_tcp_received_bytes_total", "response_flags=\"-\""), "10");
        assert_eq!(value("istio_tcp_connections_opened_total", "reporter=\"source\""), "2");
        assert_eq!(value("istio_tcp_connections_failed_total", "response_flags=\"DENY\""), "2");
        assert_eq!(value("nodemesh_connections_over_idle_timeout_total", ""), "2");
        assert_eq!(value("nodemesh_connections_over_duration_total", ""), "0");
        assert_eq!(value("nodemesh_tls_handshake_duration_seconds_count", ""), "2");
        assert_eq!(value("nodemesh_tls_handshake_duration_seconds_bucket", "le=\"0.001\""), "0");
    }

    #[test]
    fn a_connection_is_open_until_its_one_outcome() {
        let worker = WorkerMetrics::new(AccessLog::disabled());
        let metrics = AgentMetrics::new(vec![Arc::clone(&worker)], AccessLog::disabled());
        let mut record = ConnectionRecord::new(&worker, details());
        record.record_opened();
        assert_eq!(metrics.open_connection_count(), 1);
        drop(record);
        assert_eq!(metrics.open_connection_count(), 0);
        let text = metrics.render_prometheus().unwrap();
        assert!(text.contains("istio_tcp_connections_closed_total{") && text.contains("} 1\n"), "{text}");
    }
}
