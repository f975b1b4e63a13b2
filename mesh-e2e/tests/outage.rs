//! The API server away while requests flow.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use mesh_e2e::audit::{self, Request};
use mesh_e2e::cluster::Stopped;
use mesh_e2e::{Enrolled, SOON, Scope, Traffic, cluster, eventually, kubectl, mesh, meshctl, workload};
use serde_json::{Value, json};

/// Seconds without an API server: longer than the control plane uses what it was told of a token without
/// asking again.
const OUTAGE: u64 = 90;
/// Seconds that certificates live: each is renewed several times in that, or runs out.
const LIFETIME: i64 = 40;
/// Who watches.
const ACCOUNTS: [&str; 2] = ["mesh-control", "mesh-agent"];
/// Replicas of the control plane, and nodes.
const PROCESSES: usize = 2;

fn outage() -> Result<Duration> {
    let seconds = env::var("NODEMESH_E2E_OUTAGE").ok().map(|text| text.parse());
    let seconds = seconds.transpose().context("NODEMESH_E2E_OUTAGE is not a number of seconds")?;
    Ok(Duration::from_secs(seconds.unwrap_or(OUTAGE)))
}

#[test]
fn traffic_goes_on_without_the_api_server_and_changes_take_effect_after_it() -> Result<()> {
    if !cluster::is_local() {
        println!("not run: only the local cluster's API server can be stopped");
        return Ok(());
    }
    let _short_lives = mesh::Values::set(&[&format!("control.workloadCertTtl={LIFETIME}s")])?;
    let [first, second] = cluster::nodes()?;
    let scope = Scope::new("outage", Enrolled::Yes)?;
    scope.apply(&workload::list(&[
        mesh::strict(),
        workload::server("web", 2, Some(&second)),
        workload::client("client", Some(&first)),
    ]))?;
    scope.ready()?;
    let (traffic, before) = Traffic::start(&scope, &first)?;

    let stopped = Stopped::stop("kube-apiserver")?;
    ensure!(kubectl::run(&["get", "nodes", "--request-timeout=2s"]).is_err(), "the API server still answers");
    thread::sleep(outage()?);
    let (asked, returned) = (audit::requests()?.len(), now()?);
    drop(stopped);
    let back = Instant::now();

    eventually("the API server is back", SOON, || kubectl::run(&["get", "nodes"]))?;
    certificates_were_renewed(&scope, returned)?;
    let tally = eventually("logs can be read", SOON, || traffic.tally())?.since(&before)?;
    println!("API server away for {} s: {tally}", outage()?.as_secs());
    ensure!(tally.failed.is_empty() && tally.hung.is_empty(), "{tally}");
    ensure!(u128::try_from(tally.ok)? > outage()?.as_millis() / 100, "{tally}");

    // All converge: a policy that is made now is in force soon.
    eventually("the client is answered", SOON, || scope.fetch("client", "http://web"))?;
    scope.apply(&mesh::authorization("nobody", "web", "ALLOW", &json!([])))?;
    eventually("a new policy is in force", SOON, || {
        ensure!(scope.fetch("client", "http://web").is_err(), "the client is answered");
        Ok(())
    })?;
    println!("the mesh follows its policies {:.0} s after its return", back.elapsed().as_secs_f64());
    let requests = audit::requests()?;
    no_storm(&requests[..asked], &requests[asked..])?;
    mesh::wait_ready()?;
    println!("all of the mesh is ready {:.0} s after its return", back.elapsed().as_secs_f64());
    wake_cluster(&[first, second])?;
    cluster_follows(&scope)
}

/// The cluster's own parts wait up to a minute and a half before they ask an API server again that was away
/// for long, and whatever comes after this test would wait for them. Started anew they ask at once.
fn wake_cluster(nodes: &[String; 2]) -> Result<()> {
    let mut processes = vec!["kube-controller-manager".to_owned(), "kube-scheduler".to_owned()];
    processes
        .extend(nodes.iter().flat_map(|node| ["kubelet", "kube-proxy"].map(|it| format!("{node}-{it}"))));
    for process in &processes {
        drop(Stopped::stop(process)?);
    }
    for step in [&["restart"][..], &["status", "--timeout=180s"]] {
        let coredns = ["deployment/coredns", "--namespace", "kube-system"];
        kubectl::run(&[&["rollout"], step, &coredns].concat())?;
    }
    Ok(())
}

/// Waits until a pod and a Service that are new are found by name.
fn cluster_follows(scope: &Scope) -> Result<()> {
    scope.kubectl(&["delete", "authorizationpolicies.security.istio.io", "--all"])?;
    scope.apply(&workload::list(&[workload::server("new", 1, None), workload::client("asker", None)]))?;
    scope.ready()?;
    eventually("a new Service is found", 2 * SOON, || scope.fetch("asker", "http://new")).map(drop)
}

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

/// The certificates of the namespace that agents hold now were made before the API server `returned`, in its
/// last seconds away: later than any answer to a question about a token that still counted without asking.
fn certificates_were_renewed(scope: &Scope, returned: i64) -> Result<()> {
    let all = eventually("agents can be asked", SOON, || meshctl::json(&["certs"]))?;
    let part = format!("/ns/{}/", scope.name());
    let own = |entry: &&Value| entry["identity"].as_str().is_some_and(|identity| identity.contains(&part));
    let ends: Vec<_> =
        all.as_array().into_iter().flatten().filter(own).map(|entry| entry["notAfter"].as_i64()).collect();
    println!(
        "certificates end, in seconds from the API server's return: {:?}",
        seconds_from(returned, &ends)
    );
    ensure!(ends.len() >= 3, "client, traffic and web have certificates, but there are {}", ends.len());
    ensure!(ends.iter().all(|end| end.is_some_and(|end| end > returned)), "one ran out meanwhile: {all}");
    Ok(())
}

fn seconds_from(start: i64, ends: &[Option<i64>]) -> Vec<i64> {
    ends.iter().flatten().map(|end| end - start).collect()
}

/// Each watch is taken up where it was, or at worst listed once more: no more lists than kinds that each
/// process watched before.
fn no_storm(before: &[Request], requests: &[Request]) -> Result<()> {
    let mut counts = BTreeMap::<_, usize>::new();
    for request in requests.iter().filter(|request| ["list", "watch"].contains(&request.verb.as_str())) {
        *counts.entry((request.account.as_str(), request.verb.as_str())).or_default() += 1;
    }
    println!("requests after its return: {counts:?}");
    for account in ACCOUNTS {
        let watched = before.iter().filter(|it| it.account == account && it.verb == "watch");
        let kinds: BTreeSet<_> = watched.map(|it| (&it.group, &it.resource)).collect();
        let kinds = kinds.len();
        let lists = counts.get(&(account, "list")).copied().unwrap_or_default();
        ensure!(lists <= kinds * PROCESSES, "{account} listed {lists} times: {counts:?}");
        let watches = counts.get(&(account, "watch")).copied().unwrap_or_default();
        // A watch may find the API server too early once: it does not know its kinds or its rights yet.
        ensure!(
            (1..=3 * kinds * PROCESSES).contains(&watches),
            "{account} watched {watches} times: {counts:?}"
        );
    }
    Ok(())
}
