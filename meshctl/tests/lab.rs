//! Every verb that asks, on a lab, as scripts would use it. Needs root.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::process::{Child, Command, Output};
use std::time::Duration;

use mesh_lab::{Lab, Options, poll};
use serde_json::Value;

const LAB: &str = "meshctl";
const SOON: Duration = Duration::from_secs(20);

/// A running program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn meshctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(arguments).env_remove("NODEMESH_LAB").env_remove("KUBECONFIG").output().unwrap()
}

fn ask(verb: &[&str]) -> Output {
    meshctl(&[&["--lab", LAB, "-o", "json"], verb].concat())
}

fn json(verb: &[&str]) -> Value {
    let output = ask(verb);
    let answer = serde_json::from_slice(&output.stdout);
    answer.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn find<'a>(list: &'a Value, key: &str, value: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item[key] == value)
}

fn town() -> Lab {
    let lab = Lab::up(LAB, &Options::default()).unwrap();
    lab.apply(include_str!("lab.yaml")).unwrap();
    lab.wait_ready(SOON).unwrap();
    lab
}

#[test]
fn scripts_learn_all_that_the_mesh_knows() {
    let lab = town();
    status_is_that_of_two_nodes(&lab);
    workloads_and_services_are_listed_once();
    a_policy_has_its_namespace_and_its_name();
    every_account_has_a_certificate();
    a_connection_is_shown_while_it_is_open(&lab);
    why_says_who_may_come_in();
    errors_name_the_fix();
    every_verb_answers_in_json();
    a_lost_agent_keeps_its_row(&lab);
}

fn status_is_that_of_two_nodes(lab: &Lab) {
    let status = poll(SOON, || ask(&["status"]).status.success().then(|| json(&["status"])));
    let status = status.unwrap_or_else(|| panic!("never well: {:?} in {lab:?}", json(&["status"])));
    assert_eq!(status["control"][0]["ready"], true, "{status}");
    let node1 = find(&status["nodes"], "node", "node1").unwrap();
    assert_eq!(node1["pods"]["enrolled"], 2, "{status}");
    assert_eq!(node1["lag"], 0, "{status}");
    assert!(node1["firstExpiry"].as_i64().is_some(), "{status}");
    assert_eq!(find(&status["nodes"], "node", "node2").unwrap()["pods"]["enrolled"], 1);
}

fn workloads_and_services_are_listed_once() {
    let workloads = json(&["workloads"]);
    let guest = find(&workloads, "name", "guest").unwrap();
    assert_eq!(guest["identity"], "spiffe://cluster.local/ns/town/sa/guest");
    assert_eq!((&guest["node"], &guest["tunnel"]), (&"node1".into(), &"hbone".into()));
    let guests = workloads.as_array().unwrap().iter().filter(|it| it["name"] == "guest").count();
    assert_eq!(guests, 1, "two agents know it");
    assert_eq!(json(&["workloads", "-n", "town", "guest"]).as_array().unwrap().len(), 1);
    assert!(!ask(&["workloads", "-n", "elsewhere", "guest"]).status.success());
    let names = |list: Value| -> Vec<_> {
        list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(json(&["workloads", "-l", "app in (inn,stranger)"])), ["inn", "stranger"]);
    assert_eq!(names(json(&["workloads", "-n", "town", "-l", "app,app!=guest"])), ["inn", "stranger"]);
    assert_eq!(json(&["services", "-l", "app=inn"]).as_array().unwrap().len(), 0, "the pod has it");
    // Readiness goes the way through the control plane.
    let is_ready = || {
        let services = json(&["services", "--node", "node2"]);
        let inn = find(&services, "hostname", "inn.town.svc.cluster.local")?;
        (inn["readyEndpoints"] == 1 && inn["endpoints"] == 1).then_some(())
    };
    poll(SOON, is_ready).unwrap_or_else(|| panic!("{}", json(&["services"])));
}

fn a_policy_has_its_namespace_and_its_name() {
    let policies = json(&["policies"]);
    let policy = find(&policies, "namespace", "town").unwrap();
    assert_eq!(policy["name"], "guests-only", "{policies}");
    assert_eq!((&policy["action"], &policy["workloads"]), (&"ALLOW".into(), &1.into()), "{policies}");
}

fn every_account_has_a_certificate() {
    let is_valid = || {
        let certificates = json(&["certs"]);
        let inn = find(&certificates, "identity", "spiffe://cluster.local/ns/town/sa/inn")?;
        (inn["state"] == "valid" && inn["node"] == "node2").then_some(())
    };
    poll(SOON, is_valid).unwrap_or_else(|| panic!("{}", json(&["certs"])));
    let of_label = json(&["certs", "-l", "app=inn"]);
    assert!(of_label.as_array().unwrap().iter().all(|it| it["node"] == "node2"), "{of_label}");
    assert_eq!(of_label.as_array().unwrap().len(), 1, "{of_label}");
    let of_node1 = json(&["certs", "--node", "node1"]);
    assert!(of_node1.as_array().unwrap().iter().all(|it| it["node"] == "node1"), "{of_node1}");
}

fn a_connection_is_shown_while_it_is_open(lab: &Lab) {
    let wait = "import socket, time; s = socket.create_connection(('inn', 80)); time.sleep(60)";
    let _open = Running(lab.exec_command("town", "guest", &["python3", "-c", wait]).spawn().unwrap());
    let connections = poll(SOON, || {
        let connections = json(&["connections"]);
        (connections.as_array()?.len() == 2).then_some(connections)
    });
    let connections = connections.unwrap_or_else(|| panic!("{}", json(&["connections"])));
    let shown = |verb: &[&str]| json(&[&["connections"], verb].concat()).as_array().unwrap().len();
    assert_eq!(
        (shown(&["town/guest"]), shown(&["-l", "app=inn"]), shown(&["-l", "app=stranger"])),
        (2, 2, 0)
    );
    let out = find(&connections, "direction", "outbound").unwrap();
    assert_eq!((&out["node"], &out["transport"]), (&"node1".into(), &"mesh".into()), "{out}");
    let inbound = find(&connections, "direction", "inbound").unwrap();
    assert_eq!(inbound["sourceIdentity"], "spiffe://cluster.local/ns/town/sa/guest", "{inbound}");
    assert_eq!(inbound["policy"], "town/guests-only", "{inbound}");
}

fn why_says_who_may_come_in() {
    let welcome = ask(&["why", "town/guest", "inn:80"]);
    assert_eq!(welcome.status.code(), Some(0), "{welcome:?}");
    let explained: Value = serde_json::from_slice(&welcome.stdout).unwrap();
    let endpoint = &explained["routes"][0]["endpoints"][0];
    assert_eq!((&endpoint["workload"], &endpoint["allowed"]), (&"town/inn".into(), &true.into()));
    let refused = ask(&["why", "town/stranger", "inn:80"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let unknown = ask(&["why", "town/nobody", "inn:80"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
}

fn errors_name_the_fix() {
    let said = |arguments: &[&str]| String::from_utf8(meshctl(arguments).stderr).unwrap();
    assert!(said(&["--lab", "no-such-lab", "status"]).contains("mesh-lab --name no-such-lab up"));
    assert!(said(&["--lab", LAB, "check"]).contains("leave out --lab"), "a lab is no cluster");
    assert!(said(&["--lab", LAB, "certs", "--node", "node9"]).contains("no agent answered on node9"));
}

/// Of a lab; the others need a cluster.
fn every_verb_answers_in_json() {
    for verb in [
        &["status"][..],
        &["workloads", "-A"],
        &["services"],
        &["policies"],
        &["certs"],
        &["connections"],
        &["why", "town/guest", "inn:80"],
        &["rotate-root"],
        &["version"],
    ] {
        let answer = json(verb);
        assert!(answer.is_array() || answer.is_object(), "{verb:?}: {answer}");
    }
}

fn a_lost_agent_keeps_its_row(lab: &Lab) {
    lab.agent("node2").kill().unwrap();
    let status = ask(&["status"]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let node2 = find(&status["nodes"], "node", "node2").unwrap();
    assert!(node2["error"].as_str().is_some_and(|error| error.contains("admin.sock")), "{status}");
    assert!(find(&status["nodes"], "node", "node1").unwrap()["error"].is_null(), "{status}");
    lab.agent("node2").start().unwrap();
}
