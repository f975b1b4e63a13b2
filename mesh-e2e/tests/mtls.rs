//! Mutual TLS between nodes, and probes of the kubelet where there is no plaintext.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_e2e::{Capture, Enrolled, SOON, Scope, cluster, eventually, mesh, never_within, workload};
use serde_json::json;

const FAMILIES: [&str; 2] = ["-4", "-6"];
const SECRET: &str = "a secret that nobody between the nodes may read";

/// A client on the first node and a web server on the second.
fn across_nodes(subject: &str, enrolled: Enrolled) -> Result<Scope> {
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new(subject, enrolled)?;
    scope.apply(&workload::list(&[
        workload::server("web", 1, Some(&second)),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    Ok(scope)
}

/// Sends `SECRET` from the first node to the second by both families, and returns what passed between them.
fn captured(scope: &Scope) -> Result<Vec<u8>> {
    for family in FAMILIES {
        let post = || scope.curl("client", &[family, "-d", SECRET, "http://web"]);
        eventually("the Service answers", SOON, post)?;
    }
    let [_, second] = cluster::nodes()?;
    let capture = Capture::start(&second)?;
    for family in FAMILIES {
        for _ in 0..5 {
            let answer = scope.curl("client", &[family, "-d", SECRET, "http://web"])?;
            ensure!(answer.contains(SECRET), "{answer}");
        }
    }
    capture.stop()
}

fn holds(packets: &[u8], text: &str) -> bool {
    packets.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The capture is of all that passes between the nodes, so nothing may run beside this test. The first half shows that it
/// would find plaintext.
#[test]
fn nothing_between_nodes_is_readable() -> Result<()> {
    let packets = captured(&across_nodes("plaintext", Enrolled::No)?)?;
    ensure!(holds(&packets, SECRET) && holds(&packets, "POST / HTTP"), "the capture misses what was sent");

    let scope = across_nodes("mtls", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    let packets = captured(&scope)?;
    ensure!(packets.len() > 5000, "{} bytes are too few for ten requests", packets.len());
    for text in [SECRET, "POST / HTTP", "Content-Length"] {
        ensure!(!holds(&packets, text), "`{text}` was readable between the nodes");
    }
    Ok(())
}

#[test]
fn strict_refuses_plaintext_by_both_families() -> Result<()> {
    let scope = across_nodes("strict", Enrolled::Yes)?;
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
    let scope = across_nodes("probes", Enrolled::Yes)?;
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
