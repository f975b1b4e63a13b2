//! The agent's HTTP endpoints: admin (loopback and a Unix socket), metrics, health.

mod configuration_handlers;
mod http_servers;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use mesh_api::admin::{AgentStatus, CertificateStatus, ConnectionStatus, PodLinkStatus, PodStatus};
use mesh_api::resource::enrolment::REDIRECTION;
use mesh_common::veth::{PodLinkKind, PodVeth, VethObstacle};
use mesh_proxy::certs::Certificates;
use mesh_proxy::liveness::Liveness;
use mesh_proxy::telemetry::AgentMetrics;
use mesh_proxy::xds::XdsState;

use crate::config::Config;
use crate::enrol::PodStatuses;
use crate::istio_annotation::AnnotationFailures;
use crate::sys::ebpf::PodLinkMap;

pub use http_servers::spawn_http_servers;

/// Changes the log filter. Errors: it is not a valid filter, in words.
pub type SetLogFilterFn = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the endpoints show and change.
pub struct AdminState {
    /// Settings in force.
    pub config: Config,
    /// When the agent started.
    pub started: Instant,
    /// Configuration from the control plane.
    pub xds: XdsState,
    /// Certificates.
    pub certificates: Certificates,
    /// State of each pod.
    pub pods: PodStatuses,
    /// Pods whose annotation for Istio could not be written.
    pub not_annotated: AnnotationFailures,
    /// How the pods are connected to the node.
    pub links: PodLinkMap,
    /// Metrics and connections.
    pub metrics: Arc<AgentMetrics>,
    /// Changes the log filter.
    pub set_log_filter: SetLogFilterFn,
    /// Whether the threads of the proxy still run.
    pub liveness: Liveness,
}

type Shared = Extract<Arc<AdminState>>;

/// Routes that only read. They show no key and no token.
fn reading(state: &Arc<AdminState>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/pods", get(pods))
        .route("/certs", get(certificates))
        .route("/connections", get(connections))
        .route("/workloads", get(configuration_handlers::get_workloads))
        .route("/services", get(configuration_handlers::get_services))
        .route("/policies", get(configuration_handlers::get_policies))
        .route("/config", get(config))
        .route("/snapshot", get(configuration_handlers::get_config_dump))
        .route("/log-level", get(log_level))
        .with_state(Arc::clone(state))
}

/// Routes that change something: on the Unix socket alone.
fn changing(state: &Arc<AdminState>) -> Router {
    Router::new().route("/log-level", put(set_log_level)).with_state(Arc::clone(state))
}

fn scraping(state: &Arc<AdminState>) -> Router {
    let router = Router::new().route("/metrics", get(metrics)).route("/stats/prometheus", get(metrics));
    router.with_state(Arc::clone(state))
}

fn health(state: &Arc<AdminState>) -> Router {
    Router::new()
        .route("/healthz/ready", get(ready))
        .route("/healthz/live", get(live))
        .with_state(Arc::clone(state))
}

async fn status(state: Shared) -> Json<AgentStatus> {
    let enrolled = state.pods.borrow().iter().filter(|pod| is_enrolled(pod)).count();
    Json(AgentStatus {
        node: state.config.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: state.started.elapsed().as_secs(),
        keeper: std::os::unix::process::parent_id(),
        proxy: std::process::id(),
        ready: *state.xds.ready.borrow(),
        control: state.xds.link_status(),
        generation: state.xds.snapshot.load().generation(),
        enrolled_pods: enrolled,
        open_connections: state.metrics.open_connection_count(),
        workers: state.config.workers,
    })
}

fn is_enrolled(pod: &PodStatus) -> bool {
    pod.state == mesh_api::admin::EnrolmentState::Enrolled
}

async fn pods(state: Shared) -> Json<Vec<PodStatus>> {
    let mut pods = state.pods.borrow().clone();
    for pod in &mut pods {
        if pod.reason.is_none() {
            pod.reason = state.not_annotated.error_of(&pod.uid).map(|error| annotation_warning(&error));
        }
        pod.link = pod.netns.and_then(|netns| state.links.link_of(netns)).map(pod_link_status);
    }
    Json(pods)
}

/// Converts how a pod is connected.
fn pod_link_status(veth: PodVeth) -> PodLinkStatus {
    let way = match PodLinkKind::from_number(veth.link) {
        PodLinkKind::Guarded => "veth",
        PodLinkKind::Routed => "routed",
        PodLinkKind::Shared => "shared",
    };
    let obstacle = VethObstacle::from_number(veth.obstacle).describe();
    PodLinkStatus { way: way.to_owned(), obstacle: obstacle.map(ToOwned::to_owned) }
}

/// Returns the warning for a pod whose annotation for Istio could not be written.
fn annotation_warning(error: &str) -> String {
    format!(
        "annotation {REDIRECTION} not written, so Istio's own parts take the pod for one outside of the mesh: {error}"
    )
}

async fn certificates(state: Shared) -> Json<Vec<CertificateStatus>> {
    Json(state.certificates.statuses())
}

async fn connections(state: Shared) -> Json<Vec<ConnectionStatus>> {
    Json(state.metrics.list_open_connections())
}

async fn config(state: Shared) -> Json<Config> {
    Json(state.config.clone())
}

async fn log_level(_state: Shared) -> String {
    format!("{}\n", tracing::level_filters::LevelFilter::current())
}

async fn set_log_level(state: Shared, filter: String) -> Response {
    match (state.set_log_filter)(filter.trim()) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, format!("{filter}: {reason}\n")).into_response(),
    }
}

async fn metrics(state: Shared) -> Response {
    state.metrics.control_connected.set(i64::from(state.xds.link_status().connected));
    let expiry = state
        .certificates
        .time_to_first_expiry()
        .map(|left| i64::try_from(left.as_secs()).unwrap_or(i64::MAX));
    state.metrics.first_expiry.set(expiry.unwrap_or(-1));
    match state.metrics.render_prometheus() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(state: Shared) -> Response {
    match state.liveness.check() {
        Ok(()) => "alive\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not alive: {reason}\n")).into_response(),
    }
}

async fn ready(state: Shared) -> Response {
    if let Err(reason) = state.liveness.check() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response();
    }
    if *state.xds.ready.borrow() {
        return "ready\n".into_response();
    }
    let link = state.xds.link_status();
    let reason = link.error.unwrap_or_else(|| "no configuration yet".to_owned());
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: control plane {}: {reason}\n", link.address))
        .into_response()
}
