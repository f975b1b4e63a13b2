//! The mesh goes without a trace, and comes again. Runs last (`LAST` in `xtask/src/e2e`): other tests need
//! the mesh.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use mesh_e2e::kubectl::{self, output};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, mesh, meshctl, workload};
use serde_json::{Value, json};

const PINS: &str = "/sys/fs/bpf/nodemesh-cluster";
/// The agent's eBPF programs, as the kernel names them.
const PROGRAMS: [&str; 6] = ["connect4", "connect6", "getpeername4", "getpeername6", "socket_ops", "inbound"];
/// What the chart or the control plane makes in the namespace of the mesh.
const NAMESPACED: &str = "pods,services,deployments,daemonsets,roles,rolebindings,poddisruptionbudgets,networkpolicies,\
    secrets,configmaps,leases,serviceaccounts";
/// What the chart makes for the whole cluster.
const CLUSTER_WIDE: &str = "clusterroles,clusterrolebindings,priorityclasses,\
    validatingadmissionpolicies,validatingadmissionpolicybindings";
/// Definitions of Istio's kinds hold policies of people's own, and stay.
const STAYS: &str = "customresourcedefinitions";

/// The mesh as helm had it, also after a failure in between.
struct Reinstall {
    values: String,
}

impl Reinstall {
    fn of_now() -> Result<Self> {
        Ok(Self { values: output(&mut mesh::helm(&["get", "values", mesh::RELEASE, "--output=yaml"]))? })
    }

    fn now(&self) -> Result<()> {
        let mut helm = mesh::helm(&["upgrade", "--install", mesh::RELEASE, mesh::CHART])
            .args(["--create-namespace", "--values=-", "--wait", "--timeout=3m"])
            .stdin(Stdio::piped())
            .spawn()?;
        // Dropped at the end of the statement, which ends the input.
        helm.stdin.take().context("helm has no input")?.write_all(self.values.as_bytes())?;
        ensure!(helm.wait()?.success(), "helm can't install the mesh again");
        mesh::wait_ready()
    }

    /// The values as a file, for meshctl.
    fn file(&self) -> Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(self.values.as_bytes())?;
        Ok(file)
    }
}

impl Drop for Reinstall {
    fn drop(&mut self) {
        if let Err(error) = self.now() {
            eprintln!("the mesh stays away: {error:#}");
        }
    }
}

#[test]
fn uninstalling_leaves_nothing_and_pods_talk_as_before() -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("uninstall", Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        mesh::strict(),
        workload::server("web", 2, Some(&second)),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    eventually("the mesh works", SOON, || scope.fetch("client", "http://web"))?;
    let before = scope.incarnations()?;
    ensure!(!cluster::is_local() || !own_programs().is_empty(), "no program to be missed afterwards");
    ensure!(!cluster::is_local() || !plugins()?.is_empty(), "no CNI plugin to be missed afterwards");

    let reinstall = Reinstall::of_now()?;
    output(mesh::helm(&["uninstall", mesh::RELEASE]).args(["--wait", "--cascade=foreground"]))?;
    nothing_is_left(&[
        // What the control plane made goes with the namespace, as docs/install.md says.
        "secrets/nodemesh-ca",
        "configmaps/nodemesh-root-cert",
        "configmaps/nodemesh-last-good",
        "leases.coordination.k8s.io/nodemesh-control",
    ])?;
    talk_as_before(&scope, &before).context("after helm uninstall")?;

    kubectl::run(&["delete", "namespace", mesh::NAMESPACE])?;
    let values = reinstall.file()?;
    let values = values.path().to_str().context("a path of ASCII")?;
    install_beside_istio(values)?;
    helm_is_refused()?;
    is_back(&scope)?;
    let left = Annotated::new()?;
    let gone = meshctl::json(&["uninstall"])?;
    ensure!(gone["deleted"].as_array().is_some_and(|all| all.len() > 5), "{gone}");
    nothing_is_left(&[])?;
    left.only_istios_stays()?;
    talk_as_before(&scope, &before).context("after meshctl uninstall")?;

    drop(reinstall);
    is_back(&scope)?;
    ensure!(before == scope.incarnations()?, "a container was restarted");
    Ok(())
}

/// Pods that no agent cares for any more and that say that they are in a mesh: one by a word of an agent, as
/// of a node that is down, and one by istio-cni's.
struct Annotated(Scope);

impl Annotated {
    const ANNOTATION: &str = "ambient.istio.io/redirection";
    /// Who wrote it, which is the pod's name as well.
    const WRITERS: [&str; 2] = ["mesh-agent", "istio-cni"];

    fn new() -> Result<Self> {
        let scope = Scope::new("annotated", Enrolled::No)?;
        for writer in Self::WRITERS {
            // No node has it, and so no agent.
            let spec = workload::pod_spec("default", Some("no-such-node"), &["sleep", "infinity"]);
            scope.apply(&workload::pod(writer, &spec))?;
            let said = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": writer, "annotations": {Self::ANNOTATION: "enabled"}},
            });
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(said.to_string().as_bytes())?;
            let file = file.path().to_str().context("a path of ASCII")?;
            let manager = format!("--field-manager={writer}");
            // As agents write it.
            scope.kubectl(&["apply", "--server-side", "--subresource=status", &manager, "-f", file])?;
        }
        let made = Self(scope);
        ensure!(made.found()? == ["enabled"; 2], "{:?}", made.found()?);
        Ok(made)
    }

    fn found(&self) -> Result<Vec<Value>> {
        let of = |writer: &&str| {
            Ok(self.0.get(&["pod", writer])?["metadata"]["annotations"][Self::ANNOTATION].clone())
        };
        Self::WRITERS.iter().map(of).collect()
    }

    fn only_istios_stays(&self) -> Result<()> {
        let found = self.found()?;
        ensure!(found == [Value::Null, "enabled".into()], "of {:?} there is {found:?}", Self::WRITERS);
        Ok(())
    }
}

/// A definition that Istio's chart owns, until the value goes.
struct Istios;

impl Istios {
    const NAME: &str = "authorizationpolicies.security.istio.io";

    fn new() -> Result<Self> {
        let made = Self;
        Self::mark(
            &["app.kubernetes.io/part-of-", "app.kubernetes.io/name-", "chart=istio"],
            "istio-base",
            "istio-system",
        )?;
        Ok(made)
    }

    fn mark(labels: &[&str], release: &str, namespace: &str) -> Result<()> {
        let of = ["--overwrite", "customresourcedefinition", Self::NAME];
        kubectl::run(&[&["label"][..], &of, &["app.kubernetes.io/managed-by=Helm"], labels].concat())?;
        let (release, namespace) = (
            format!("meta.helm.sh/release-name={release}"),
            format!("meta.helm.sh/release-namespace={namespace}"),
        );
        kubectl::run(&[&["annotate"][..], &of, &[&release, &namespace]].concat()).map(drop)
    }

    /// All that an installation could change.
    fn content() -> Result<(Value, Value, Value)> {
        let definition = kubectl::get(&["customresourcedefinition", Self::NAME])?;
        let metadata = &definition["metadata"];
        Ok((metadata["labels"].clone(), metadata["annotations"].clone(), definition["spec"].clone()))
    }
}

impl Drop for Istios {
    fn drop(&mut self) {
        let ours = ["app.kubernetes.io/part-of=nodemesh", "app.kubernetes.io/name=nodemesh", "chart-"];
        if let Err(error) = Self::mark(&ours, mesh::RELEASE, mesh::NAMESPACE) {
            eprintln!("a definition stays marked as Istio's: {error:#}");
        }
    }
}

/// meshctl stops where no agent can run, leaves Istio's definition as it is, and says so.
fn install_beside_istio(values: &str) -> Result<()> {
    let _istios = Istios::new()?;
    let before = Istios::content()?;
    let findings = meshctl::json(&["check", "--pre"])?;
    let all = findings.as_array().context("check lists")?;
    let istio = all.iter().find(|it| it["detail"].as_str().is_some_and(|it| it.starts_with("Istio: ")));
    ensure!(istio.is_some() && all.iter().all(|it| it["result"] != "fail"), "{findings}");

    if cluster::is_local() {
        nodes_that_lack_something_end_it(values)?;
    }
    let installed = meshctl::json(&["install", "-f", values])?;
    let left: Vec<_> =
        installed.as_array().into_iter().flatten().filter(|it| it["result"] == "leftAlone").collect();
    ensure!(left.len() == 1 && left[0]["name"] == Istios::NAME, "{installed}");
    ensure!(Istios::content()? == before, "Istio's definition was changed");
    Ok(())
}

/// With a directory that is no cgroup v2, or one that has no pod, `install` ends at once and says what to
/// set.
fn nodes_that_lack_something_end_it(values: &str) -> Result<()> {
    let mut root = "/sys/fs/cgroup";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        root = "/sys/fs/cgroup/nodemesh-e2e-empty";
        fs::create_dir_all(root)?;
    }
    let root = format!("agent.cgroupRoot={root}");
    let start = Instant::now();
    let bad = meshctl::output(&["install", "-f", values, "--set", &root, "--timeout=10m"])?;
    let said = String::from_utf8_lossy(&bad.stderr);
    ensure!(!bad.status.success() && said.contains("set agent.cgroupRoot"), "{said}");
    ensure!(start.elapsed() < Duration::from_mins(3), "it waited for what would not come");
    Ok(())
}

/// What meshctl installed is not helm's to change.
fn helm_is_refused() -> Result<()> {
    let over = mesh::helm(&["upgrade", "--install", mesh::RELEASE, mesh::CHART]).output()?;
    let said = String::from_utf8_lossy(&over.stderr);
    ensure!(!over.status.success() && said.contains("was installed by meshctl"), "{said}");
    Ok(())
}

fn talk_as_before(scope: &Scope, before: &[String]) -> Result<()> {
    for family in ["-4", "-6"] {
        scope.curl("client", &[family, "http://web"])?;
    }
    ensure!(before == scope.incarnations()?, "a container was restarted");
    Ok(())
}

fn is_back(scope: &Scope) -> Result<()> {
    mesh::wait_ready()?;
    let outside = Scope::new("outside", Enrolled::No)?;
    outside.apply(&workload::client("client", None))?;
    outside.ready()?;
    eventually("the mesh is back", SOON, || {
        let url = format!("http://web.{}", scope.name());
        ensure!(outside.fetch("client", &url).is_err(), "plaintext is answered under STRICT");
        scope.fetch("client", "http://web").map(drop)
    })
}

/// No object but `kept`, and on the nodes nothing at all.
fn nothing_is_left(kept: &[&str]) -> Result<()> {
    mesh::wait_gone()?;
    eventually("the objects of the mesh go", SOON, || {
        let objects = objects()?;
        let left: Vec<_> = objects.iter().filter(|object| !kept.contains(&object.as_str())).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let definitions = kubectl::run(&["get", STAYS, "--output=name"])?;
    ensure!(definitions.contains("security.istio.io"), "the definitions went: {definitions}");
    for node in cluster::nodes()? {
        // kube-proxy takes the mesh's own Service out of its rules in its own time.
        eventually("the node's network forgets the mesh", SOON, || {
            let network = network_of(&node)?;
            let left: Vec<_> = network.lines().filter(|line| line.contains("mesh")).collect();
            ensure!(left.is_empty(), "{node} keeps {left:#?}");
            Ok(())
        })?;
    }
    if cluster::is_local() {
        let pins = files(Path::new(PINS));
        ensure!(pins.is_empty(), "{pins:?}");
        let programs = own_programs();
        ensure!(programs.is_empty(), "the kernel still has {programs:?}");
        let plugins = plugins()?;
        ensure!(plugins.is_empty(), "the CNI plugin left {plugins:?}");
    }
    Ok(())
}

/// Objects of the mesh, as `resource/name`.
fn objects() -> Result<BTreeSet<String>> {
    let own = kubectl::run(&["get", NAMESPACED, "--namespace", mesh::NAMESPACE, "--output=name"])?;
    let wide = kubectl::run(&["get", CLUSTER_WIDE, "--output=name"])?;
    // The local cluster has a name server of its own, which is no part of the mesh.
    let wide = wide.lines().filter(|name| name.contains("nodemesh") && !name.contains("nodemesh-cluster:"));
    // Kubernetes makes these in every namespace.
    let everywhere = ["/default", "/kube-root-ca.crt"];
    let names = own.lines().filter(|name| !everywhere.iter().any(|end| name.ends_with(end))).chain(wide);
    Ok(names
        .map(|name| name.replacen("secret/", "secrets/", 1).replacen("configmap/", "configmaps/", 1))
        .map(|name| name.replacen("lease.", "leases.", 1))
        .collect())
}

/// Rules, routes, links, firewall and namespaces of a node, as text.
fn network_of(node: &str) -> Result<String> {
    let questions: [&[&str]; 6] = [
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-o", "link", "show", "type", "dummy"],
        &["sh", "-c", "command -v nft >/dev/null && nft list tables; iptables-save 2>/dev/null || true"],
    ];
    let mut found = String::new();
    for question in questions {
        found += &output(cluster::on_network_of(node)?.args(question))?;
    }
    Ok(found)
}

/// Those of the agents' programs that the kernel has.
fn own_programs() -> Vec<String> {
    // A program may be unloaded while it is looked at.
    let names = loaded_programs().flatten().filter_map(|program| program.name_as_str().map(str::to_owned));
    names.filter(|name| PROGRAMS.contains(&name.as_str())).collect()
}

/// What there is of the CNI plugin on the nodes. Network lists are as they were before.
fn plugins() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in cluster::nodes()? {
        let root = Path::new("/run/nodemesh-cluster").join(&node);
        found.extend(files(&root.join("var-lib-nodemesh")));
        found.extend(
            files(&root.join("opt-cni/bin")).into_iter().filter(|path| path.ends_with("/nodemesh-cni")),
        );
        for list in files(&root.join("etc-cni/net.d")) {
            let text = fs::read_to_string(&list)?;
            let whole: Value = serde_json::from_str(&text).context(list.clone())?;
            // As the local cluster writes it.
            if text.contains("nodemesh-cni") || text != format!("{whole:#}\n") {
                found.push(list);
            }
        }
    }
    Ok(found)
}

/// Every file below a directory; none where the directory is not.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| {
        let path = entry.path();
        if path.is_dir() { files(&path) } else { vec![path.display().to_string()] }
    });
    below.collect()
}
