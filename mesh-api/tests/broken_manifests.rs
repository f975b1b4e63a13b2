//! Every file of `tests/broken` has one mistake. Each must be named by line, resource and field, with a way
//! out, and must not keep the other documents of its file from being read.

use std::{collections::BTreeSet, fs, path::Path};

use mesh_api::manifest::{self, ParsedManifest};

struct Mistake {
    file: &'static str,
    line: u32,
    resource: &'static str,
    field: &'static str,
    /// Part of the problem.
    problem: &'static str,
    /// Part of the fix.
    fix: &'static str,
}

macro_rules! mistakes {
    ($($file:literal, $line:literal, $resource:expr, $field:literal, $problem:literal => $fix:literal;)*) => {
        [$(Mistake { file: $file, line: $line, resource: $resource, field: $field, problem: $problem, fix: $fix }),*]
    };
}

const POLICY: &str = "AuthorizationPolicy shop/web";
const PEER: &str = "PeerAuthentication shop/web";
const RULE: &str = "DestinationRule shop/web";
const SERVICE: &str = "Service shop/web";

const MISTAKES: [Mistake; 44] = mistakes! {
    "syntax", 9, POLICY, "spec.rules[0].from[0]", "not valid YAML" => "brackets";
    "tab", 7, PEER, "spec", "tab" => "indent with spaces";
    "duplicate-key", 9, POLICY, "spec.action", "already there, at line 7" => "keep one";
    "missing-kind", 1, "(no kind) default/web", "kind", "missing" => "add `kind`";
    "missing-name", 3, "Service shop/(no name)", "metadata.name", "missing" => "add `name`";
    "bad-name", 4, "Namespace ../etc", "metadata.name", "not a name" => "lower-case";
    "misspelt-metadata", 5, "AuthorizationPolicy default/web", "metadata.namspace", "unknown field" => "did you mean `namespace`?";
    "bad-time", 6, "Pod shop/web", "metadata.creationTimestamp", "not a time" => "2026-11-23T12:00:00Z";
    "probe-without-action", 9, "Pod shop/web", "spec.containers[0].readinessProbe", "what to do" => "`httpGet`";
    "unknown-kind", 2, "AuthorisationPolicy shop/web", "kind", "unknown kind" => "did you mean `AuthorizationPolicy`?";
    "wrong-api-version", 1, PEER, "apiVersion", "does not serve" => "`security.istio.io/v1`";
    "unknown-field", 11, POLICY, "spec.rules[0].users", "unknown field" => "`from`, `to`, `when`";
    "misspelt-field", 11, POLICY, "spec.rules[0].from[0].source.notPrincipal", "unknown field" => "did you mean `notPrincipals`?";
    "field-outside-spec", 6, PEER, "mtls", "unknown field" => "move it under `spec`";
    "wrong-type", 10, POLICY, "spec.rules[0].to[0].operation.ports", "must be a list, but is the string" => "write a list";
    "number-for-string", 12, POLICY, "spec.rules[0].to[0].operation.ports[1]", "must be a string, but is the number 443" => "\"443\"";
    "bad-enum", 7, POLICY, "spec.action", "\"FORBID\"" => "`ALLOW`, `DENY`, `AUDIT`, `CUSTOM`";
    "misspelt-enum", 8, PEER, "spec.mtls.mode", "\"STRIKT\"" => "did you mean `STRICT`?";
    "bad-cidr", 12, POLICY, "spec.rules[0].from[0].source.ipBlocks[1]", "10.1.0.0/33" => "10.0.0.0/8";
    "port-too-large", 10, POLICY, "spec.rules[0].to[0].operation.ports[0]", "70000" => "1 to 65535";
    "port-zero", 9, SERVICE, "spec.ports[0].port", "0 is not a port" => "1 to 65535";
    "bad-duration", 11, RULE, "spec.trafficPolicy.connectionPool.tcp.connectTimeout", "must be a duration" => "`5s`";
    "endless-duration", 10, RULE, "spec.trafficPolicy.outlierDetection.baseEjectionTime", "not a duration" => "at most 10,000 years";
    "bad-account", 8, "Pod shop/web", "spec.serviceAccountName", "not a name" => "lower-case";
    "ports-without-selector", 7, PEER, "spec.portLevelMtls", "need a selector" => "add `selector";
    "deny-without-rules", 6, POLICY, "spec", "no effect" => "`rules: [{}]`";
    "empty-from", 8, POLICY, "spec.rules[0].from", "`from` is empty" => "remove `from` to match all";
    "empty-source", 9, POLICY, "spec.rules[0].from[0].source", "`source` is empty" => "remove `from` to match all";
    "empty-string", 11, POLICY, "spec.rules[0].from[0].source.namespaces[0]", "empty" => "write a value";
    "star-within", 10, POLICY, "spec.rules[0].from[0].source.principals[0]", "`*` in the middle" => "the beginning or the end";
    "unknown-condition", 9, POLICY, "spec.rules[0].when[0].key", "not an attribute" => "did you mean `source.principal`?";
    "condition-without-values", 9, POLICY, "spec.rules[0].when[0]", "`values`" => "add `values`";
    "accounts-and-principals", 11, POLICY, "spec.rules[0].from[0].source.serviceAccounts", "exclude each other" => "remove `principals`";
    "duplicate-resource", 5, "ServiceAccount shop/web", "metadata.name", "already defined at duplicate-resource.yaml:1" => "rename";
    "selector-and-target", 9, POLICY, "spec.targetRefs", "exclude each other" => "remove one";
    "target-elsewhere", 10, POLICY, "spec.targetRefs[0].namespace", "own namespace" => "remove `namespace`";
    "simple-and-hash", 11, RULE, "spec.trafficPolicy.loadBalancer.consistentHash", "exclude each other" => "remove one";
    "negative-limit", 11, RULE, "spec.trafficPolicy.connectionPool.tcp.maxConnections", "-1 is out of range" => "from 0";
    "rule-without-host", 6, RULE, "spec", "`host` is missing" => "add `host`";
    "service-without-ports", 6, SERVICE, "spec.ports", "at least one port" => "add `ports`";
    "nameless-ports", 10, SERVICE, "spec.ports[1]", "needs a name" => "add `name`";
    "star-in-selector", 9, PEER, "spec.selector.matchLabels.app", "no `*`" => "in full";
    "container-port", 10, "Pod shop/web", "spec.containers[0].ports[0].containerPort", "\"http\"" => "a whole number";
    "template-labels", 11, "Deployment shop/web", "spec.template.metadata.labels", "spec.selector" => "give the template";
};

const GOOD: &str = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";

#[test]
fn each_mistake_is_named_and_costs_only_its_document() {
    let failures: Vec<String> = MISTAKES.iter().filter_map(|mistake| mistake.check().err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

impl Mistake {
    fn check(&self) -> Result<(), String> {
        let file = format!("{}.yaml", self.file);
        let parsed = read(&file, GOOD);
        let [error] = parsed.errors.as_slice() else {
            return Err(format!("{file}: not one error: {:#?}", parsed.errors));
        };
        let wrong = |what: &str| Err(format!("{file}: wrong {what}: {error}"));
        let good = parsed.objects.iter().any(|object| object.value.metadata().name == "good");
        match () {
            () if error.file != file => wrong("file"),
            () if error.line != self.line => wrong("line"),
            () if error.resource.as_deref() != Some(self.resource) => wrong("resource"),
            () if error.field.as_deref() != Some(self.field) => wrong("field"),
            () if !error.problem.contains(self.problem) => wrong("problem"),
            () if !error.fix.contains(self.fix) => wrong("fix"),
            () if !good => Err(format!("{file}: the good document is lost")),
            () => Ok(()),
        }
    }
}

#[test]
fn every_file_is_in_the_table() {
    let listed: BTreeSet<_> = MISTAKES.iter().map(|mistake| format!("{}.yaml", mistake.file)).collect();
    let there = fs::read_dir(directory()).expect("the directory is in the repository");
    let there: BTreeSet<_> =
        there.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(listed, there);
}

fn read(file: &str, appended: &str) -> ParsedManifest {
    let path = directory().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    manifest::parse(file, &(text + appended))
}

fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")
}
