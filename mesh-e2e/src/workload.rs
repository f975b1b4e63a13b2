//! Manifests of pods that tests talk to and from.

use serde_json::{Value, json};

/// The image that has all that tests run: curl, python3, redis, nginx and busybox.
pub const IMAGE: &str = concat!("nodemesh.io/samples:", env!("CARGO_PKG_VERSION"));

/// A web server for both families that tells its name and who asked. What it gets it sends back.
const SERVER: &str = r#"
import http.server, os, socket

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, sent):
        body = f"{socket.gethostname()} sees {self.client_address[0]} ".encode() + sent + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 256

Server(("::", 8080), Answer).serve_forever()
"#;

/// The specification of a pod with one container, which ends at once when it is told to.
pub fn pod_spec(account: &str, node: Option<&str>, command: &[&str]) -> Value {
    let mut spec = json!({
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
        }],
    });
    if let Some(node) = node {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    spec
}

/// A service account.
pub fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

/// A pod, labelled `app` with its name.
pub fn pod(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    })
}

/// A pod that waits to be told what to do, with a service account of its name.
pub fn client(name: &str, node: Option<&str>) -> Value {
    list(&[account(name), pod(name, &pod_spec(name, node, &["sleep", "infinity"]))])
}

/// A web server in pods of a Deployment behind a Service on port 80, with kubelet's probes, and a service
/// account.
pub fn server(name: &str, replicas: u32, node: Option<&str>) -> Value {
    list(&[account(name), service(name, &json!({})), deployment(name, replicas, node)])
}

/// The Deployment of [`server`].
pub fn deployment(name: &str, replicas: u32, node: Option<&str>) -> Value {
    let mut spec = pod_spec(name, node, &["python3", "-u", "-c", SERVER]);
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 2});
    // Fifty interpreters that start at a time on a small machine take a while.
    let mut patient = probe.clone();
    patient["failureThreshold"] = json!(120);
    spec["containers"][0]["startupProbe"] = patient;
    spec["containers"][0]["readinessProbe"] = probe.clone();
    spec["containers"][0]["livenessProbe"] = probe;
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    })
}

/// A Service of both families from port 80 to 8080 of the pods of that name; `more` replaces parts of its
/// specification.
pub fn service(name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "ipFamilyPolicy": "PreferDualStack",
        "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Several objects as one.
pub fn list(items: &[Value]) -> Value {
    // A list within a list is none to kubectl.
    let items: Vec<_> = items
        .iter()
        .flat_map(|item| item["items"].as_array().cloned().unwrap_or_else(|| vec![item.clone()]))
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
