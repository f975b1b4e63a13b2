//! Pods come into the mesh and leave it by a label, as they run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, never_within, workload};
use serde_json::json;

/// A server that admits the mesh only.
fn strict_server(subject: &str) -> Result<Scope> {
    let [_, second] = cluster::nodes()?;
    let scope = Scope::new(subject, Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        mesh::strict(),
        workload::server("web", 1, Some(&second)),
        workload::client("client", None),
    ]))?;
    scope.ready()?;
    eventually("the Service answers the mesh", SOON, || scope.fetch("client", "http://web"))?;
    Ok(scope)
}

#[test]
fn the_label_takes_running_pods_in_and_lets_them_go() -> Result<()> {
    let servers = strict_server("servers")?;
    let url = format!("http://web.{}", servers.name());
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("label", Enrolled::No)?;
    scope.apply(&workload::list(&[
        workload::client("near", Some(&second)),
        workload::client("far", Some(&first)),
    ]))?;
    scope.ready()?;
    let before = scope.incarnations()?;
    for round in 0..2 {
        for client in ["near", "far"] {
            let admitted = || scope.fetch(client, &url);
            never_within("a pod outside of the mesh is answered", Duration::from_secs(2), admitted)?;
        }
        scope.enrol()?;
        for client in ["near", "far"] {
            eventually("an enrolled pod is answered", SOON, || scope.fetch(client, &url))?;
        }
        scope.unenrol()?;
        for client in ["near", "far"] {
            eventually("a pod that left is refused", SOON, || {
                ensure!(scope.fetch(client, &url).is_err(), "{client} is answered in round {round}");
                Ok(())
            })?;
        }
    }
    ensure!(before == scope.incarnations()?, "a container was restarted");
    scope.ensure_no_restarts()
}

#[test]
fn a_pod_of_its_own_will_counts_more_than_its_namespace() -> Result<()> {
    let servers = strict_server("own")?;
    let mut client = workload::pod("leaver", &workload::pod_spec("default", None, &["sleep", "infinity"]));
    client["metadata"]["labels"]["nodemesh.io/dataplane"] = json!("disabled");
    servers.apply(&client)?;
    servers.ready()?;
    never_within("a pod that wants out is answered", Duration::from_secs(3), || {
        servers.fetch("leaver", "http://web")
    })?;
    servers.kubectl(&["label", "--overwrite", "pod/leaver", "nodemesh.io/dataplane=enabled"])?;
    eventually("it came back", SOON, || servers.fetch("leaver", "http://web")).map(drop)
}

#[test]
fn pods_on_the_hosts_network_are_left_alone() -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("host", Enrolled::Yes)?;
    let mut host = workload::pod_spec("default", Some(&first), &["sleep", "infinity"]);
    host["hostNetwork"] = json!(true);
    host["dnsPolicy"] = json!("ClusterFirstWithHostNet");
    scope.apply(&workload::list(&[
        workload::server("web", 1, Some(&second)),
        workload::client("client", Some(&first)),
        workload::pod("host", &host),
    ]))?;
    scope.ready()?;
    for client in ["host", "client"] {
        eventually("PERMISSIVE admits both", SOON, || scope.fetch(client, "http://web"))?;
    }
    scope.apply(&mesh::strict())?;
    eventually("the host is plaintext", SOON, || {
        ensure!(scope.fetch("host", "http://web").is_err(), "it is answered under STRICT");
        Ok(())
    })?;
    scope.fetch("client", "http://web")?;
    let not_enrolled = scope.list(&["events", "--field-selector=reason=NotEnrolled"])?;
    ensure!(not_enrolled.is_empty(), "{not_enrolled:?}");
    Ok(())
}

#[test]
fn a_job_that_talks_at_once_is_meshed() -> Result<()> {
    let servers = strict_server("job")?;
    let address = servers.addresses("service/web")?.remove(0);
    // No retry and no name: the first thing that the container does is a connection.
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [{
            "name": "main",
            "image": workload::IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["curl", "-sS", "-f", "-m", "5", format!("http://{address}")],
        }],
    });
    for node in cluster::nodes()? {
        let mut spec = spec.clone();
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        let name = format!("early-{node}");
        servers.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name},
            "spec": {"completions": 5, "parallelism": 5, "backoffLimit": 0, "template": {"spec": spec}},
        }))?;
        let complete = eventually("the Job ends", SOON, || {
            let job = servers.get(&[&format!("job/{name}")])?;
            let (ok, bad) = (&job["status"]["succeeded"], &job["status"]["failed"]);
            ensure!(ok == 5 || bad.as_u64().is_some_and(|bad| bad > 0), "{}", job["status"]);
            Ok(ok == 5)
        })?;
        if !complete {
            let logs = servers.kubectl(&["logs", "--selector", &format!("job-name={name}"), "--prefix"])?;
            anyhow::bail!("a pod's first connection failed on {node}: {logs}");
        }
    }
    Ok(())
}

/// Holds a port of the mesh, so that the agent can't listen there, and another one when it is told to.
const IN_THE_WAY: &str = "
import os, socket, time
def take(port):
    return socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
first = take(15008)
while not os.path.exists('/tmp/more'):
    time.sleep(0.1)
second = take(15001)
second.accept()
";

#[test]
fn a_pod_that_cannot_be_enrolled_says_why_and_talks_as_before() -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("taken", Enrolled::No)?;
    let spec = workload::pod_spec("default", Some(&first), &["python3", "-u", "-c", IN_THE_WAY]);
    let server = workload::server("web", 1, Some(&second));
    scope.apply(&workload::list(&[workload::pod("stubborn", &spec), server]))?;
    scope.ready()?;
    // 15008, as procfs writes it.
    let listens = ["grep", "-q", ":3AA0", "/proc/net/tcp6"];
    eventually("the program listens", SOON, || scope.exec("stubborn", &listens))?;
    scope.enrol()?;
    let event = || {
        let selector = "--field-selector=reason=NotEnrolled,involvedObject.name=stubborn";
        scope.list(&["events", selector])?.pop().context("there is no event")
    };
    let said = eventually("an event tells", SOON, event)?;
    ensure!(
        said["message"].as_str().is_some_and(|text| text.contains("15008")),
        "it does not say why: {said}"
    );
    scope.fetch("stubborn", "http://web").context("a pod that is not enrolled")?;
    // Another reason is told as well; Kubernetes counts it to the same event.
    scope.exec("stubborn", &["touch", "/tmp/more"])?;
    eventually("the event is counted", SOON, || {
        let event = event()?;
        ensure!(event["series"]["count"].as_u64() >= Some(2), "{event}");
        Ok(())
    })
}

#[test]
fn a_node_that_cannot_run_the_agent_says_why_and_stays_out() -> Result<()> {
    let [first, _] = cluster::nodes()?;
    let set = kubectl::get(&["daemonset/mesh-agent", "--namespace", mesh::NAMESPACE])?;
    let mut spec = set["spec"]["template"]["spec"].clone();
    spec["restartPolicy"] = json!("Never");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": first});
    // The node's agent has the ports.
    spec["containers"][0]["ports"] = json!([]);
    // No cgroup v2 there.
    spec["initContainers"][0]["args"] =
        json!(["check", "--cgroup-root=/sys/fs/bpf", "--tell-node=$(NODE_NAME)"]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "check-fails"}, "spec": spec});
    // Twice, as a check that fails is run again and again.
    for times in 1..=2 {
        kubectl::apply(mesh::NAMESPACE, &pod.to_string())?;
        let result = says_why(&first, times);
        kubectl::run(&["delete", "pod/check-fails", "--namespace", mesh::NAMESPACE])?;
        result?;
    }
    Ok(())
}

/// The pod by the one line that counts, the node by one event, which is counted.
fn says_why(node: &str, times: u64) -> Result<()> {
    eventually("the pod fails", SOON, || {
        let pod = kubectl::get(&["pod/check-fails", "--namespace", mesh::NAMESPACE])?;
        ensure!(pod["status"]["phase"] == "Failed", "{}", pod["status"]);
        let message = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["message"];
        let message = message.as_str().unwrap_or_default();
        ensure!(message.starts_with("cgroup v2: ") && message.lines().count() == 1, "{message}");
        ensure!(message.contains("agent.cgroupRoot"), "it does not say what to set: {message}");
        Ok(())
    })?;
    eventually("the node has an event", SOON, || {
        let selector = format!("--field-selector=reason=MeshAgentCannotRun,involvedObject.name={node}");
        let events = kubectl::get(&["events", "--namespace=default", &selector])?;
        let [said] = &events["items"].as_array().context("a list has items")?[..] else {
            anyhow::bail!("not one event: {events}")
        };
        ensure!(said["message"].as_str().is_some_and(|text| text.contains("cgroup")), "{said}");
        ensure!(said["series"]["count"].as_u64().unwrap_or(1) == times, "{said}");
        Ok(())
    })
}
