//! The mesh goes without a trace, and comes again. Last by its name: other tests need the mesh.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_e2e::kubectl::output;
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, mesh, workload};

const PINS: &str = "/sys/fs/bpf/nodemesh-cluster";

/// The mesh with the values that it had, also after a failure between the two.
struct Reinstall {
    values: String,
}

impl Reinstall {
    fn now(&self) -> Result<()> {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/nodemesh");
        let mut helm = Command::new("helm")
            .args(["upgrade", "--install", mesh::RELEASE, chart, "--namespace", mesh::NAMESPACE])
            .args(["--create-namespace", "--values=-", "--wait", "--timeout=3m"])
            .stdin(Stdio::piped())
            .spawn()?;
        // Dropped at the end of the statement, which ends the input.
        helm.stdin.take().context("helm has no input")?.write_all(self.values.as_bytes())?;
        ensure!(helm.wait()?.success(), "helm can't install the mesh again");
        Ok(())
    }
}

impl Drop for Reinstall {
    fn drop(&mut self) {
        if let Err(error) = self.now() {
            eprintln!("the mesh stays away: {error:#}");
        }
    }
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

/// Routing rules and namespaces of the mesh that nodes and pods can have; text to compare.
fn network_of(node: &str) -> Result<String> {
    let mut found = String::new();
    for arguments in [&["rule"][..], &["-6", "rule"], &["-o", "link", "show", "type", "dummy"]] {
        found += &output(cluster::on_network_of(node)?.arg("ip").args(arguments))?;
    }
    Ok(found)
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

    let get = ["get", "values", mesh::RELEASE, "--namespace", mesh::NAMESPACE, "--output=yaml"];
    let reinstall = Reinstall { values: output(Command::new("helm").args(get))? };
    output(Command::new("helm").args([
        "uninstall",
        mesh::RELEASE,
        "--namespace",
        mesh::NAMESPACE,
        "--wait",
    ]))?;
    mesh::wait_gone()?;

    if cluster::is_local() {
        eventually("nothing is pinned", SOON, || {
            let pins = files(Path::new(PINS));
            ensure!(pins.is_empty(), "{pins:?}");
            Ok(())
        })?;
    }
    for node in [&first, &second] {
        let network = network_of(node)?;
        ensure!(!network.contains("nodemesh"), "{node} keeps {network}");
    }
    for family in ["-4", "-6"] {
        scope.curl("client", &[family, "http://web"]).context("pods that were in the mesh")?;
    }
    ensure!(before == scope.incarnations()?, "a container was restarted");

    drop(reinstall);
    mesh::wait_ready()?;
    let outside = Scope::new("outside", Enrolled::No)?;
    outside.apply(&workload::client("client", None))?;
    outside.ready()?;
    eventually("the mesh is back", SOON, || {
        let url = format!("http://web.{}", scope.name());
        ensure!(outside.fetch("client", &url).is_err(), "plaintext is answered under STRICT");
        scope.fetch("client", "http://web")
    })?;
    ensure!(before == scope.incarnations()?, "a container was restarted");
    Ok(())
}
