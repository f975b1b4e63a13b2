//! The lab without a mesh: pods, names, Services, probes, exit statuses, and nothing left behind. Needs root.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

mod machine;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Output, Stdio},
    time::Duration,
};

use machine::Machine;
use mesh_api::manifest::Kind;
use mesh_lab::{Lab, Options, poll};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const BARE: Options = Options {
    nodes: 2,
    mesh: false,
    workload_cert_ttl: None,
    agent_arguments: Vec::new(),
    control_arguments: Vec::new(),
    programs: None,
};

/// A deployment of two web servers on node2 behind a Service, and a client on node1.
const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: node2
      containers:
      - name: web
        command: [python3, -u, -c]
        args:
        - |
          import http.server, socket, os
          class Handler(http.server.BaseHTTPRequestHandler):
              def do_GET(self):
                  body = f"{socket.gethostname()} sees {self.client_address[0]} {os.environ['GREETING']}".encode()
                  self.send_response(200 if self.path != "/ready" or not os.path.exists("$(SWITCH)") else 503)
                  self.send_header("content-length", str(len(body)))
                  self.end_headers()
                  self.wfile.write(body)
          class Server(http.server.ThreadingHTTPServer):
              address_family = socket.AF_INET6
          Server(("::", 8080), Handler).serve_forever()
        env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: SWITCH, value: "/run/nodemesh-lab/$(LAB)-$(POD)-off"}
        - {name: GREETING, value: "hello from $(POD)"}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node1, containers: [{name: client, command: [sleep, infinity]}]}
"#;

fn shop(name: &str) -> Lab {
    let lab = Lab::up(name, &BARE).unwrap();
    lab.apply(&SHOP.replace("$(LAB)", name)).unwrap();
    lab.wait_ready(SOON).unwrap();
    // Endpoints and packet rules follow readiness a moment later.
    poll(SOON, || fetch(&lab, "http://web/").ok()).expect("the Service answers");
    lab
}

fn fetch(lab: &Lab, url: &str) -> Result<String, String> {
    text(&lab.exec("shop", "client", &["curl", "-sS", "-m", "3", url]).unwrap())
}

fn text(output: &Output) -> Result<String, String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.trim().to_owned()) } else { Err(format!("{} {err}", output.status)) }
}

fn web_pods(lab: &Lab) -> Vec<Value> {
    let pods = lab.pods("shop").unwrap();
    pods.into_iter().filter(|pod| pod["metadata"]["labels"]["app"] == "web").collect()
}

#[test]
fn services_pods_and_names_work_across_nodes_in_both_families() {
    let lab = shop("t-reach");
    let client = lab.object(Kind::Pod, "shop", "client").unwrap().unwrap();
    let addresses: Vec<&str> =
        client["status"]["podIPs"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();

    for (url, sees) in [
        ("http://web/", addresses[0].to_owned()),
        ("http://web.shop.svc.cluster.local/", addresses[0].to_owned()),
        ("http://each:8080/", addresses[0].to_owned()),
    ] {
        for (family, sees) in [("-4", format!("::ffff:{sees} ")), ("-6", format!("{} ", addresses[1]))] {
            let output = lab.exec("shop", "client", &["curl", "-sS", "-m", "3", family, url]).unwrap();
            let body = text(&output).unwrap_or_else(|error| panic!("{family} {url}: {error}"));
            assert!(body.contains(&format!("sees {sees}")), "{family} {url}: {body}");
        }
    }
    for pod in web_pods(&lab) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        for ip in pod["status"]["podIPs"].as_array().unwrap() {
            let ip = ip["ip"].as_str().unwrap();
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let body = fetch(&lab, &format!("http://{host}:8080/")).unwrap();
            assert!(body.starts_with(name) && body.ends_with(&format!("hello from {name}")), "{body}");
        }
        // A pod behind a Service reaches that Service, itself included.
        for _ in 0..8 {
            let output = lab.exec("shop", name, &["curl", "-sS", "-m", "3", "http://web/"]).unwrap();
            text(&output).unwrap_or_else(|error| panic!("{name} to its own Service: {error}"));
        }
    }
    let unknown = lab.exec("shop", "client", &["getent", "hosts", "nothing.shop"]).unwrap();
    assert_eq!(unknown.status.code(), Some(2), "an unknown name has no address");
}

#[test]
fn both_endpoints_get_traffic_and_none_is_refused_at_once() {
    let lab = shop("t-balance");
    let seen: std::collections::BTreeSet<String> =
        (0..40).map(|_| fetch(&lab, "http://web/").unwrap().split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(seen.len(), 2, "{seen:?}");

    lab.apply(&SHOP.replace("$(LAB)", "t-balance").replace("replicas: 2", "replicas: 0")).unwrap();
    let refused =
        poll(SOON, || fetch(&lab, "http://web/").err().filter(|error| error.contains("Failed to connect")));
    refused.expect("a Service without endpoints refuses");
}

#[test]
fn a_failing_readiness_probe_takes_the_pod_out_and_a_passing_one_back_in() {
    let lab = shop("t-probe");
    let name = web_pods(&lab)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let switch = format!("/run/nodemesh-lab/t-probe-{name}-off");
    let ready_endpoints = || {
        let slice = lab.object(Kind::EndpointSlice, "shop", "web-ipv4").unwrap().unwrap();
        slice["endpoints"].as_array().unwrap().iter().filter(|e| e["conditions"]["ready"] == true).count()
    };
    assert_eq!(ready_endpoints(), 2);

    text(&lab.exec("shop", &name, &["touch", &switch]).unwrap()).unwrap();
    poll(SOON, || (ready_endpoints() == 1).then_some(())).expect("one endpoint is left");
    let pod = lab.object(Kind::Pod, "shop", &name).unwrap().unwrap();
    let ready =
        pod["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "False");
    assert!(ready["message"].as_str().unwrap().contains("answered 503"), "{ready}");
    assert_eq!(pod["status"]["phase"], "Running", "not ready is not dead");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);

    text(&lab.exec("shop", &name, &["rm", &switch]).unwrap()).unwrap();
    poll(SOON, || (ready_endpoints() == 2).then_some(())).expect("it is back");
}

#[test]
fn a_program_in_a_pod_is_the_users_own() {
    let lab = shop("t-exec");
    let run = |program: &[&str]| lab.exec("shop", "client", program).unwrap();
    assert_eq!(run(&["true"]).status.code(), Some(0));
    assert_eq!(run(&["sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
    assert_eq!(run(&["no-such-program"]).status.code(), Some(127));
    assert_eq!(text(&run(&["hostname"])).unwrap(), "client");
    let limits = text(&run(&["sh", "-c", "ulimit -Sn; ulimit -Hn"])).unwrap();
    let (soft, hard) = limits.split_once('\n').unwrap();
    assert_eq!(soft, hard, "open files are limited by the machine only");

    let mut cat = lab.exec_command("shop", "client", &["cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut cat.stdin.take().unwrap(), b"through and back").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through and back");

    let cgroup = text(&run(&["cat", "/proc/self/cgroup"])).unwrap();
    let uid = lab.object(Kind::Pod, "shop", "client").unwrap().unwrap()["metadata"]["uid"].clone();
    let place = format!("/nodemesh-lab/t-exec/node1/kubepods/pod{}/client", uid.as_str().unwrap());
    assert!(cgroup.lines().any(|line| line == format!("0::{place}")), "{cgroup}");

    let nowhere = lab.exec("shop", "nobody", &["true"]).unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("there is no pod shop/nobody"));

    let addresses = text(&lab.node_exec("node2", &["ip", "-br", "addr", "show", "pods"]).unwrap()).unwrap();
    assert!(addresses.contains("10.244.2.1/24") && addresses.contains("fd00:244:2::1/64"), "{addresses}");
    assert_eq!(lab.node_exec("node2", &["sh", "-c", "exit 3"]).unwrap().status.code(), Some(3));
}

#[test]
fn get_answers_in_kubernetes_shape() {
    let lab = shop("t-get");
    let output = lab.command(&["get", "pods", "-n", "shop", "-o", "json"]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&"v1".into(), &"List".into()));
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    for pod in items {
        for path in [
            "/metadata/name",
            "/metadata/uid",
            "/metadata/creationTimestamp",
            "/spec/nodeName",
            "/status/podIP",
        ] {
            assert!(pod.pointer(path).is_some_and(Value::is_string), "{path}: {pod}");
        }
        assert_eq!(pod["status"]["phase"], "Running");
        assert_eq!(pod["status"]["podIPs"].as_array().unwrap().len(), 2);
        assert!(
            pod["status"]["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        );
    }
    let web = items.iter().find(|pod| pod["metadata"]["labels"]["app"] == "web").unwrap();
    let owner = &web["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["controller"]), (&"ReplicaSet".into(), &true.into()));
    assert!(owner["name"].as_str().unwrap().starts_with("web-"), "{owner}");

    let output = lab.command(&["get", "service", "web", "-n", "shop", "-o", "json"]).output().unwrap();
    let service: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(service["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."), "{service}");
    assert!(service["spec"]["clusterIPs"][1].as_str().unwrap().starts_with("fd00:96::"), "{service}");
}

#[test]
fn programs_that_end_are_started_again_or_not_as_the_policy_says() {
    let lab = Lab::up("t-restart", &BARE).unwrap();
    let pod = |name: &str, policy: &str, program: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  \
             containers: [{{name: c, command: [sh, -c, '{program}']}}]\n"
        )
    };
    let live = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: stuck}\nspec:\n  containers:\n  - name: c\n    \
                command: [sleep, infinity]\n    livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1}\n";
    let text = pod("done", "Never", "echo out; echo err >&2")
        + &pod("broken", "Never", "exit 9")
        + &pod("again", "Always", "exit 0")
        + live;
    lab.apply(&text).unwrap();
    let wait = |name: &str, check: &dyn Fn(&Value) -> bool| {
        let found = poll(SOON, || {
            lab.object(Kind::Pod, "default", name).unwrap().filter(|pod| check(&pod["status"]))
        });
        found.unwrap_or_else(|| panic!("{name}: {:?}", lab.object(Kind::Pod, "default", name)))
    };
    wait("done", &|status| status["phase"] == "Succeeded");
    let broken = wait("broken", &|status| status["phase"] == "Failed");
    assert_eq!(broken["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 9);
    wait("again", &|status| status["containerStatuses"][0]["restartCount"].as_u64() >= Some(2));
    wait("stuck", &|status| {
        let ended = &status["containerStatuses"][0]["lastState"]["terminated"]["message"];
        ended.as_str().is_some_and(|message| message.contains("liveness probe failed"))
    });
    let logs = lab.logs("default", "done", None).unwrap();
    assert_eq!(logs, "out\nerr\n");
}

#[test]
fn a_changed_template_replaces_the_pods_and_deleting_ends_them() {
    let lab = shop("t-rollout");
    let names = || -> Vec<String> {
        web_pods(&lab).iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let before = names();
    let changed = SHOP.replace("$(LAB)", "t-rollout").replace("hello from", "good day from");
    lab.apply(&changed).unwrap();
    let replaced = poll(SOON, || {
        let now = names();
        (now.len() == 2 && now.iter().all(|name| !before.contains(name))).then_some(())
    });
    replaced.unwrap_or_else(|| panic!("{before:?} became {:?}", names()));
    poll(SOON, || fetch(&lab, "http://web/").ok().filter(|body| body.contains("good day")))
        .expect("the new ones serve");

    let report = lab.delete(&changed).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(lab.pods("shop").unwrap().len(), 0);
    let pods = lab.layout().node("node2").cgroup().join("kubepods");
    let left = std::fs::read_dir(pods).unwrap().flatten().filter(|entry| entry.path().is_dir());
    assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
}

#[test]
fn broken_manifests_are_named_and_the_rest_takes_effect() {
    let lab = Lab::up("t-broken", &BARE).unwrap();
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {nodeName: node9, containers: [{name: c, command: [sleep, infinity]}]}\n\
                ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: typo}\nspec: {acton: DENY}\n\
                ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: good}\n";
    // Good for Kubernetes; as part of a file's name it is too long.
    let long = format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {}}}\n",
        "a".repeat(230)
    );
    let text = format!("{text}{long}");
    let mut apply = lab.command(&["apply", "-f", "-"]);
    let mut apply =
        apply.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut apply.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = apply.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    for part in [
        "-:1: Pod default/lost: spec.nodeName",
        "no node \"node9\"",
        "use one of node1, node2",
        "AuthorizationPolicy default/typo",
        "acton",
        "metadata.name: the name has 230 characters, and the lab keeps each AuthorizationPolicy in a file named after it",
        "fix: give it a name of at most 225 characters",
    ] {
        assert!(errors.contains(part), "{part} not in\n{errors}");
    }
    assert!(lab.object(Kind::ServiceAccount, "default", "good").unwrap().is_some());
    assert!(lab.object(Kind::Pod, "default", "lost").unwrap().is_none());
    let mirrored = lab.layout().control().config().join("default/ServiceAccount-good.json");
    assert!(mirrored.exists(), "{}", mirrored.display());
}

#[test]
fn nothing_is_left_after_down_nor_after_a_crash() {
    let before = Machine::look("t-clean");
    assert_eq!(before, Machine::default(), "an earlier run left something");
    let lab = shop("t-clean");
    assert_ne!(Machine::look("t-clean"), before, "the look sees a lab that is up");
    drop(lab);
    assert_eq!(Machine::look("t-clean"), before);

    let lab = shop("t-clean");
    let daemon = lab.status().unwrap().daemon;
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // A question that the daemon died over is answered by a broken connection; the next one by the truth.
    let crashed = || lab.status().err().filter(|error| error.to_string().contains("does not run any more"));
    poll(SOON, crashed).expect("the daemon is known to be gone");
    let up = lab.command(&["up", "--no-mesh"]).output().unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    assert_eq!(lab.pods("shop").unwrap().len(), 0, "it is a fresh lab");
    let again = lab.command(&["up", "--no-mesh"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("is up already"));
    drop(lab);
    assert_eq!(Machine::look("t-clean"), before);
}

#[test]
fn the_sample_shop_serves() {
    let lab = Lab::up("t-samples", &BARE).unwrap();
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/shop");
    let apply = lab.command(&["apply", "-f", samples]).output().unwrap();
    assert!(apply.status.success(), "{}", String::from_utf8_lossy(&apply.stderr));
    lab.wait_ready(SOON).unwrap();
    for version in ["web v1", "web v2"] {
        poll(SOON, || fetch(&lab, "http://web/").ok().filter(|body| body.starts_with(version)))
            .expect(version);
    }
    let pong = || text(&lab.exec("shop", "client", &["redis-cli", "-h", "store", "ping"]).unwrap()).ok();
    assert_eq!(poll(SOON, || pong().filter(|answer| answer == "PONG")).as_deref(), Some("PONG"));
}

#[test]
fn the_sample_bookstore_serves() {
    let lab = Lab::up("t-bookstore", &BARE).unwrap();
    for part in ["bookstore", "bookstore-policies"] {
        let sample = format!("{}/../deploy/samples/{part}", env!("CARGO_MANIFEST_DIR"));
        let apply = lab.command(&["apply", "-f", &sample]).output().unwrap();
        assert!(apply.status.success(), "{}", String::from_utf8_lossy(&apply.stderr));
    }
    lab.wait_ready(SOON).unwrap();
    for version in ["api v1", "api v2"] {
        let page = || text(&lab.exec("bookstore", "client", &["curl", "-s", "http://web"]).unwrap()).ok();
        poll(SOON, || page().filter(|body| body.contains(version))).expect(version);
    }
}
