use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use kube::client::Body;
use mesh_api::admin::EnrolmentState;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tower::Service;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// An API server that takes or refuses what is written.
#[derive(Clone)]
struct Server {
    requests: mpsc::UnboundedSender<Request<Body>>,
    code: watch::Receiver<u16>,
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let code = *self.code.borrow();
        let reason = if code == 404 { "NotFound" } else { "Forbidden" };
        let body = match code {
            200 => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}),
            _ => json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
                        "reason": reason, "message": "pods \"web\" is forbidden"}),
        };
        self.requests.send(request).unwrap();
        let body = Body::from(serde_json::to_vec(&body).unwrap());
        ready(Ok(Response::builder().status(code).body(body).unwrap()))
    }
}

/// A writer at work, and the ends of what it goes by.
struct Scene {
    requests: mpsc::UnboundedReceiver<Request<Body>>,
    code: watch::Sender<u16>,
    pods: watch::Sender<Vec<PodStatus>>,
    annotated: watch::Sender<Arc<ObservedAnnotations>>,
    installed: watch::Sender<bool>,
    failures: AnnotationFailures,
    task: JoinHandle<()>,
}

fn pod(state: EnrolmentState) -> Vec<PodStatus> {
    let (uid, namespace, name) = ("u".to_owned(), "shop".to_owned(), "web".to_owned());
    let (reason, netns, link, strict_egress) = (None, None, None, None);
    vec![PodStatus { uid, namespace, name, state, reason, netns, link, strict_egress }]
}

fn annotated(there: bool) -> Arc<ObservedAnnotations> {
    let annotated =
        ObservedAnnotation { namespace: "shop".into(), name: "web".into(), enabled: there, ours: there };
    Arc::new([("u".into(), annotated)].into())
}

impl Scene {
    fn new(state: EnrolmentState, there: bool, code: u16) -> Self {
        let (sent, requests) = mpsc::unbounded_channel();
        let (code, answered) = watch::channel(code);
        let client = Client::new(Server { requests: sent, code: answered }, "default");
        let (pods, states) = watch::channel(pod(state));
        let (annotated, read) = watch::channel(annotated(there));
        let (installed, removed) = watch::channel(true);
        let failures = AnnotationFailures::default();
        let writer = AnnotationWriter::new(client, states, read, removed, failures.clone());
        let task = tokio::spawn(writer.run());
        Self { requests, code, pods, annotated, installed, failures, task }
    }

    /// The next request: the pod as it is said to be.
    async fn written(&mut self) -> Value {
        let request = tokio::time::timeout(PATIENCE, self.requests.recv()).await.expect("in time").unwrap();
        assert_eq!(request.method(), Method::PATCH);
        assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/pods/web/status");
        let query = request.uri().query().unwrap();
        assert!(query.contains("fieldManager=mesh-agent") && query.contains("force=true"), "{query}");
        assert_eq!(request.headers()["content-type"], "application/apply-patch+yaml");
        let body = request.into_body().collect_bytes().await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// Whether no further request was made.
    fn is_quiet(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

fn enabled() -> Value {
    json!({"name": "web", "uid": "u", "annotations": {"ambient.istio.io/redirection": "enabled"}})
}

fn nothing() -> Value {
    json!({"name": "web", "uid": "u"})
}

#[tokio::test]
async fn it_is_written_once_and_taken_off_when_the_pod_leaves() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, false, 200);
    assert_eq!(scene.written().await["metadata"], enabled());
    // What is told again, and has not come back from the API yet, is no reason to write again.
    scene.pods.send_replace(pod(EnrolmentState::Enrolled));
    scene.annotated.send_replace(annotated(true));
    scene.pods.send_replace(pod(EnrolmentState::NotSelected));
    assert_eq!(scene.written().await["metadata"], nothing());
    scene.annotated.send_replace(annotated(false));
    scene.pods.send_replace(pod(EnrolmentState::Enrolled));
    assert_eq!(scene.written().await["metadata"], enabled());
    assert!(scene.is_quiet());
}

/// So is what somebody took off before the agent had seen it.
#[tokio::test]
async fn what_does_not_come_back_from_the_api_is_written_again() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, false, 200);
    for _ in 0..2 {
        assert_eq!(scene.written().await["metadata"], enabled());
    }
    assert!(scene.is_quiet());
}

#[tokio::test]
async fn a_refusal_is_shown_and_tried_again() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, false, 403);
    scene.written().await;
    scene.written().await;
    let shown = scene.failures.error_of("u");
    assert_eq!(shown.as_deref(), Some("pods \"web\" is forbidden (403)"));
    scene.code.send_replace(200);
    assert_eq!(scene.written().await["metadata"], enabled());
    scene.annotated.send_replace(annotated(true));
    scene.pods.send_replace(pod(EnrolmentState::NotSelected));
    scene.written().await;
    assert_eq!(scene.failures.error_of("u"), None, "what is done is no failure any more");
}

/// Nor is it asked for as soon as one.
#[tokio::test]
async fn a_pod_that_is_gone_is_no_failure() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, false, 404);
    scene.written().await;
    let began = Instant::now();
    scene.written().await;
    assert!(began.elapsed() > 2 * FIRST_PAUSE, "it counts as written: {:?}", began.elapsed());
    assert_eq!(scene.failures.error_of("u"), None);
}

#[tokio::test]
async fn an_agent_that_stays_leaves_it_and_one_that_is_removed_takes_it_off() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, true, 200);
    // As when an agent starts again: its pods are pending for a moment.
    scene.pods.send_replace(pod(EnrolmentState::Pending));
    scene.pods.send_replace(Vec::new());
    scene.installed.send_replace(false);
    assert_eq!(scene.written().await["metadata"], nothing());
    tokio::time::timeout(PATIENCE, scene.task).await.expect("it is done then").unwrap();
    assert!(scene.requests.try_recv().is_err(), "and did nothing else");
}

#[tokio::test]
async fn a_removal_does_not_wait_for_an_api_that_refuses_for_ever() {
    let mut scene = Scene::new(EnrolmentState::Enrolled, true, 403);
    scene.installed.send_replace(false);
    for _ in 0..LAST_TRIES {
        scene.written().await;
    }
    tokio::time::timeout(PATIENCE, scene.task).await.expect("it gives up").unwrap();
}
