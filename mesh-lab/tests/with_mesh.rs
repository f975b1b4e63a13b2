//! The lab with a mesh: its programs are started, wired and watched as they should be. Needs root.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

mod machine;

use std::{
    process::Output,
    time::{Duration, Instant},
};

use machine::Machine;
use mesh_api::manifest::Kind;
use mesh_lab::{Lab, Options, poll};

const SOON: Duration = Duration::from_secs(20);

fn text(output: &Output) -> Result<String, String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.trim().to_owned()) } else { Err(format!("{} {err}", output.status)) }
}

fn fetch(lab: &Lab, pod: &str, url: &str) -> Result<String, String> {
    text(&lab.exec("shop", pod, &["curl", "-sS", "-m", "3", url]).unwrap())
}

fn sample_shop(name: &str) -> Lab {
    let lab = Lab::up(name, &Options::default()).unwrap();
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/shop");
    text(&lab.command(&["apply", "-f", samples]).output().unwrap()).unwrap();
    lab.wait_ready(SOON).unwrap();
    poll(SOON, || fetch(&lab, "client", "http://web/").ok()).expect("the client is served");
    lab
}

#[test]
fn the_sample_shop_serves_its_client_and_refuses_the_intruder() {
    let lab = sample_shop("m-shop");
    let address = |pod: &str| {
        let pod = lab.object(Kind::Pod, "shop", pod).unwrap().unwrap();
        let ips = pod["status"]["podIPs"].as_array().unwrap().clone();
        ips.iter().map(|ip| ip["ip"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let answer = fetch(&lab, "client", "http://web/").unwrap();
    assert!(address("client").iter().any(|ip| answer.ends_with(ip)), "{answer}");
    for _ in 0..5 {
        fetch(&lab, "intruder", "http://web/").expect_err("policy refuses the intruder");
    }
    // Probes of a pod under STRICT come from its node, in plaintext, and pass: the pods are ready. A client
    // on the node that is no probe is not served.
    let server = lab
        .pods("shop")
        .unwrap()
        .into_iter()
        .find(|pod| pod["metadata"]["labels"]["app"] == "store")
        .unwrap();
    let target = format!("{}:6379", server["status"]["podIP"].as_str().unwrap());
    let outsider = lab.node_exec("node1", &["curl", "-sS", "-m", "3", &format!("http://{target}/")]).unwrap();
    text(&outsider).expect_err("plaintext from another node is refused");
}

#[test]
fn programs_are_stopped_killed_and_started_as_asked() {
    let lab = sample_shop("m-programs");
    let first = lab.status().unwrap().nodes[0].agent.clone().unwrap();
    let killed = lab.agent("node1").kill().unwrap();
    assert_eq!(killed.pid, None);
    assert!(killed.ended.as_deref().is_some_and(|how| how.contains("signal: 9")), "{killed:?}");
    let started = lab.agent("node1").start().unwrap();
    assert_eq!(started.starts, 2);
    assert!(started.pid.is_some() && started.pid != first.pid, "{started:?}");
    assert_eq!(lab.agent("node1").start().unwrap().pid, started.pid, "one that runs is left alone");
    poll(SOON, || fetch(&lab, "client", "http://web/").ok())
        .expect("the fresh agent takes the pods up again");

    let stopped = lab.control().stop().unwrap();
    assert_eq!(stopped.ended.as_deref(), Some("exit status: 0"), "{stopped:?}");
    fetch(&lab, "client", "http://web/").expect("traffic goes on without the control plane");
    lab.control().start().unwrap();
}

#[test]
fn a_pod_does_not_wait_for_ever_for_an_agent_that_is_gone() {
    let lab = Lab::up("m-wait", &Options::default()).unwrap();
    lab.agent("node1").kill().unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, \
               spec: {nodeName: node1, containers: [{name: c, command: [sleep, infinity]}]}}";
    let applied = Instant::now();
    lab.apply(pod).unwrap();
    lab.wait_ready(SOON).unwrap();
    assert!(applied.elapsed() > Duration::from_secs(9), "it waited, but for {:?} only", applied.elapsed());
    let pod = lab.object(Kind::Pod, "default", "p").unwrap().unwrap();
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|condition| condition["type"] == "nodemesh.io/Settled");
    assert_eq!(told.map(|condition| &condition["status"]), Some(&"False".into()), "{conditions:?}");
}

#[test]
fn nothing_of_the_mesh_is_left_after_down() {
    let before = Machine::look("m-clean");
    assert_eq!(before, Machine::default(), "an earlier run left something");
    let lab = sample_shop("m-clean");
    assert_ne!(Machine::look("m-clean"), before, "the look sees a lab that is up");
    drop(lab);
    assert_eq!(Machine::look("m-clean"), before);
}

#[test]
fn a_mesh_that_does_not_start_is_told_with_its_log() {
    let options = Options { agent_arguments: vec!["--no-such-flag".to_owned()], ..Options::default() };
    let error = Lab::up("m-fails", &options).unwrap_err().to_string();
    assert!(error.contains("mesh-agent on node") && error.contains("--no-such-flag"), "{error}");
    assert_eq!(Machine::look("m-fails"), Machine::default(), "a lab that did not come up leaves nothing");
}
