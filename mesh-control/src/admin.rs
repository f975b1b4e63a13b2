//! Two HTTP endpoints: the admin one, and metrics with health. The module `listeners` serves them.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use mesh_api::admin::{ControlStatus, ResourceReport};
use mesh_api::compile::Condition;
use mesh_api::manifest::ManifestError;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::info;

use crate::ca::rotation::{RotationState, Step};
use crate::ca::{Authority, root};
use crate::config::Configuration;
use crate::findings::Findings;
use crate::kubernetes::roots::{RotateError, SecretRoots};
use crate::kubernetes::unread::Unread;
use crate::metrics::Metrics;
use crate::xds::agents::Agents;

/// What the admin endpoint shows and does.
pub struct Admin {
    /// As given on the command line.
    pub source: String,
    /// Rotates, and knows the roots.
    pub authority: Arc<Authority>,
    /// Rotates for all replicas, where the roots are in a Secret.
    pub shared_roots: Option<Arc<SecretRoots>>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// In force.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// What is wrong with it.
    pub findings: Arc<Mutex<Findings>>,
    /// Objects of kinds that the mesh does not read.
    pub unread: Unread,
    /// Who is connected.
    pub agents: Arc<Agents>,
}

/// What the admin endpoint shows.
pub fn reading(admin: &Arc<Admin>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/errors", get(errors))
        .route("/warnings", get(warnings))
        .route("/conditions", get(conditions))
        .route("/resources", get(resources))
        .with_state(Arc::clone(admin))
}

/// What it does: by the Unix socket alone.
pub fn changing(admin: &Arc<Admin>) -> Router {
    Router::new().route("/rotate-root", post(rotate_root)).with_state(Arc::clone(admin))
}

/// Routes of the metrics port. Live is who answers; ready is who serves agents and was not told to stop.
pub fn metrics(metrics: Arc<Metrics>, ready: watch::Receiver<bool>) -> Router {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = move || async move { ([(header::CONTENT_TYPE, FORMAT)], metrics.encode()) };
    let readiness = move || async move {
        if *ready.borrow() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    };
    Router::new()
        .route("/metrics", get(text))
        .route("/healthz/live", get(|| async { "live\n" }))
        .route("/healthz/ready", get(readiness))
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<ControlStatus> {
    let errors = admin.findings().errors.len();
    let objects = admin.configuration.borrow().objects;
    Json(ControlStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        source: admin.source.clone(),
        objects,
        errors,
        roots: admin.authority.roots().iter().map(|root| root::fingerprint(root)).collect(),
        agents: admin.agents.links(),
    })
}

async fn errors(State(admin): State<Arc<Admin>>) -> Json<Vec<ManifestError>> {
    Json(admin.findings().errors)
}

async fn warnings(State(admin): State<Arc<Admin>>) -> Json<Vec<ManifestError>> {
    Json(admin.findings().warnings)
}

async fn conditions(State(admin): State<Arc<Admin>>) -> Json<Vec<Condition>> {
    Json(admin.findings().conditions)
}

async fn resources(State(admin): State<Arc<Admin>>) -> Json<ResourceReport> {
    let unread = admin.unread.kinds();
    let resources = admin.findings().resources;
    let root_namespace = admin.root_namespace.clone();
    Json(ResourceReport { resources: Vec::clone(&resources), unread, root_namespace })
}

#[derive(Deserialize)]
struct Rotation {
    step: Option<Step>,
    #[serde(default)]
    force: bool,
}

async fn rotate_root(
    State(admin): State<Arc<Admin>>,
    Query(Rotation { step, force }): Query<Rotation>,
) -> Result<Json<RotationState>, Conflict> {
    let state = match &admin.shared_roots {
        Some(roots) => roots.rotate(&admin.authority, step, force).await?,
        None => admin.authority.rotate(step, force).map_err(RotateError::from)?,
    };
    info!(phase = ?state.phase, "root rotated");
    Ok(Json(state))
}

/// A step that can't be taken now.
struct Conflict(RotateError);

impl From<RotateError> for Conflict {
    fn from(error: RotateError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Conflict {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, format!("{}\n", self.0)).into_response()
    }
}

impl Admin {
    fn findings(&self) -> Findings {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
