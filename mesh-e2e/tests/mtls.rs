//! STRICT between nodes, and probes of the kubelet where there is no plaintext.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, eventually, mesh, never_within, workload};
use serde_json::json;

const FAMILIES: [&str; 2] = ["-4", "-6"];

#[test]
fn strict_refuses_plaintext_by_both_families() -> Result<()> {
    let scope = Scope::across_nodes("strict", Enrolled::Yes)?;
    let outside = Scope::new("outside", Enrolled::No)?;
    outside.apply(&workload::client("client", None))?;
    outside.ready()?;
    let url = format!("http://web.{}", scope.name());
    for family in FAMILIES {
        eventually("PERMISSIVE admits plaintext", SOON, || outside.curl("client", &[family, &url]))?;
    }
    scope.apply(&mesh::strict())?;
    for family in FAMILIES {
        let ask = || outside.curl("client", &[family, &url]);
        eventually("STRICT refuses plaintext", SOON, || {
            ensure!(ask().is_err(), "{family} is answered");
            Ok(())
        })?;
        never_within("plaintext is answered", Duration::from_secs(2), ask)?;
        scope.curl("client", &[family, "http://web"]).context("the mesh's own client")?;
    }
    Ok(())
}

#[test]
fn probes_pass_under_strict() -> Result<()> {
    let scope = Scope::across_nodes("probes", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    // A pod that starts under STRICT, beside one that was there before.
    let mut late = workload::deployment("late", 1, None);
    late["spec"]["template"]["spec"]["serviceAccountName"] = json!("web");
    scope.apply(&late)?;
    scope.ready()?;
    // Ten times as long as three probes that fail, after which the kubelet restarts a container.
    thread::sleep(Duration::from_secs(30));
    scope.ensure_no_restarts()?;
    let unhealthy = scope.list(&["events", "--field-selector=reason=Unhealthy"])?;
    let late =
        unhealthy.iter().filter(|event| !event["message"].as_str().is_some_and(|it| it.contains("refused")));
    let late: Vec<_> = late.map(|event| event["message"].to_string()).collect();
    ensure!(late.is_empty(), "probes failed: {late:?}");
    Ok(())
}
