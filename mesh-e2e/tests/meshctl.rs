//! What meshctl says of the mesh on a cluster, through the kubeconfig alone, and how it takes pods in and
//! lets them go.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::process::Output;

use anyhow::ensure;
use mesh_e2e::meshctl::{answer, json, output};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, mesh, workload};
use serde_json::{Value, json};

fn meshctl(arguments: &[&str]) -> Output {
    output(arguments).unwrap()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A client, and a server that is only for it.
fn shop(enrolled: Enrolled) -> Scope {
    let [one, other] = cluster::nodes().unwrap();
    let scope = Scope::new("meshctl", enrolled).unwrap();
    let rules = json!([{"from": [{"source": {"principals": [
        format!("cluster.local/ns/{}/sa/client", scope.name())
    ]}}]}]);
    scope
        .apply(&workload::list(&[
            workload::client("client", Some(&one)),
            workload::client("stranger", Some(&one)),
            workload::server("web", 1, Some(&other)),
            mesh::authorization("clients", "web", "ALLOW", &rules),
        ]))
        .unwrap();
    scope.ready().unwrap();
    scope
}

#[test]
fn status_has_a_row_for_each_node_and_one_leader() {
    mesh::wait_ready().unwrap();
    let status = eventually("all is well", SOON, || {
        let output = meshctl(&["status"]);
        let status = answer(&output)?;
        // Pods of other tests may be on their way, or not to be taken in.
        ensure!(matches!(output.status.code(), Some(0 | 3)), "{status}");
        Ok(status)
    });
    let status = status.unwrap();
    let rows: Vec<_> = items(&status["nodes"]).iter().filter_map(|it| it["node"].as_str()).collect();
    for node in cluster::nodes().unwrap() {
        assert!(rows.contains(&node.as_str()), "{node} has no row: {status}");
    }
    let leaders = items(&status["control"]).iter().filter(|it| it["leader"] == true).count();
    assert_eq!(leaders, 1, "{status}");
    assert!(items(&status["nodes"]).iter().all(|it| it["lag"].is_u64()), "{status}");
}

#[test]
fn check_finds_nothing_that_fails() {
    mesh::wait_ready().unwrap();
    eventually("check finds all in order", SOON, || {
        let output = meshctl(&["check"]);
        let findings = answer(&output)?;
        let failed = items(&findings).iter().find(|it| it["result"] == "fail");
        ensure!(output.status.success() && failed.is_none(), "{findings}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn check_fails_for_what_an_installation_would_refuse() {
    mesh::wait_ready().unwrap();
    let output = meshctl(&["check", "--pre"]);
    let findings = answer(&output).unwrap();
    let failed: Vec<_> = items(&findings).iter().filter(|it| it["result"] == "fail").collect();
    let [refused] = failed[..] else { panic!("not one failure: {findings}") };
    assert_eq!((&refused["check"], output.status.code()), (&"installation".into(), Some(1)), "{findings}");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("was installed by helm") && detail.contains("--wait"), "{detail}");
    let install = String::from_utf8(meshctl(&["install"]).stderr).unwrap();
    assert!(install.contains(detail), "{install}");
}

#[test]
fn a_namespace_goes_in_and_out_while_its_pods_run() {
    let scope = shop(Enrolled::No);
    let before = scope.incarnations().unwrap();
    let rehearsed = json(&["enroll", scope.name(), "--dry-run"]).unwrap();
    assert!(items(&rehearsed["pods"]).iter().all(|pod| pod["state"].is_null()), "{rehearsed}");

    let enrolled = meshctl(&["enroll", scope.name()]);
    assert!(enrolled.status.success(), "{enrolled:?}");
    let enrolled = answer(&enrolled).unwrap();
    let states: Vec<_> = items(&enrolled["pods"]).iter().map(|pod| &pod["state"]).collect();
    assert_eq!(states, ["enrolled"; 3], "{enrolled}");

    let pod = format!("{}/stranger", scope.name());
    let left = json(&["unenroll", "--pod", &pod]).unwrap();
    assert_eq!(left["pods"][0]["selected"], false, "{left}");
    let gone = meshctl(&["unenroll", scope.name()]);
    assert!(gone.status.success(), "{gone:?}");
    let gone = answer(&gone).unwrap();
    assert!(items(&gone["pods"]).iter().all(|pod| pod["state"] != "enrolled"), "{gone}");
    assert_eq!(scope.incarnations().unwrap(), before, "no pod was restarted for it");
}

#[test]
fn why_says_before_a_connection_what_becomes_of_it() {
    let scope = shop(Enrolled::Yes);
    let ask = |pod: &str| meshctl(&["why", &format!("{}/{pod}", scope.name()), "web:80"]);
    eventually("the client would be let in, and the stranger not", SOON, || {
        let (client, stranger) = (ask("client"), ask("stranger"));
        ensure!(client.status.code() == Some(0), "{client:?}");
        ensure!(stranger.status.code() == Some(3), "{stranger:?}");
        Ok(())
    })
    .unwrap();
    eventually("the client is let in", SOON, || scope.fetch("client", "http://web")).unwrap();
    scope.fetch("stranger", "http://web").unwrap_err();

    let [one, _] = cluster::nodes().unwrap();
    let certificates = json(&["certs", "--node", &one]).unwrap();
    let identity = format!("spiffe://cluster.local/ns/{}/sa/client", scope.name());
    let own = items(&certificates).iter().find(|it| it["identity"] == identity.as_str()).unwrap();
    assert_eq!((&own["state"], &own["node"]), (&"valid".into(), &one.into()), "{certificates}");
    let policies = json(&["policies"]).unwrap();
    let policy = items(&policies).iter().find(|it| it["namespace"] == scope.name()).unwrap();
    assert_eq!((&policy["name"], &policy["workloads"]), (&"clients".into(), &1.into()), "{policies}");
}

/// Holds a port of the mesh, so that the agent can't listen there.
const IN_THE_WAY: &str = "
import socket
server = socket.create_server(('::', 15008), family=socket.AF_INET6, dualstack_ipv6=True)
server.accept()
";

/// A client and a server, a pod that no node may have, one that its node refuses, and one that the agent
/// can't take in.
fn shop_with_misfits() -> Scope {
    let [one, _] = cluster::nodes().unwrap();
    let scope = shop(Enrolled::No);
    let stubborn = workload::pod_spec("default", Some(&one), &["python3", "-u", "-c", IN_THE_WAY]);
    let lost = workload::pod_spec("default", Some("no-such-node"), &["sleep", "infinity"]);
    let mut greedy = workload::pod_spec("default", None, &["sleep", "infinity"]);
    // Past the scheduler, which would not place it.
    greedy["nodeName"] = one.into();
    greedy["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    scope.apply(&workload::pod("stubborn", &stubborn)).unwrap();
    let listens = ["grep", "-q", ":3AA0", "/proc/net/tcp6"];
    eventually("the program listens", SOON, || scope.exec("stubborn", &listens)).unwrap();
    scope
        .apply(&workload::list(&[
            workload::pod("lost", &lost),
            workload::service("lost", &json!({})),
            workload::pod("greedy", &greedy),
        ]))
        .unwrap();
    scope.enrol().unwrap();
    scope
}

#[test]
fn pods_that_are_not_in_the_mesh_come_first_with_the_reason() {
    let scope = shop_with_misfits();
    let misfits = [
        ("lost", "pending", "no address yet: it is not scheduled"),
        ("greedy", "failed", "OutOfcpu"),
        ("stubborn", "failed", "15008"),
    ];
    for (pod, state, reason) in misfits {
        let name = format!("{}/{pod}", scope.name());
        eventually(&format!("why says what {pod} lacks"), SOON, || {
            let output = meshctl(&["why", &name, "web:80"]);
            let explained = answer(&output)?;
            let first = &explained["notEnrolled"][0];
            ensure!(output.status.code() == Some(3) && first["pod"] == name.as_str(), "{explained}");
            ensure!(first["state"] == state, "{explained}");
            ensure!(first["reason"].as_str().is_some_and(|it| it.contains(reason)), "{explained}");
            Ok(())
        })
        .unwrap();
        eventually(&format!("status and check say what {pod} lacks"), SOON, || {
            let output = meshctl(&["status"]);
            let status = answer(&output)?;
            let told = items(&status["notEnrolled"]).iter().find(|it| it["pod"] == name.as_str());
            ensure!(told.is_some_and(|it| it["state"] == state) && !output.status.success(), "{status}");
            let findings = json(&["check"])?;
            let found = items(&findings).iter().find(|it| it["check"] == format!("pod {name}"));
            let detail = found.and_then(|it| it["detail"].as_str()).unwrap_or_default();
            ensure!(found.is_some_and(|it| it["result"] == "warn") && detail.contains(reason), "{findings}");
            Ok(())
        })
        .unwrap();
    }
    a_service_is_explained_by_its_pods_and_for_both_families(&scope);
}

fn a_service_is_explained_by_its_pods_and_for_both_families(scope: &Scope) {
    let client = format!("{}/client", scope.name());
    eventually("a service without endpoints is explained by its pods", SOON, || {
        let output = meshctl(&["why", &client, "lost:80"]);
        let explained = answer(&output)?;
        let lost = format!("{}/lost", scope.name());
        ensure!(output.status.code() == Some(3), "{explained}");
        ensure!(explained["notEnrolled"][0]["pod"] == lost.as_str(), "{explained}");
        Ok(())
    })
    .unwrap();
    eventually("a service of both families is explained for each", SOON, || {
        let output = meshctl(&["why", &client, "web:80"]);
        let explained = answer(&output)?;
        let addresses: Vec<_> = items(&explained["routes"]).iter().map(|it| it["address"].as_str()).collect();
        let families = |v6: bool| addresses.iter().flatten().filter(|it| it.starts_with('[') == v6).count();
        ensure!((families(false), families(true)) == (1, 1), "{explained}");
        ensure!(output.status.success(), "{explained}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn labels_are_those_of_the_clusters_objects() {
    let scope = shop(Enrolled::Yes);
    let names = |arguments: &[&str]| {
        let list = json(&[arguments, &["-n", scope.name()]].concat())?;
        let names = items(&list).iter().map(|it| it["name"].as_str().unwrap_or_default().to_owned());
        anyhow::Ok(names.collect::<Vec<_>>())
    };
    eventually("the agents know the pods", SOON, || {
        ensure!(names(&["workloads", "-l", "app in (client,stranger)"])? == ["client", "stranger"]);
        ensure!(names(&["workloads", "-l", "app,app!=client,app!=stranger"])?.len() == 1);
        Ok(())
    })
    .unwrap();
    scope.kubectl(&["label", "authorizationpolicies.security.istio.io/clients", "team=shop"]).unwrap();
    assert_eq!(names(&["policies", "-l", "team=shop"]).unwrap(), ["clients"]);
    assert_eq!(names(&["policies", "-l", "!team"]).unwrap(), [""; 0]);
    let certificates = json(&["certs", "-n", scope.name(), "-l", "app=client"]).unwrap();
    let is_clients = |it: &Value| it["identity"].as_str().is_some_and(|it| it.ends_with("/sa/client"));
    assert!(
        !items(&certificates).is_empty() && items(&certificates).iter().all(is_clients),
        "{certificates}"
    );
}

/// Verbs whose answers others parse, since they change the whole mesh, and one that prints a script.
const ELSEWHERE: [(&str, &str); 3] =
    [("uninstall", "uninstall"), ("rotate-root", "rotation"), ("completions", "a script")];

/// As `--help` lists them.
fn verbs() -> Vec<String> {
    let help = String::from_utf8(meshctl(&["--help"]).stdout).unwrap();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let verbs = listed.take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  "));
    let names =
        verbs.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_verb_answers_a_script_in_json() {
    let scope = shop(Enrolled::Yes);
    let client = format!("{}/client", scope.name());
    let asked = [
        &["status"][..],
        &["workloads"],
        &["services"],
        &["policies"],
        &["certs"],
        &["connections", "-A"],
        &["check"],
        &["check", "--pre"],
        &["version"],
        &["why", &client, "web:80"],
        &["enroll", scope.name()],
        &["enroll", scope.name(), "--dry-run"],
        &["unenroll", scope.name(), "--dry-run"],
        &["install", "--dry-run"],
    ];
    for verb in asked {
        let parsed = json(verb);
        assert!(parsed.as_ref().is_ok_and(|it| it.is_array() || it.is_object()), "{verb:?}: {parsed:?}");
    }
    let known: Vec<_> = asked.iter().map(|verb| verb[0]).chain(ELSEWHERE.map(|(verb, _)| verb)).collect();
    let all = verbs();
    assert!(all.len() > 10, "{all:?}");
    assert!(all.iter().all(|verb| known.contains(&verb.as_str())), "one of {all:?} is not asked");
}

#[test]
fn what_is_not_there_is_named() {
    let said = |arguments: &[&str]| String::from_utf8(meshctl(arguments).stderr).unwrap();
    assert!(said(&["why", "default/nobody", "web:80"]).contains("there is no pod default/nobody"));
    assert!(said(&["enroll", "no-such-namespace"]).contains("there is no namespace no-such-namespace"));
    assert!(said(&["enroll", mesh::NAMESPACE]).contains("its pods stay out"));
    assert!(said(&["certs", "--node", "no-such-node"]).contains("no agent answered on no-such-node"));
}
