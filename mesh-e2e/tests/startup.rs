//! No pod of the mesh starts before it is in the mesh, whatever becomes of the agent; and no other pod is
//! held up.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, never_within, workload};
use serde_json::Value;

const TAINT: &str = "nodemesh.io/agent-not-ready";
const AWAY: &str = "nodemesh.io/e2e-away";

/// A node without an agent while the value lives. The mesh stays installed.
struct Away {
    node: String,
}

impl Away {
    fn from(node: &str) -> Result<Self> {
        kubectl::run(&["label", "node", node, &format!("{AWAY}=yes"), "--overwrite"])?;
        let away = Self { node: node.to_owned() };
        // No roll-out: a change of the template would replace the other node's agent as well.
        let affinity = format!(
            r#"{{"spec": {{"updateStrategy": {{"type": "OnDelete", "rollingUpdate": null}}, "template": {{"spec": {{
                "affinity": {{"nodeAffinity": {{"requiredDuringSchedulingIgnoredDuringExecution": {{
                "nodeSelectorTerms": [{{"matchExpressions": [{{"key": "{AWAY}", "operator": "DoesNotExist"}}]}}]}}}}}}
            }}}}}}}}"#
        );
        patch_agents(&affinity)?;
        eventually("the agent goes", SOON, || {
            ensure!(agent_of(node)?.is_none(), "it is still there");
            Ok(())
        })?;
        Ok(away)
    }

    fn back(&self) -> Result<()> {
        kubectl::run(&["label", "node", &self.node, &format!("{AWAY}-")]).map(drop)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let undone = self.back().and_then(|()| {
            patch_agents(
                r#"{"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate":
                {"maxSurge": 1, "maxUnavailable": 0}}, "template": {"spec": {"affinity": null}}}}"#,
            )
        });
        if let Err(error) = undone.and_then(|()| mesh::wait_ready()) {
            eprintln!("the agents are not as before: {error:#}");
        }
    }
}

fn patch_agents(patch: &str) -> Result<()> {
    let agents = ["--namespace", mesh::NAMESPACE, "patch", "daemonset", "mesh-agent", "--patch", patch];
    kubectl::run(&agents).map(drop)
}

/// The agent's pod on a node.
fn agent_of(node: &str) -> Result<Option<Value>> {
    let on_node = format!("--field-selector=spec.nodeName={node}");
    let agents = "--selector=app.kubernetes.io/component=agent";
    let pods = kubectl::get(&["pods", "--namespace", mesh::NAMESPACE, agents, &on_node])?;
    Ok(pods["items"].as_array().and_then(|all| all.first()).cloned())
}

/// A file of a node of the local cluster.
fn file_of(node: &str, path: &str) -> PathBuf {
    PathBuf::from("/run/nodemesh-cluster").join(node).join(path)
}

fn network_list(node: &str) -> PathBuf {
    file_of(node, "etc-cni/net.d/10-nodemesh.conflist")
}

/// Waits until the node has on disk that a namespace is in the mesh.
fn known_on(node: &str, scope: &Scope) -> Result<()> {
    eventually("the node knows the namespace", SOON, || {
        let state = fs::read_to_string(file_of(node, "var-lib-nodemesh/cni.json"))?;
        ensure!(state.contains(&format!("{:?}", scope.name())), "{state}");
        Ok(())
    })
}

fn ensure_local() -> Result<()> {
    ensure!(
        cluster::is_local(),
        "this looks at the files of nodes, which only the local cluster has on this machine"
    );
    Ok(())
}

fn started(scope: &Scope, pod: &str) -> Result<()> {
    let pod = scope.get(&["pod", pod])?;
    let state = &pod["status"]["containerStatuses"][0]["state"];
    ensure!(state["running"].is_object() || state["terminated"].is_object(), "{state}");
    Ok(())
}

#[test]
fn a_pod_of_the_mesh_does_not_start_while_the_agent_is_away_and_others_do() -> Result<()> {
    ensure_local()?;
    let [first, second] = cluster::nodes()?;
    let (scope, outside) = (Scope::new("startup", Enrolled::Yes)?, Scope::new("unhindered", Enrolled::No)?);
    scope.apply(&workload::list(&[mesh::strict(), workload::server("web", 1, Some(&second))]))?;
    scope.ready()?;
    known_on(&first, &scope)?;
    let away = Away::from(&first)?;

    outside.apply(&workload::client("client", Some(&first)))?;
    outside.ready()?;
    scope.apply(&workload::client("client", Some(&first)))?;
    eventually("the kubelet says why it does not start", SOON, || {
        let events = scope.list(&["events", "--field-selector=reason=FailedCreatePodSandBox"])?;
        let said = events.iter().filter_map(|event| event["message"].as_str());
        ensure!(said.into_iter().any(|text| text.contains("mesh-agent has not taken it in")), "{events:?}");
        Ok(())
    })?;
    never_within("it started", Duration::from_secs(8), || started(&scope, "client"))?;

    // Nor does the taint go.
    kubectl::run(&["taint", "node", &first, &format!("{TAINT}=:NoSchedule")])?;
    never_within("the taint went", Duration::from_secs(3), || ensure_no_taint(&first))?;

    away.back()?;
    scope.ready()?;
    scope.ensure_no_restarts()?;
    eventually("it is in the mesh", SOON, || scope.fetch("client", "http://web"))?;
    eventually("the taint goes", SOON, || ensure_no_taint(&first))
}

fn ensure_no_taint(node: &str) -> Result<()> {
    let node = kubectl::get(&["node", node])?;
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    ensure!(!taints.iter().any(|taint| taint["key"] == TAINT), "{taints:?}");
    Ok(())
}

#[test]
fn a_pod_starts_in_the_mesh_while_its_agent_crashes() -> Result<()> {
    ensure_local()?;
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("crash", Enrolled::Yes)?;
    scope.apply(&workload::list(&[mesh::strict(), workload::server("web", 1, Some(&second))]))?;
    scope.ready()?;
    known_on(&first, &scope)?;
    let agent = agent_of(&first)?.context("there is an agent")?;
    let uid = agent["metadata"]["uid"].as_str().context("pods have uids")?;
    // Both processes at once, as the kernel would for memory.
    kill(&[processes_of(uid, "mesh-agent")?, processes_of(uid, "mesh-proxy")?].concat())?;
    scope.apply(&eager("client", &first))?;
    scope.ready()?;
    scope.ensure_no_restarts()?;
    first_answer(&scope, "client")?;
    mesh::wait_ready()
}

/// A pod whose first program asks `web` at once.
fn eager(name: &str, node: &str) -> Value {
    first_program(name, node, "curl -sS -f -m 10 http://web")
}

/// A pod whose first program is this one.
fn first_program(name: &str, node: &str, program: &str) -> Value {
    let command = format!("{program} >/tmp/first 2>&1; echo exit $? >>/tmp/first; exec sleep infinity");
    let spec = workload::pod_spec(name, Some(node), &["sh", "-c", &command]);
    workload::list(&[workload::account(name), workload::pod(name, &spec)])
}

/// What the first program of such a pod got.
fn said_first(scope: &Scope, pod: &str) -> Result<String> {
    eventually("its first program has asked", SOON, || {
        let answer = scope.exec(pod, &["cat", "/tmp/first"])?;
        ensure!(answer.contains("exit "), "not yet");
        Ok(answer)
    })
}

fn first_answer(scope: &Scope, pod: &str) -> Result<()> {
    let answer = said_first(scope, pod)?;
    ensure!(answer.contains(" sees "), "{answer}");
    Ok(())
}

/// The first connection of all: strict egress is in force before a program runs.
#[test]
fn a_first_program_meets_strict_egress() -> Result<()> {
    ensure_local()?;
    let [node, _] = cluster::nodes()?;
    let (scope, outside) = (Scope::new("strict", Enrolled::Yes)?, Scope::new("lax", Enrolled::Yes)?);
    kubectl::run(&["label", "namespace", scope.name(), "nodemesh.io/strict-egress=enabled"])?;
    known_on(&node, &scope)?;
    // The mesh knows a node's address only as an endpoint of services.
    let there = kubectl::get(&["node", &node])?;
    let addresses = there["status"]["addresses"].as_array().context("a node has addresses")?;
    let own = addresses.iter().find(|it| it["type"] == "InternalIP").and_then(|it| it["address"].as_str());
    let kubelet = there["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let (ip, port) = own.zip(kubelet).context("a node's kubelet has an address")?;
    let ask = format!("curl -sS -k -m 5 -o /dev/null https://{ip}:{port}/");
    outside.apply(&first_program("lax", &node, &ask))?;
    let pods: Vec<_> = (0..5).map(|number| format!("strict-{number}")).collect();
    for pod in &pods {
        scope.apply(&first_program(pod, &node, &ask))?;
    }
    outside.ready()?;
    let answer = said_first(&outside, "lax")?;
    ensure!(answer.contains("exit 0"), "it can be reached: {answer}");
    scope.ready()?;
    for pod in &pods {
        let answer = said_first(&scope, pod)?;
        ensure!(answer.contains("exit 7"), "{pod}: {answer}");
    }
    Ok(())
}

#[test]
fn a_sandbox_that_is_made_again_is_in_the_mesh_again() -> Result<()> {
    ensure_local()?;
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("sandbox", Enrolled::Yes)?;
    scope.apply(&workload::list(&[mesh::strict(), workload::server("web", 1, Some(&second))]))?;
    scope.ready()?;
    scope.apply(&eager("client", &first))?;
    scope.ready()?;
    eventually("the mesh works", SOON, || scope.fetch("client", "http://web"))?;
    let before = scope.get(&["pod", "client"])?;
    let uid = before["metadata"]["uid"].as_str().context("pods have uids")?;
    let [pause] = processes_of(uid, "pause")?[..] else { anyhow::bail!("a pod has one sandbox") };
    kill(&[pause])?;
    eventually("the pod has another sandbox", SOON, || {
        let now = scope.get(&["pod", "client"])?;
        ensure!(now["metadata"]["uid"] == before["metadata"]["uid"], "it is another pod");
        ensure!(now["status"]["podIPs"] != before["status"]["podIPs"], "it has its addresses still");
        ensure!(now["status"]["containerStatuses"][0]["ready"] == true, "it is not ready");
        Ok(())
    })?;
    first_answer(&scope, "client")
}

#[test]
fn a_network_list_that_is_written_anew_gets_the_plugin_again() -> Result<()> {
    ensure_local()?;
    let [first, _] = cluster::nodes()?;
    let path = network_list(&first);
    let with = fs::read_to_string(&path)?;
    ensure!(with.contains("nodemesh-cni"), "{with}");
    let mut list: Value = serde_json::from_str(&with)?;
    let plugins = list["plugins"].as_array_mut().context("a list has plugins")?;
    plugins.retain(|plugin| plugin["type"] != "nodemesh-cni");
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, format!("{list:#}\n"))?;
    fs::rename(&fresh, &path)?;
    eventually("it is there again", Duration::from_secs(5), || {
        let now = fs::read_to_string(&path)?;
        ensure!(now.contains("nodemesh-cni"), "{now}");
        Ok(())
    })
}

/// Processes of a pod by their name.
fn processes_of(uid: &str, name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
        let read = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("cgroup").contains(uid) && read("comm").trim() == name {
            found.push(pid);
        }
    }
    ensure!(!found.is_empty(), "pod {uid} has no process {name}");
    Ok(found)
}

/// In one go: a proxy ends with its keeper, and can't be killed after that.
fn kill(pids: &[u32]) -> Result<()> {
    let pids = pids.iter().map(ToString::to_string);
    kubectl::output(std::process::Command::new("kill").arg("-KILL").args(pids)).map(drop)
}
