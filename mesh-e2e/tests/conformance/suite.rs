//! The suite itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Built, Definitions};

/// Every test for meshes that the suite has. `conformance/options.yaml` claims what they need.
const TESTS: [&str; 22] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];

/// With this in the environment the report in `docs/conformance` is written anew.
const WRITE: &str = "NODEMESH_CONFORMANCE_WRITE";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn the_suite_passes() -> Result<()> {
    let built = Built::find()?;
    let _definitions = Definitions::apply(&built)?;
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("report.yaml");
    let printed = run(&built, &report)?;
    let results = results(&printed);
    for (test, result) in &results {
        println!("{result}\t{test}");
    }
    let failed: Vec<_> = TESTS.iter().filter(|test| !passed(&results, test)).collect();
    ensure!(failed.is_empty(), "{printed}\nnot passed: {failed:?}");
    let unknown: Vec<_> = results.keys().filter(|test| !TESTS.contains(test)).collect();
    ensure!(unknown.is_empty(), "tests for meshes that are not claimed: {unknown:?}");
    compare(&fs::read_to_string(&report).context("the suite wrote no report")?)
}

/// Runs it to its end; what it printed, whatever its exit status.
fn run(built: &Built, report: &Path) -> Result<String> {
    let mut suite = Command::new(built.program());
    suite
        .args(["-test.v", "-test.run=^TestConformance$", "-test.timeout=15m"])
        .arg(format!("-conformance-options-file={ROOT}/conformance/options.yaml"))
        .arg(format!("-report-output={}", report.display()))
        .arg(concat!("-version=v", env!("CARGO_PKG_VERSION")))
        .stdin(Stdio::null());
    let output = suite.output().with_context(|| format!("can't start {}", built.program().display()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(printed + &String::from_utf8_lossy(&output.stderr))
}

fn passed(results: &BTreeMap<&str, &str>, test: &str) -> bool {
    results.get(test) == Some(&"PASS")
}

/// `PASS` for each of the suite's tests for meshes. All others it skips.
fn results(printed: &str) -> BTreeMap<&str, &str> {
    fn of(line: &str) -> Option<(&str, &str)> {
        let (result, test) = line.trim_start().strip_prefix("--- ")?.split_once(": TestConformance/")?;
        // The cases of a test have its name before theirs.
        let (test, _) = test.split_once(' ').filter(|(test, _)| !test.contains('/'))?;
        test.starts_with("Mesh").then_some((test, result))
    }
    printed.lines().filter_map(of).collect()
}

/// The report in `docs` says what this run has shown.
fn compare(report: &str) -> Result<()> {
    let version = value(report, "gatewayAPIVersion").context("the report says no version")?;
    let path = PathBuf::from(format!("{ROOT}/docs/conformance/gateway-api-{version}.yaml"));
    if std::env::var_os(WRITE).is_some() {
        fs::create_dir_all(path.parent().context("it is in a directory")?)?;
        fs::write(&path, report).with_context(|| format!("can't write {}", path.display()))?;
    }
    let committed = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    ensure!(
        undated(report) == undated(&committed),
        "{} says something else than this run; write it anew with {WRITE}=1:\n{report}",
        path.display()
    );
    Ok(())
}

fn value<'a>(report: &'a str, key: &str) -> Option<&'a str> {
    report.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

/// Its lines without the date. Their order is not always the same.
fn undated(report: &str) -> Vec<&str> {
    let mut lines: Vec<_> = report.lines().filter(|line| !line.starts_with("date: ")).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn results_are_those_of_whole_tests_for_meshes() {
    let printed = "=== RUN   TestConformance/MeshBasic\n--- FAIL: TestConformance (2.30s)\n    \
        --- PASS: TestConformance/MeshBasic (0.15s)\n        \
        --- FAIL: TestConformance/MeshBasic/0_request (2.00s)\n    \
        --- SKIP: TestConformance/HTTPRouteWeight (0.00s)\n    \
        --- FAIL: TestConformance/MeshPorts (2.00s)\n";
    let results = results(printed);
    assert_eq!(results, BTreeMap::from([("MeshBasic", "PASS"), ("MeshPorts", "FAIL")]));
    assert!(
        passed(&results, "MeshBasic") && !passed(&results, "MeshPorts") && !passed(&results, "MeshFrontend")
    );
}
