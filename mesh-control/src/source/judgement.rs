//! What became of each resource that people wrote for the mesh: how much of it is in force, and why not all.
//!
//! Three know a part of it: who reads it (mistakes, and fields that are not acted upon yet), the compiler
//! (what has no effect beside all else), and the resource itself (whether it says anything beyond that).

use std::collections::{BTreeMap, HashMap};

use mesh_api::admin::{InForce, ParentFault, ParentStatus, ResourceStatus, UnenforcedPart};
use mesh_api::compile::{Condition, ConditionEffect, SharedObject};
use mesh_api::kind::{Kind, ObjectKey, Treatment};
use mesh_api::manifest::ManifestError;
use mesh_api::resource::gateway_api::GatewayRoute;
use mesh_api::resource::{Action, MtlsMode, Object};

/// What was found, by `Kind namespace/name` as messages have it.
#[derive(Default)]
struct Found<'a> {
    errors: Vec<&'a ManifestError>,
    warnings: Vec<&'a ManifestError>,
    conditions: Vec<&'a Condition>,
}

/// Judges the policies in force, and those that never were; and names what else says something that has no
/// effect.
pub(super) fn judge<'a>(
    policies: impl Iterator<Item = &'a SharedObject>,
    errors: &[ManifestError],
    warnings: &[ManifestError],
    conditions: &[Condition],
) -> Vec<ResourceStatus> {
    let mut found = sorted(errors, warnings, conditions);
    let mut judged = BTreeMap::new();
    for policy in policies {
        let key = policy.value.key();
        let found = found.remove(&key.to_string()).unwrap_or_default();
        let is_others = route_of(&policy.value).is_some_and(|route| route.parents.is_empty());
        if is_others && found.errors.is_empty() {
            // A route of gateways: whoever has these says what became of it.
            continue;
        }
        judged.insert(key.clone(), status(key, Some(&policy.value), &found));
    }
    for (name, found) in found {
        if let Some(key) = policy_named(&name).filter(|_| !found.errors.is_empty()) {
            judged.insert(key.clone(), status(key, None, &found));
        } else if let Some(condition) = found.conditions.first() {
            let ObjectKey { kind, namespace, name } = condition.key();
            let (says, in_force, parts, parents) =
                (String::new(), InForce::Partly, parts(&found), Vec::new());
            let status = ResourceStatus { kind, namespace, name, says, in_force, parts, parents };
            judged.insert(condition.key(), status);
        }
    }
    judged.into_values().collect()
}

fn sorted<'a>(
    errors: &'a [ManifestError],
    warnings: &'a [ManifestError],
    conditions: &'a [Condition],
) -> HashMap<String, Found<'a>> {
    let mut found: HashMap<String, Found<'a>> = HashMap::new();
    for error in errors {
        found.entry(error.resource.clone().unwrap_or_default()).or_default().errors.push(error);
    }
    for warning in warnings {
        found.entry(warning.resource.clone().unwrap_or_default()).or_default().warnings.push(warning);
    }
    for condition in conditions {
        found.entry(condition.key().to_string()).or_default().conditions.push(condition);
    }
    found
}

/// The key of which a message has this text, if it is a policy's.
fn policy_named(text: &str) -> Option<ObjectKey> {
    let (kind, name) = text.split_once(' ')?;
    let kind = Kind::policies().find(|known| known.as_str() == kind)?;
    let (namespace, name) = name.split_once('/')?;
    Some(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

fn status(key: ObjectKey, object: Option<&Object>, found: &Found<'_>) -> ResourceStatus {
    let ObjectKey { kind, namespace, name } = key;
    let says = object.map(says).unwrap_or_default();
    let (in_force, parts) = (in_force(object, found), parts(found));
    let parents = object.and_then(route_of).map(|route| parents(route, found)).unwrap_or_default();
    ResourceStatus { kind, namespace, name, says, in_force, parts, parents }
}

/// What a route of the Gateway API says.
fn route_of(object: &Object) -> Option<&GatewayRoute> {
    match object {
        Object::HTTPRoute(object) => Some(&object.route),
        Object::GRPCRoute(object) => Some(&object.route),
        _ => None,
    }
}

/// What the status of a route says of each of its parents: the first that was found wrong there.
fn parents(route: &GatewayRoute, found: &Found<'_>) -> Vec<ParentStatus> {
    let fault = |is_it: &dyn Fn(&Condition) -> bool, is_of_reference: bool| {
        let is_kind =
            |it: &Condition| it.route_fault.is_some_and(|it| it.is_of_reference() == is_of_reference);
        let first = found.conditions.iter().find(|it| is_kind(it) && is_it(it))?;
        let reason = first.route_fault?.as_str().to_owned();
        Some(ParentFault {
            reason,
            message: format!("{}: {}; fix: {}", first.field, first.reason, first.fix),
        })
    };
    let of = |index: usize| {
        let own = format!("spec.parentRefs[{index}]");
        let is_its = |it: &Condition| it.field.starts_with(&own) || !it.field.starts_with("spec.parentRefs");
        ParentStatus { index, refused: fault(&is_its, false), unresolved: fault(&|_| true, true) }
    };
    route.parents.iter().map(|parent| of(parent.index)).collect()
}

fn in_force(object: Option<&Object>, found: &Found<'_>) -> InForce {
    let is_used = |object: &&Object| object.kind().table_row().treatment != Treatment::ReadNotUsed;
    let Some(object) = object.filter(is_used) else { return InForce::No };
    if !found.errors.is_empty() {
        return InForce::Earlier;
    }
    if found.warnings.is_empty() && found.conditions.is_empty() {
        return InForce::AsWritten;
    }
    let is_empty = matches!(
        object,
        Object::DestinationRule(rule) if rule.policy.is_nothing() && rule.subsets.is_empty()
    );
    if is_empty || found.conditions.iter().any(|condition| condition.is_whole) {
        return InForce::No;
    }
    InForce::Partly
}

fn parts(found: &Found<'_>) -> Vec<UnenforcedPart> {
    // The reader warns of some things that the compiler knows more of.
    let is_compiled =
        |field: Option<&str>| found.conditions.iter().any(|it| Some(it.field.as_str()) == field);
    let warnings = found.warnings.iter().filter(|warning| !is_compiled(warning.field.as_deref()));
    let read = found.errors.iter().chain(warnings).map(|error| UnenforcedPart {
        field: error.field.clone().unwrap_or_else(|| "resource".to_owned()),
        meaning: error.problem.clone(),
        fix: error.fix.clone(),
    });
    let compiled = found.conditions.iter().map(|condition| UnenforcedPart {
        field: condition.field.clone(),
        meaning: match condition.effect {
            ConditionEffect::Ignored => condition.reason.clone(),
            ConditionEffect::Stricter => format!("{} (stricter than written)", condition.reason),
            ConditionEffect::Weaker => format!("{} (weaker than written)", condition.reason),
        },
        fix: condition.fix.clone(),
    });
    read.chain(compiled).collect()
}

/// What a policy says, in a word.
fn says(object: &Object) -> String {
    match object {
        Object::AuthorizationPolicy(policy) => {
            let action = match policy.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
                Action::Audit => "AUDIT",
                Action::Custom => "CUSTOM",
            };
            if policy.is_dry_run() { format!("{action} (dry run)") } else { action.to_owned() }
        }
        Object::PeerAuthentication(policy) => {
            let mode = match policy.mode {
                MtlsMode::Unset => "UNSET",
                MtlsMode::Disable => "DISABLE",
                MtlsMode::Permissive => "PERMISSIVE",
                MtlsMode::Strict => "STRICT",
            };
            let ports = if policy.port_modes.is_empty() { "" } else { " (some ports differ)" };
            format!("{mode}{ports}")
        }
        Object::DestinationRule(rule) => rule.host.clone(),
        Object::VirtualService(service) => first_of(&service.hosts),
        Object::HTTPRoute(_) | Object::GRPCRoute(_) => {
            let parents = route_of(object).map(|route| &route.parents[..]).unwrap_or_default();
            let names: Vec<_> = parents.iter().map(|it| format!("{}/{}", it.namespace, it.name)).collect();
            first_of(&names)
        }
        _ => String::new(),
    }
}

/// The first of a list that may have thousands, for a column of a table.
fn first_of(hosts: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = hosts.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match hosts.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_api::compile::{Compiler, MeshConfig, ObjectChange, compile};
    use mesh_api::manifest::parse;

    use super::*;

    #[test]
    fn a_column_shows_the_first_of_many_hosts() {
        let hosts: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        assert_eq!(first_of(&hosts[..2]), "a, b");
        assert_eq!(first_of(&hosts), "a, b, c and 2 more");
    }

    const KINDS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME, namespace: shop}
spec: SPEC
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME, namespace: shop}
spec: RULE
";

    fn of(policy: &str, rule: &str) -> [ResourceStatus; 2] {
        let text = KINDS.replace("NAME", "it").replace("SPEC", policy).replace("RULE", rule);
        let parsed = parse("", &text);
        let shared: Vec<_> = parsed.objects.into_iter().map(Arc::new).collect();
        let conditions = compile(shared.iter().cloned(), &MeshConfig::default()).conditions;
        let policies = shared.iter().filter(|it| it.value.kind().is_policy());
        judge(policies, &parsed.errors, &parsed.warnings, &conditions).try_into().unwrap()
    }

    fn policy(spec: &str) -> ResourceStatus {
        of(spec, "{host: web}")[0].clone()
    }

    fn rule(spec: &str) -> ResourceStatus {
        of("{}", spec)[1].clone()
    }

    #[test]
    fn a_service_that_says_more_than_is_done_is_named() {
        let text = KINDS.replace("{ports:", "{externalIPs: [192.0.2.1], ports:").replace("SPEC", "{}");
        let parsed = parse("", &text.replace("RULE", "{host: web}"));
        let shared = parsed.objects.into_iter().map(Arc::new);
        let conditions = compile(shared, &MeshConfig::default()).conditions;
        let judged = judge(std::iter::empty(), &[], &[], &conditions);
        let [service] = &judged[..] else { panic!("{judged:?}") };
        assert_eq!(
            (service.key().to_string(), service.in_force),
            ("Service shop/web".to_owned(), InForce::Partly)
        );
        assert_eq!(service.parts[0].field, "spec.externalIPs");
    }

    #[test]
    fn a_kind_that_is_not_used_is_not_in_force_whatever_an_object_of_it_says() {
        let entry = |spec: &str| {
            let head = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry";
            parse("", &format!("{head}\nmetadata: {{name: bank, namespace: shop}}\nspec: {spec}\n"))
        };
        let good = entry("{hosts: [bank.example]}");
        let shared: Vec<_> = good.objects.into_iter().map(Arc::new).collect();
        let mut compiler = Compiler::new(MeshConfig::default());
        let change = ObjectChange { key: shared[0].value.key(), object: Some(shared[0].clone()) };
        compiler.apply([change], |output| panic!("{output:?} is made of it"));
        let judged = judge(compiler.policies(), &good.errors, &good.warnings, &[]);
        let [entry_now] = &judged[..] else { panic!("{judged:?}") };
        assert_eq!(
            (entry_now.key().to_string(), entry_now.in_force),
            ("ServiceEntry shop/bank".to_owned(), InForce::No)
        );
        let [part] = &entry_now.parts[..] else { panic!("{entry_now:?}") };
        assert!(part.meaning.contains("not used yet") && part.fix.contains("remove it"), "{part:?}");
        let broken = entry("{host: bank.example}");
        let judged = judge(compiler.policies(), &broken.errors, &broken.warnings, &[]);
        assert_eq!(judged[0].in_force, InForce::No, "what it said before is not in force either");
        assert!(judged[0].parts.iter().any(|part| part.field == "spec.host"), "{judged:?}");
    }

    #[test]
    fn routes_without_effect_are_not_in_force() {
        let (web, route) = ("hosts: [web]", "{route: [{destination: {host: web}}]}");
        for (spec, in_force, says, field) in [
            (format!("{{{web}, http: [{route}]}}"), InForce::AsWritten, "web", ""),
            (format!("{{hosts: [web, api], http: [{route}]}}"), InForce::Partly, "web, api", "spec.hosts[1]"),
            (format!("{{hosts: [api], http: [{route}]}}"), InForce::No, "api", "spec.hosts[0]"),
            (format!("{{{web}, gateways: [edge], http: [{route}]}}"), InForce::No, "web", "spec.gateways"),
            (
                format!("{{{web}, http: [{{delegate: {{name: a}}, match: [{{port: 1}}]}}, {route}]}}"),
                InForce::Partly,
                "web",
                "spec.http[0].delegate",
            ),
        ] {
            let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService";
            let text = format!("{head}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n---{KINDS}");
            let text = text.replace("NAME", "it").replace("SPEC", "{}").replace("RULE", "{host: web}");
            let parsed = parse("", &text);
            assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
            let shared: Vec<_> = parsed.objects.into_iter().map(Arc::new).collect();
            let conditions = compile(shared.iter().cloned(), &MeshConfig::default()).conditions;
            let services = shared.iter().filter(|it| it.value.kind() == Kind::VirtualService);
            let judged = judge(services, &[], &parsed.warnings, &conditions);
            let [service] = &judged[..] else { panic!("{judged:?}") };
            assert_eq!((service.in_force, service.says.as_str()), (in_force, says), "{spec}: {service:?}");
            assert_eq!(service.parts.first().map_or("", |part| part.field.as_str()), field, "{spec}");
        }
    }

    #[test]
    fn of_a_route_each_parent_in_the_mesh_is_judged() {
        let route = |parents: &str, backend: &str| {
            let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute";
            let spec =
                format!("{{parentRefs: [{parents}], rules: [{{backendRefs: [{{{backend}, port: 80}}]}}]}}");
            let text = format!("{head}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n---{KINDS}");
            let text = text
                .replace("{port: 80}", "{name: http, port: 80}")
                .replace("{ports", "{clusterIP: 10.0.0.1, ports");
            let parsed =
                parse("", &text.replace("NAME", "it").replace("SPEC", "{}").replace("RULE", "{host: web}"));
            assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
            let shared: Vec<_> = parsed.objects.into_iter().map(Arc::new).collect();
            let conditions = compile(shared.iter().cloned(), &MeshConfig::default()).conditions;
            judge(shared.iter().filter(|it| it.value.kind().is_route()), &[], &[], &conditions)
        };
        let service = |name: &str| format!("{{group: '', kind: Service, name: {name}}}");
        assert!(route("{name: edge}", "name: web").is_empty(), "it is a gateway's");
        let good = route(&format!("{{name: edge}}, {}", service("web")), "name: web").remove(0);
        assert_eq!((good.in_force, good.says.as_str()), (InForce::AsWritten, "shop/web"));
        assert_eq!(good.parents, [ParentStatus { index: 1, refused: None, unresolved: None }]);
        let two = format!("{}, {}", service("nobody"), service("web"));
        let bad = route(&two, "name: nowhere").remove(0);
        assert_eq!(bad.in_force, InForce::Partly);
        let reason = |fault: &Option<ParentFault>| fault.as_ref().map(|fault| fault.reason.clone());
        let told: Vec<_> =
            bad.parents.iter().map(|it| (reason(&it.refused), reason(&it.unresolved))).collect();
        let not_found = Some("BackendNotFound".to_owned());
        assert_eq!(told, [(Some("NoMatchingParent".to_owned()), not_found.clone()), (None, not_found)]);
        assert_eq!(route(&service("nobody"), "name: web")[0].in_force, InForce::No);
    }

    #[test]
    fn a_policy_without_effect_is_not_in_force() {
        let principal = "from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]";
        for (spec, in_force, field) in [
            (format!("{{rules: [{{{principal}}}]}}"), InForce::AsWritten, ""),
            ("{}".to_owned(), InForce::AsWritten, ""),
            ("{action: CUSTOM, provider: {name: x}, rules: [{}]}".to_owned(), InForce::No, "spec.action"),
            ("{targetRefs: [{kind: Service, name: web}]}".to_owned(), InForce::No, "spec.targetRefs"),
            (
                "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}".to_owned(),
                InForce::No,
                "spec.rules[0]",
            ),
            (
                format!(
                    "{{action: DENY, rules: [{{{principal}}}, {{to: [{{operation: {{paths: [/]}}}}]}}]}}"
                ),
                InForce::Partly,
                "spec.rules[1]",
            ),
            (
                "{rules: [{to: [{operation: {methods: [GET], paths: [/]}}]}]}".to_owned(),
                InForce::Partly,
                "spec.rules[0]",
            ),
            (
                "{rules: [{from: [{source: {ipBlocks: [nowhere/99]}}]}]}".to_owned(),
                InForce::No,
                "spec.rules[0].from[0].source.ipBlocks[0]",
            ),
        ] {
            let judged = policy(&spec);
            assert_eq!(judged.in_force, in_force, "{spec}: {judged:?}");
            assert_eq!(judged.parts.first().map_or("", |part| part.field.as_str()), field, "{spec}");
            assert!(
                judged.parts.iter().all(|part| !part.fix.is_empty() && !part.meaning.is_empty()),
                "{judged:?}"
            );
        }
        let nobody = policy("{action: DENY, rules: [{from: [{source: {principals: [frontend]}}]}]}");
        assert_eq!((nobody.in_force, nobody.parts.len()), (InForce::Partly, 1), "said once: {nobody:?}");
        let nothing_left = policy("{rules: [{to: [{operation: {methods: [GET], paths: [/]}}]}]}");
        assert_eq!(
            nothing_left.parts[0].meaning,
            "rule 1 left out: methods, paths are layer 7, which is not read; no rule is left, so it allows nothing, and \
             what no other policy allows is refused (stricter than written)"
        );
    }

    #[test]
    fn a_rule_for_clients_without_effect_is_not_in_force() {
        for (spec, in_force, field) in [
            ("{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}", InForce::AsWritten, ""),
            ("{host: web}", InForce::AsWritten, ""),
            ("{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}", InForce::AsWritten, ""),
            ("{host: nobody, trafficPolicy: {loadBalancer: {simple: RANDOM}}}", InForce::No, "spec.host"),
            (
                "{host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}",
                InForce::AsWritten,
                "",
            ),
            (
                "{host: web, trafficPolicy: {loadBalancer: {warmup: {duration: 1s}}}}",
                InForce::No,
                "spec.trafficPolicy.loadBalancer.warmup",
            ),
            ("{host: web, trafficPolicy: {tls: {mode: SIMPLE}}}", InForce::No, "spec.trafficPolicy.tls"),
            (
                "{host: web, trafficPolicy: {connectionPool: {http: {maxConcurrentStreams: 1}, tcp: {maxConnections: 5}}}}",
                InForce::Partly,
                "spec.trafficPolicy.connectionPool.http.maxConcurrentStreams",
            ),
            ("{host: web, subsets: [{name: v1, labels: {version: v1}}]}", InForce::AsWritten, ""),
            (
                "{host: web, trafficPolicy: {tls: {mode: SIMPLE}}, subsets: [{name: v1}]}",
                InForce::Partly,
                "spec.trafficPolicy.tls",
            ),
        ] {
            let judged = rule(spec);
            assert_eq!(judged.in_force, in_force, "{spec}: {judged:?}");
            assert_eq!(judged.parts.first().map_or("", |part| part.field.as_str()), field, "{spec}");
            assert!(judged.parts.iter().all(|part| !part.fix.contains("nothing to change")), "{judged:?}");
        }
    }

    #[test]
    fn what_was_broken_by_an_edit_is_in_force_as_it_was() {
        let good =
            parse("", &KINDS.replace("NAME", "it").replace("SPEC", "{}").replace("RULE", "{host: web}"));
        let shared: Vec<_> = good.objects.into_iter().map(Arc::new).collect();
        let error = ManifestError {
            file: String::new(),
            line: 1,
            resource: Some("AuthorizationPolicy shop/it".into()),
            field: None,
            problem: "broken".into(),
            fix: "mend it".into(),
        };
        let policies = shared.iter().filter(|it| it.value.kind().is_policy());
        let judged = judge(policies, &[error], &[], &[]);
        assert_eq!(
            judged.iter().map(|it| it.in_force).collect::<Vec<_>>(),
            [InForce::Earlier, InForce::AsWritten]
        );
        assert_eq!((judged[0].says.as_str(), judged[1].says.as_str()), ("ALLOW", "web"));
    }
}
