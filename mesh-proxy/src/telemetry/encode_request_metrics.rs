//! Metrics of HTTP requests, under Istio's names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::request_limit::RequestLimit;
use super::request_record::{RequestFlag, RequestOutcome};
use super::worker_metrics::{REQUEST_BOUNDS, RequestKey, WorkerMetrics};

/// The requests of one text of labels.
struct Sum {
    buckets: [u64; REQUEST_BOUNDS.len()],
    milliseconds: f64,
}

/// Writes what all workers have counted of requests.
pub(super) fn encode_request_metrics(
    encoder: &mut DescriptorEncoder<'_>,
    workers: &[Arc<WorkerMetrics>],
) -> fmt::Result {
    let mut sums: BTreeMap<Vec<(&'static str, String)>, Sum> = BTreeMap::new();
    for (key, counted) in workers.iter().flat_map(|worker| worker.all_requests()) {
        let labels = with_request_labels(counted.labels.label_pairs(), &key);
        let sum = sums.entry(labels).or_insert(Sum { buckets: [0; REQUEST_BOUNDS.len()], milliseconds: 0.0 });
        sum.buckets.iter_mut().zip(counted.buckets).for_each(|(sum, count)| *sum += count);
        sum.milliseconds += counted.milliseconds;
    }
    let mut total = encoder.encode_descriptor("istio_requests", "Requests", None, MetricType::Counter)?;
    for (labels, sum) in &sums {
        let count: u64 = sum.buckets.iter().sum();
        total.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    let (name, help) = ("istio_request_duration_milliseconds", "Time from a request's head to its outcome");
    let mut durations = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, sum) in &sums {
        let buckets: Vec<(f64, u64)> = REQUEST_BOUNDS.into_iter().zip(sum.buckets).collect();
        let count = sum.buckets.iter().sum();
        let mut family = durations.encode_family(labels)?;
        family.encode_histogram::<NoLabelSet>(sum.milliseconds, count, &buckets, None)?;
    }
    Ok(())
}

/// Writes how often each limit of a service's requests has let one not through.
pub(super) fn encode_over_request_limits(
    encoder: &mut DescriptorEncoder<'_>,
    workers: &[Arc<WorkerMetrics>],
) -> fmt::Result {
    let (name, help) =
        ("nodemesh_requests_over_limit", "Requests and retries refused by a limit of their service");
    let mut total = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for limit in RequestLimit::ALL {
        let of =
            |worker: &Arc<WorkerMetrics>| worker.over_request_limit[limit as usize].load(Ordering::Relaxed);
        let count: u64 = workers.iter().map(of).sum();
        let labels = [("limit", limit.as_str())];
        total.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    Ok(())
}

/// Puts what is said of requests in the place of what is said of connections.
fn with_request_labels(
    mut labels: Vec<(&'static str, String)>,
    key: &RequestKey,
) -> Vec<(&'static str, String)> {
    let RequestOutcome { status, flag, grpc } = key.outcome;
    for (name, value) in &mut labels {
        match *name {
            "request_protocol" => if grpc.is_some() { "grpc" } else { "http" }.clone_into(value),
            "response_flags" => flag.map_or("-", RequestFlag::as_str).clone_into(value),
            _ => {}
        }
    }
    labels.push(("response_code", status.map_or(0, |status: StatusCode| status.as_u16()).to_string()));
    if let Some(outcome) = grpc {
        labels.push(("grpc_response_status", outcome.map_or_else(String::new, |it| it.to_string())));
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::super::access_log::AccessLog;
    use super::super::prometheus_metrics::AgentMetrics;
    use super::super::request_record::RequestRecord;
    use super::*;

    #[test]
    fn requests_of_all_workers_are_counted_by_their_outcome() {
        let workers: Vec<_> = (0..2).map(|_| WorkerMetrics::new(AccessLog::disabled())).collect();
        let [client, server] = ["10.0.0.1:1", "10.0.0.2:80"].map(|address| address.parse().unwrap());
        for worker in &workers {
            RequestRecord::new(worker, client, server).end(StatusCode::OK, None, "");
            let flag = Some(RequestFlag::NoRoute);
            RequestRecord::new(worker, client, server).end(StatusCode::NOT_FOUND, flag, "");
        }
        drop(RequestRecord::new(&workers[0], client, server));
        workers.iter().for_each(|worker| worker.count_over_request_limit(RequestLimit::Retries));
        let text = AgentMetrics::new(workers, AccessLog::disabled()).render_prometheus().unwrap();
        let value = |start: &str, with: &str| -> String {
            let line = text.lines().find(|line| line.starts_with(start) && line.contains(with));
            line.unwrap_or_else(|| panic!("no {start} in {text}")).rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("istio_requests_total{", "response_code=\"200\""), "2");
        assert_eq!(value("istio_requests_total{", "response_flags=\"NR\""), "2");
        assert_eq!(value("istio_requests_total{", "response_code=\"0\""), "1");
        assert_eq!(value("nodemesh_requests_over_limit_total{", "limit=\"maxRetries\""), "2");
        assert_eq!(value("nodemesh_requests_over_limit_total{", "limit=\"http2MaxRequests\""), "0");
        assert_eq!(value("istio_request_duration_milliseconds_count{", "response_code=\"200\""), "2");
        assert!(text.contains("request_protocol=\"http\"") && text.contains("le=\"3600000.0\""), "{text}");
    }
}
