//! `cargo xtask e2e`: the mesh of this checkout on a real cluster, and every test of `mesh-e2e` against it.

mod conformance;
mod kind;
mod local;
mod report;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::command::{CommandExt, find_program};
use crate::workspace::Workspace;

/// Files whose tests keep to namespaces of their own. All others stop or replace what their neighbours need,
/// or look at all that passes between the nodes.
const SIDE_BY_SIDE: [&str; 6] = ["effect", "enrolment", "lifecycle", "meshctl", "mtls", "policy"];

/// Most of a test's time is the cluster's own.
const AT_ONCE: usize = 4;

/// Where to run the tests, and which.
#[derive(Args)]
pub struct Options {
    /// On a cluster of kind, which needs kind, Docker, kubectl and helm
    #[arg(long, conflicts_with = "local")]
    kind: bool,
    /// On the cluster of `cargo xtask cluster`; what is taken where there is no kind
    #[arg(long)]
    local: bool,
    /// Leave the cluster up afterwards
    #[arg(long)]
    keep: bool,
    /// Files of mesh-e2e/tests (`mtls`), or parts of tests' names; all tests if absent
    filters: Vec<String>,
}

/// A cluster with the mesh on it, as the tests get to know it.
struct Cluster {
    /// `NODEMESH_E2E_CLUSTER`.
    name: &'static str,
    kubeconfig: PathBuf,
    /// `PATH` with kubectl and helm.
    search_path: OsString,
}

impl Cluster {
    /// A program that talks to this cluster.
    fn command(&self, mut command: Command) -> Command {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", &self.search_path)
            .env("NODEMESH_E2E_CLUSTER", self.name);
        command
    }
}

/// Run when all others have, in this order: one looks at what they made the mesh do, the other removes it.
const LAST: [&str; 2] = ["rbac", "uninstall"];

/// How one kind of cluster comes, gets the mesh, and goes.
struct Place {
    up: fn(&Workspace) -> Result<Cluster>,
    install: fn(&Workspace, &Cluster) -> Result<()>,
    /// Gives an image to every node.
    load: fn(&Workspace, &Path) -> Result<()>,
    down: fn(&Workspace) -> Result<()>,
}

/// All of it on the cluster of this machine, which is removed afterwards.
pub fn run_all(workspace: &Workspace) -> Result<()> {
    run(workspace, &Options { kind: false, local: true, keep: false, filters: Vec::new() })
}

/// Makes the cluster, installs the mesh, runs the tests, and removes the cluster unless it is to be kept.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let kind = options.kind || (!options.local && find_program("kind").is_some());
    let place = if kind { kind::PLACE } else { local::PLACE };
    let start = Instant::now();
    let result = install_and_test(workspace, &place, &options.filters);
    say!("end-to-end tests took {:.0} s with all that they need", start.elapsed().as_secs_f64());
    if options.keep {
        return result;
    }
    // What went wrong first is what counts.
    let down = (place.down)(workspace);
    result.and(down)
}

fn install_and_test(workspace: &Workspace, place: &Place, filters: &[String]) -> Result<()> {
    let cluster = (place.up)(workspace)?;
    let result =
        (place.install)(workspace, &cluster).and_then(|()| test(workspace, place, &cluster, filters));
    if result.is_err() {
        report::print(&cluster);
    }
    result
}

/// One file after another, and in most of them one test after another.
fn test(workspace: &Workspace, place: &Place, cluster: &Cluster, filters: &[String]) -> Result<()> {
    let built = built(workspace)?;
    let (files, names): (Vec<_>, Vec<_>) =
        filters.iter().partition(|filter| built.iter().any(|(file, _)| file == *filter));
    let mut failed = Vec::new();
    for (file, program) in built.iter().filter(|(file, _)| files.is_empty() || files.contains(&file)) {
        say!("-- {file}");
        let start = Instant::now();
        let at_once = if SIDE_BY_SIDE.contains(&file.as_str()) { AT_ONCE } else { 1 };
        let mut tests = cluster.command(Command::new(program));
        tests
            .arg(format!("--test-threads={at_once}"))
            .arg("--nocapture")
            .args(&names)
            // Not the path of this process's own file, which a build may have replaced since.
            .env("NODEMESH_XTASK", workspace.program("xtask"))
            .env("NODEMESH_MESHCTL", workspace.program("meshctl"));
        let passed = prepare(workspace, place, file, &mut tests).and_then(|()| tests.checked());
        if let Err(error) = passed {
            remark!("{error:#}");
            failed.push(file.as_str());
        }
        say!("-- {file} took {:.0} s", start.elapsed().as_secs_f64());
    }
    ensure!(failed.is_empty(), "end-to-end tests failed: {}", failed.join(", "));
    Ok(())
}

/// Makes what the tests of one file alone need.
fn prepare(workspace: &Workspace, place: &Place, file: &str, tests: &mut Command) -> Result<()> {
    if file == conformance::FILE {
        let suite = conformance::ensure(workspace)?;
        (place.load)(workspace, &conformance::image(&suite))?;
        tests.env("NODEMESH_CONFORMANCE", suite);
    }
    Ok(())
}

/// The test programs of `mesh-e2e` by name, in the order in which they run. Built together with all others:
/// by itself the package has other features of the same dependencies, which would be built again for it.
fn built(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    remark!("building the workspace's tests, those of mesh-e2e among them (minutes, the first time)");
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--release", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    // It takes minutes and says so on standard error.
    let output = cargo.stderr(Stdio::inherit()).output().context("can't start cargo")?;
    ensure!(output.status.success(), "the tests can't be built ({})", output.status);
    let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
    let mut programs: Vec<_> = messages.lines().filter_map(test_program).collect();
    ensure!(!programs.is_empty(), "cargo built no test of mesh-e2e");
    for last in LAST {
        ensure!(
            programs.iter().any(|(name, _)| name == last),
            "mesh-e2e has no test {last}, which runs last"
        );
    }
    programs.sort_by(|(one, _), (other, _)| turn(one).cmp(&turn(other)));
    Ok(programs)
}

/// When a test program runs: by its name, behind all others where it is one of [`LAST`].
fn turn(name: &str) -> (Option<usize>, &str) {
    (LAST.iter().position(|last| *last == name), name)
}

/// Name and path of a test program that a line of cargo's tells of.
fn test_program(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let of_package = message["manifest_path"].as_str()?.ends_with("mesh-e2e/Cargo.toml");
    let is_test = message["profile"]["test"].as_bool()?;
    let name = message["target"]["name"].as_str()?;
    (of_package && is_test).then_some((name.to_owned(), message["executable"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_need_the_others_to_be_over_run_last() {
        let mut names = ["uninstall", "rbac", "startup", "annotation"];
        names.sort_by(|one, other| turn(one).cmp(&turn(other)));
        assert_eq!(names, ["annotation", "startup", "rbac", "uninstall"]);
    }

    #[test]
    fn finds_test_programs_among_cargos_messages() {
        let line = |package: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/x/{package}/Cargo.toml","profile":{{"test":{test}}},
                "target":{{"name":"policy"}},"executable":"/t/policy-1"}}"#
            )
        };
        let found = test_program(&line("mesh-e2e", true));
        assert_eq!(found, Some(("policy".into(), "/t/policy-1".into())));
        assert_eq!(test_program(&line("mesh-lab", true)), None);
        assert_eq!(test_program(&line("mesh-e2e", false)), None);
        assert_eq!(test_program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(test_program("no message"), None);
    }
}
