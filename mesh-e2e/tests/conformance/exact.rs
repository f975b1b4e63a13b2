//! What the suite does not look at, since it asks until three answers in a row are right: each of a hundred
//! requests, the path that the server saw, and the whole `Location`.

use anyhow::{Result, ensure};
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, workload};
use serde_json::{Value, json};

use super::{Built, Definitions};

const REQUESTS: usize = 100;

/// What the client in a pod of the suite's image says of one request.
struct Answer {
    lines: Vec<(String, String)>,
}

impl Answer {
    fn all(printed: &str) -> Vec<Self> {
        let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let answers = printed.split("\n\n").filter(|text| !text.trim().is_empty());
        answers.map(|text| Self { lines: text.lines().filter_map(pair).collect() }).collect()
    }

    fn says(&self, key: &str) -> &str {
        self.lines.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    fn location(&self) -> &str {
        let mut headers = self.lines.iter().filter(|(name, _)| name == "ResponseHeader");
        headers.find_map(|(_, header)| header.strip_prefix("Location:")).unwrap_or_default()
    }
}

/// Requests of the pod `echo-v1`, each of which has to be answered.
fn ask(scope: &Scope, arguments: &[&str]) -> Result<Vec<Answer>> {
    let count = format!("--count={REQUESTS}");
    let command = [&["client"], arguments, &[count.as_str()]].concat();
    let answers = Answer::all(&scope.exec("deployment/echo-v1", &command)?);
    ensure!(answers.len() == REQUESTS, "{} answers", answers.len());
    Ok(answers)
}

/// Looks at something of each of a hundred answers, once routes are in force.
fn every(scope: &Scope, arguments: &[&str], wanted: &str, shown: impl Fn(&Answer) -> String) -> Result<()> {
    eventually(&format!("{arguments:?} gets {wanted}"), SOON, || {
        let others: Vec<_> = ask(scope, arguments)?.iter().map(&shown).filter(|it| it != wanted).collect();
        ensure!(others.is_empty(), "{} others: {others:?}", others.len());
        Ok(())
    })
}

/// The version of the pod that answered, and the path that it saw.
fn server(answer: &Answer) -> String {
    // `echo-v1-` and two parts that Kubernetes made up.
    let version = answer.says("Hostname").split('-').nth(1).unwrap_or_default();
    format!("{} {version} {}", answer.says("StatusCode"), answer.says("URL"))
}

fn redirect(answer: &Answer) -> String {
    format!("{} {}", answer.says("StatusCode"), answer.location())
}

fn ports() -> Value {
    json!({"ports": [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "grpc", "port": 7070, "appProtocol": "kubernetes.io/h2c"},
    ]})
}

fn version(version: &str, node: &str, image: &str) -> Value {
    let name = format!("echo-{version}");
    let mut deployment = workload::deployment(&name, 1, Some(node));
    deployment["spec"]["template"]["metadata"]["labels"]["set"] = json!("echo");
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["containers"] = json!([{"name": "echo", "image": image, "imagePullPolicy": "IfNotPresent"}]);
    workload::list(&[workload::account(&name), deployment, workload::service(&name, &ports())])
}

/// The Service `echo` of both versions, on a node each.
fn echo(scope: &Scope, image: &str) -> Result<()> {
    let [first, second] = cluster::nodes()?;
    let mut both = ports();
    both["selector"] = json!({"set": "echo"});
    scope.apply(&workload::list(&[
        workload::service("echo", &both),
        version("v1", &first, image),
        version("v2", &second, image),
    ]))?;
    scope.ready()
}

fn route(kind: &str, port: u16, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": kind.to_lowercase()},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "echo", "port": port}],
            "rules": rules,
        },
    })
}

fn prefix(path: &str) -> Value {
    json!([{"path": {"type": "PathPrefix", "value": path}}])
}

fn redirected(path: &str, redirect: &Value) -> Value {
    json!({"matches": prefix(path), "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]})
}

fn rewritten(path: &str, to: &Value) -> Value {
    json!({
        "matches": prefix(path), "filters": [{"type": "URLRewrite", "urlRewrite": {"path": to}}],
        "backendRefs": [{"name": "echo-v2", "port": 80}],
    })
}

/// The one backend of a rule.
fn to(version: &str, port: u16) -> Value {
    json!([{"name": format!("echo-{version}"), "port": port}])
}

fn request_rules() -> Value {
    let full = |path: &str| json!({"type": "ReplaceFullPath", "replaceFullPath": path});
    let start = |path: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": path});
    let mut testers = prefix("/one");
    testers[0]["headers"] = json!([{"name": "user", "value": "test"}]);
    json!([
        {"matches": prefix("/one"), "backendRefs": to("v1", 80)},
        {"matches": testers, "backendRefs": to("v2", 80)},
        rewritten("/prefix", &start("/short")),
        rewritten("/strip", &start("/")),
        rewritten("/full", &full("/whole")),
        redirected("/host", &json!({"hostname": "example.org"})),
        redirected("/port", &json!({"port": 8083})),
        redirected("/scheme", &json!({"scheme": "https"})),
        redirected("/old", &json!({"path": start("/new"), "statusCode": 308})),
        redirected("/all", &json!({
            "scheme": "https", "hostname": "example.org", "port": 8443, "path": full("/there"),
            "statusCode": 301,
        })),
    ])
}

fn call_rules() -> Value {
    let user = |name: &str| json!([{"headers": [{"name": "user", "value": name}]}]);
    let change = json!({
        "set": [{"name": "own-set", "value": "new"}], "add": [{"name": "own-add", "value": "second"}],
        "remove": ["own-gone"],
    });
    let modifier = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": change}]);
    json!([
        {"matches": user("test"), "backendRefs": to("v2", 7070)},
        {"matches": user("changed"), "filters": modifier, "backendRefs": to("v2", 7070)},
        {"backendRefs": to("v1", 7070)},
    ])
}

#[test]
fn every_request_and_every_call_goes_where_its_route_says() -> Result<()> {
    let built = Built::find()?;
    let scope = Scope::new("exact", Enrolled::Yes)?;
    let _definitions = Definitions::apply(&built)?;
    echo(&scope, &built.image()?)?;
    scope.apply(&route("HTTPRoute", 80, &request_rules()))?;
    requests(&scope)?;
    scope.apply(&route("GRPCRoute", 7070, &call_rules()))?;
    calls(&scope)
}

fn requests(scope: &Scope) -> Result<()> {
    for (path, wanted) in [
        ("/one?a=b", "200 v1 /one?a=b"),
        ("/prefix/x?a=b", "200 v2 /short/x?a=b"),
        ("/prefix", "200 v2 /short"),
        ("/strip/x", "200 v2 /x"),
        ("/strip", "200 v2 /"),
        ("/full/x?a=b", "200 v2 /whole?a=b"),
        ("/prefixes", "404  "),
        ("/", "404  "),
    ] {
        every(scope, &[&format!("http://echo{path}")], wanted, server)?;
    }
    every(scope, &["http://echo/one", "-H", "user:test"], "200 v2 /one", server)?;
    for (path, wanted) in [
        ("/host/x?a=b", "302 http://example.org/host/x?a=b"),
        ("/port/x", "302 http://echo:8083/port/x"),
        ("/scheme/x", "302 https://echo/scheme/x"),
        ("/old/x?a=b", "308 http://echo/new/x?a=b"),
        ("/all/x", "301 https://example.org:8443/there"),
    ] {
        every(scope, &[&format!("http://echo{path}")], wanted, redirect)?;
    }
    Ok(())
}

/// All calls of a client share its connection.
fn calls(scope: &Scope) -> Result<()> {
    const METHOD: &str = "/nodemesh.conformance.Echo/Call";
    every(scope, &["grpc://echo:7070"], &format!("200 v1 {METHOD}"), server)?;
    every(scope, &["grpc://echo:7070", "-H", "user:test"], &format!("200 v2 {METHOD}"), server)?;
    let changed =
        [&["grpc://echo:7070"][..], &metadata(&["user:changed", "own-set:a", "own-add:first", "own-gone:a"])];
    every(scope, &changed.concat(), "own-add:first own-add:second own-set:new", own_headers)
}

fn metadata<'a>(pairs: &[&'a str]) -> Vec<&'a str> {
    pairs.iter().flat_map(|pair| ["-H", *pair]).collect()
}

/// What the server got of the headers that this test sends.
fn own_headers(answer: &Answer) -> String {
    let headers = answer.lines.iter().filter(|(name, _)| name == "RequestHeader");
    let own = headers.map(|(_, header)| header.as_str()).filter(|header| header.starts_with("own-"));
    own.collect::<Vec<_>>().join(" ")
}
