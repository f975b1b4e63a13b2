//! The steps of the demo that route HTTP requests.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, NAMESPACE, eventually};
use super::evidence::{Sample, last_access};
use super::steps::{CLIENT, heading, show};
use crate::command::CommandExt;

/// Requests of each step.
const REQUESTS: usize = 500;
/// A header that tells testers.
const TESTER: &str = "user: test";
/// Routes of all requests to all pods of the service, the broken one too.
const ALL_PODS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: demo}
spec:
  hosts: [reviews]
  http:
";

/// All steps.
pub fn all(cluster: &Cluster) -> Result<()> {
    cluster.apply_directory("demo-routing")?;
    split_by_weight(cluster)?;
    send_testers_elsewhere(cluster)?;
    ask_why(cluster)?;
    hide_a_failing_pod(cluster)?;
    inject_a_fault(cluster)?;
    open_a_breaker(cluster)
}

/// Who answered requests, or their statuses; sent one after the other on one connection.
fn answers(cluster: &Cluster, count: usize, arguments: &[&str]) -> Result<BTreeMap<String, usize>> {
    let url = format!("http://reviews/?n=[1-{count}]");
    let mut program = vec!["curl", "-sS", "--max-time", "20"];
    program.extend(arguments);
    program.push(&url);
    let ran = cluster.exec(CLIENT, &program)?;
    ensure!(ran.success, "the client got no answers from {url}: {}", ran.stderr.trim());
    let mut counts = BTreeMap::new();
    for line in ran.stdout.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn say_counts(arguments: &str, counts: &BTreeMap<String, usize>) {
    say!("$ curl {arguments}http://reviews/     (in pod {CLIENT}, {} times)", counts.values().sum::<usize>());
    for (who, count) in counts {
        say!("{count:>4} × {who}");
    }
}

fn split_by_weight(cluster: &Cluster) -> Result<()> {
    heading("A canary: 80 of 100 requests to version 1, 20 to version 2, counted by who answered");
    // Two versions answer once the routes are in force, and the broken pod no longer does.
    eventually("routes in force", || {
        let counts = answers(cluster, 40, &[])?;
        Ok((!counts.contains_key("broken")).then_some(()))
    })?;
    let counts = answers(cluster, REQUESTS, &[])?;
    say_counts("", &counts);
    let canary = counts.get("v2").copied().unwrap_or(0);
    // Five standard deviations of the binomial distribution.
    ensure!((56..=144).contains(&canary), "{canary} of {REQUESTS} requests went to version 2");
    ensure!(counts.len() == 2, "others than the two versions answered: {counts:?}");
    Ok(())
}

fn send_testers_elsewhere(cluster: &Cluster) -> Result<()> {
    heading("Testers, whom a header tells, always get version 2");
    let counts = answers(cluster, REQUESTS, &["-H", TESTER])?;
    say_counts(&format!("-H '{TESTER}' "), &counts);
    ensure!(counts.keys().all(|who| who == "v2"), "a tester got another version: {counts:?}");
    Ok(())
}

fn ask_why(cluster: &Cluster) -> Result<()> {
    heading("Why did it go there? Match by match");
    let from = format!("{NAMESPACE}/{CLIENT}");
    for header in [None, Some(TESTER)] {
        let mut arguments = vec!["why", &from, "http://reviews/"];
        arguments.extend(header.iter().flat_map(|header| ["-H", header]));
        let answer = cluster.meshctl(&arguments).outcome()?;
        say!("$ meshctl {}", arguments.join(" "));
        show(&answer.stdout);
        let expected = if header.is_some() { "route 1 \"testers\": fits" } else { "80 % to reviews" };
        let all = format!("{}{}", answer.stdout, answer.stderr);
        ensure!(all.contains(expected), "meshctl why does not say `{expected}`: {all}");
    }
    Ok(())
}

fn hide_a_failing_pod(cluster: &Cluster) -> Result<()> {
    heading("A pod that answers 503, hidden by retries");
    cluster.apply_text(&format!(
        "{ALL_PODS}  - route: [{{destination: {{host: reviews}}}}]\n    retries: {{attempts: 0}}\n"
    ))?;
    let seen = eventually("an answer of the broken pod", || {
        let counts = answers(cluster, 60, &[])?;
        Ok(counts.contains_key("broken").then_some(counts))
    })?;
    say!("without retries:");
    say_counts("", &seen);
    cluster.apply_text(&format!(
        "{ALL_PODS}  - route: [{{destination: {{host: reviews}}}}]\n    retries: {{attempts: 3, retryOn: '5xx'}}\n"
    ))?;
    let hidden = eventually("requests without a failure", || {
        let counts = answers(cluster, 60, &[])?;
        Ok((!counts.contains_key("broken")).then_some(counts))
    })?;
    say!("with `retries: {{attempts: 3, retryOn: 5xx}}`:");
    say_counts("", &hidden);
    let line = eventually("a request in the access log that took two attempts", || {
        let fields = [("protocol", "http"), ("status", "200"), ("attempts", "2")];
        Ok(last_access(&cluster.agent_logs()?, &fields).map(str::to_owned))
    })?;
    say!("access log of a request that took two attempts:\n{line}");
    Ok(())
}

fn inject_a_fault(cluster: &Cluster) -> Result<()> {
    heading("A fault, injected: every second request ends with 555");
    cluster.apply_text(&format!(
        "{ALL_PODS}  - route: [{{destination: {{host: reviews, subset: v1}}}}]\n    fault: {{abort: {{httpStatus: 555, percentage: {{value: 50}}}}}}\n"
    ))?;
    let counts = eventually("a fault", || {
        let counts = answers(cluster, REQUESTS, &["-o", "/dev/null", "-w", "%{http_code}\n"])?;
        let faults = counts.get("555").copied().unwrap_or(0);
        Ok((faults > REQUESTS / 3).then_some(counts))
    })?;
    say_counts("-o /dev/null -w '%{http_code}' ", &counts);
    let metrics = cluster.metrics()?;
    let injected = [("response_code", "555"), ("response_flags", "FI")];
    let samples = Sample::find(&metrics, "istio_requests_total", &injected);
    let sample = samples.first().context("the faults were not counted")?;
    say!(
        "{}",
        sample.shown_with(&["source_workload", "destination_service", "response_code", "response_flags"])
    );
    Ok(())
}

fn open_a_breaker(cluster: &Cluster) -> Result<()> {
    heading("A breaker: a pod that fails twice in a row is left out");
    cluster.apply_text(&format!(
        "{ALL_PODS}  - route: [{{destination: {{host: reviews}}}}]\n    retries: {{attempts: 0}}\n---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: demo}}
spec:
  host: reviews
  trafficPolicy:
    outlierDetection: {{consecutive5xxErrors: 2, baseEjectionTime: 1m, maxEjectionPercent: 50}}
"
    ))?;
    let counts = eventually("a breaker that is open", || {
        let counts = answers(cluster, 60, &[])?;
        Ok((counts.contains_key("v2") && !counts.contains_key("broken")).then_some(counts))
    })?;
    say_counts("", &counts);
    let lines = cluster.agent_logs()?;
    let ejected = lines.iter().rfind(|line| line.contains("eject")).context("the ejection was not logged")?;
    say!("log of the agent that left it out:\n{ejected}");
    Ok(())
}
