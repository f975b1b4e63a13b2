//! Reading and checking an `AuthorizationPolicy`.

use ipnet::IpNet;

use super::{
    Action, AuthorizationPolicy, Operation, Pattern, Rule, ServiceAccountRef, Source, TargetRef,
    nobody::{self, Nobody},
    when::{Attribute, NAMES, When, WhenValue},
};
use crate::{
    document::{
        cursor::{Cursor, Fields, Findings, quote_words},
        nearest_word::nearest_word,
        yaml_tree,
    },
    resource::{Metadata, Readable, metadata::is_label, network, selector},
};

/// Most rules of a policy, and most sources or operations of a rule.
const MAX_ITEMS: usize = 512;
/// Most service accounts of a source.
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// Most targets of a policy.
const MAX_TARGETS: usize = 16;

impl Readable for AuthorizationPolicy {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let nothing = Self {
            metadata,
            selector: None,
            target_refs: vec![],
            action: Action::Allow,
            provider: None,
            rules: vec![],
        };
        // Without a spec it is an ALLOW that matches nothing: it denies everything.
        let Some(spec) = Cursor::spec(root, findings) else { return Some(nothing) };
        let fields = spec.fields(&["selector", "targetRef", "targetRefs", "action", "provider", "rules"]);
        let action = fields.get("action").map_or(Some(Action::Allow), |at| at.enum_value(&ACTIONS))?;
        let policy = Self {
            selector: fields.get("selector").and_then(|at| selector::read(&at)),
            target_refs: target_refs(&fields),
            action,
            provider: fields.get("provider").and_then(|at| provider(&at)),
            rules: rules(&fields, &nothing.metadata.namespace),
            ..nothing
        };
        policy.check(&spec, &fields);
        Some(policy)
    }
}

impl AuthorizationPolicy {
    fn check(&self, spec: &Cursor<'_>, fields: &Fields<'_>) {
        if self.selector.is_some() && !self.target_refs.is_empty() {
            let at = fields.get("targetRefs").or_else(|| fields.get("targetRef"));
            at.unwrap_or_else(|| spec.clone())
                .error("`selector` and `targetRefs` exclude each other", "remove one of them");
        }
        if self.rules.is_empty() && matches!(self.action, Action::Deny | Action::Custom) {
            let at = fields.get("rules").unwrap_or_else(|| spec.clone());
            at.error(
                "a policy without rules matches nothing, so this one would have no effect",
                "write `rules: [{}]` to match everything, or add the rules that you mean",
            );
        }
        match (self.action, &self.provider) {
            (Action::Custom, None) => {
                spec.error("the action CUSTOM needs a provider", "add `provider: {name: …}`");
            }
            (Action::Custom, Some(_)) | (_, None) => {}
            (_, Some(_)) => {
                let at = fields.get("provider").unwrap_or_else(|| spec.clone());
                at.error(
                    "only the action CUSTOM takes a provider",
                    "remove `provider`, or write `action: CUSTOM`",
                );
            }
        }
    }
}

const ACTIONS: [(&str, Action); 4] =
    [("ALLOW", Action::Allow), ("DENY", Action::Deny), ("AUDIT", Action::Audit), ("CUSTOM", Action::Custom)];

fn provider(at: &Cursor<'_>) -> Option<String> {
    at.fields(&["name"]).require("name")?.non_empty_string().map(str::to_owned)
}

fn target_refs(fields: &Fields<'_>) -> Vec<TargetRef> {
    let mut targets: Vec<_> = fields.get("targetRef").into_iter().collect();
    if let Some(list) = fields.get("targetRefs") {
        if !targets.is_empty() {
            list.error(
                "`targetRef` and `targetRefs` exclude each other",
                "move the target into `targetRefs`",
            );
        }
        targets.extend(limited(&list, MAX_TARGETS));
    }
    targets.iter().filter_map(target_ref).collect()
}

fn target_ref(at: &Cursor<'_>) -> Option<TargetRef> {
    let fields = at.fields(&["group", "kind", "name", "namespace"]);
    if let Some(namespace) = fields.get("namespace").filter(|at| at.text() != Some("")) {
        namespace.error("a policy can only be attached in its own namespace", "remove `namespace`");
    }
    let text = |key: &str| fields.require(key)?.non_empty_string().map(str::to_owned);
    let group = fields.get("group").and_then(|at| at.text()).unwrap_or_default().to_owned();
    Some(TargetRef { group, kind: text("kind")?, name: text("name")? })
}

fn rules(fields: &Fields<'_>, namespace: &str) -> Vec<Rule> {
    let Some(list) = fields.get("rules") else { return Vec::new() };
    limited(&list, MAX_ITEMS).iter().map(|at| rule(at, namespace)).collect()
}

fn rule(at: &Cursor<'_>, namespace: &str) -> Rule {
    let fields = at.fields(&["from", "to", "when"]);
    let from = part(&fields, "from", "source");
    let to = part(&fields, "to", "operation");
    let when = fields.get("when").map(|at| at.items()).unwrap_or_default();
    Rule {
        from: from.iter().map(|at| source(at, namespace)).collect(),
        to: to.iter().map(operation).collect(),
        when: when.iter().filter_map(|at| condition(at, namespace)).collect(),
    }
}

/// The items of `from` or `to`, each wrapped in a map of one key, none of them empty.
fn part<'a>(fields: &Fields<'a>, list: &str, wrapper: &str) -> Vec<Cursor<'a>> {
    let Some(at) = fields.get(list) else { return Vec::new() };
    let items = limited(&at, MAX_ITEMS);
    if items.is_empty() {
        at.error(format!("`{list}` is empty"), format!("add a `{wrapper}`, or remove `{list}` to match all"));
    }
    let inner = |item: Cursor<'a>| {
        let found = item.fields(&[wrapper]).require(wrapper)?;
        if found.fields_with_any_key().all().all(|(_, field)| field.is_empty_list()) {
            let fix = format!("say what it is to match, or remove `{list}` to match all");
            found.error(format!("`{wrapper}` is empty"), fix);
        }
        Some(found)
    };
    items.into_iter().filter_map(inner).collect()
}

fn source(at: &Cursor<'_>, namespace: &str) -> Source {
    const KNOWN: [&str; 14] = [
        "principals",
        "notPrincipals",
        "serviceAccounts",
        "notServiceAccounts",
        "namespaces",
        "notNamespaces",
        "trustDomains",
        "notTrustDomains",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "requestPrincipals",
        "notRequestPrincipals",
    ];
    let fields = at.fields(&KNOWN);
    refuse_mixture(&fields);
    let accounts = |key: &str| list(&fields, key, |at, text| service_account(at, text, namespace));
    let patterns = |key: &str| list(&fields, key, pattern);
    let principals = |key: &str| list(&fields, key, |at, text| pattern_of(at, text, nobody::principal));
    let domains = |key: &str| list(&fields, key, |at, text| pattern_of(at, text, nobody::trust_domain));
    let namespaces = |key: &str| list(&fields, key, |at, text| Some(namespace_glob(at, text)));
    let blocks = |key: &str| list(&fields, key, ip_block);
    Source {
        principals: principals("principals"),
        not_principals: principals("notPrincipals"),
        service_accounts: accounts("serviceAccounts"),
        not_service_accounts: accounts("notServiceAccounts"),
        namespaces: namespaces("namespaces"),
        not_namespaces: namespaces("notNamespaces"),
        trust_domains: domains("trustDomains"),
        not_trust_domains: domains("notTrustDomains"),
        ip_blocks: blocks("ipBlocks"),
        not_ip_blocks: blocks("notIpBlocks"),
        remote_ip_blocks: blocks("remoteIpBlocks"),
        not_remote_ip_blocks: blocks("notRemoteIpBlocks"),
        request_principals: patterns("requestPrincipals"),
        not_request_principals: patterns("notRequestPrincipals"),
    }
}

fn refuse_mixture(fields: &Fields<'_>) {
    for accounts in ["serviceAccounts", "notServiceAccounts"].iter().filter_map(|key| fields.get(key)) {
        if accounts.items().len() > MAX_SERVICE_ACCOUNTS {
            let fix = "split the source into several".to_owned();
            accounts.error(format!("more than {MAX_SERVICE_ACCOUNTS} service accounts"), fix);
        }
        let others = ["principals", "notPrincipals", "namespaces", "notNamespaces"];
        if let Some(other) = others.iter().find(|key| fields.get(key).is_some()) {
            let problem = format!("service accounts and `{other}` exclude each other in one source");
            accounts.error(problem, format!("remove `{other}`: a service account includes its namespace"));
        }
    }
}

fn operation(at: &Cursor<'_>) -> Operation {
    const KNOWN: [&str; 8] =
        ["ports", "notPorts", "hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    let fields = at.fields(&KNOWN);
    let patterns = |key: &str| list(&fields, key, pattern);
    Operation {
        ports: list(&fields, "ports", port),
        not_ports: list(&fields, "notPorts", port),
        hosts: patterns("hosts"),
        not_hosts: patterns("notHosts"),
        methods: patterns("methods"),
        not_methods: patterns("notMethods"),
        paths: list(&fields, "paths", path),
        not_paths: list(&fields, "notPaths", path),
    }
}

fn condition(at: &Cursor<'_>, namespace: &str) -> Option<When> {
    let fields = at.fields(&["key", "values", "notValues"]);
    let at_key = fields.require("key")?;
    let key = at_key.non_empty_string()?;
    let Some(attribute) = Attribute::of(key) else {
        let fix = match nearest_word(key, NAMES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write one of {}, or `request.auth.claims[NAME]`", quote_words(&NAMES)),
        };
        at_key.error(format!("{key:?} is not an attribute"), fix);
        return None;
    };
    let value = |at: &Cursor<'_>, text: &str| match attribute {
        Attribute::Address => ip_block(at, text).map(WhenValue::Address),
        Attribute::Port => port(at, text).map(WhenValue::Port),
        Attribute::ServiceAccount => service_account(at, text, namespace).map(WhenValue::ServiceAccount),
        Attribute::Text if key == "source.namespace" => Some(WhenValue::Text(namespace_glob(at, text))),
        Attribute::Text => {
            pattern_of(at, text, |pattern| nobody::of_attribute(key, pattern)).map(WhenValue::Text)
        }
    };
    let values = list(&fields, "values", value);
    let not_values = list(&fields, "notValues", value);
    let demands = |key: &str| fields.get(key).is_some_and(|at| !at.is_empty_list());
    if !demands("values") && !demands("notValues") {
        at.error("a condition needs `values` or `notValues`", "add `values`");
    }
    Some(When { key: key.to_owned(), values, not_values })
}

/// A list of strings, each read by `value`. An empty list demands nothing, as in Istio, which may surprise.
fn list<T>(fields: &Fields<'_>, key: &str, value: impl Fn(&Cursor<'_>, &str) -> Option<T>) -> Vec<T> {
    let Some(at) = fields.get(key) else { return Vec::new() };
    if at.is_empty_list() {
        at.warn(format!("`{key}` is empty and demands nothing"), format!("add a value, or remove `{key}`"));
    }
    at.non_empty_strings().iter().filter_map(|(at, text)| value(at, text)).collect()
}

fn limited<'a>(at: &Cursor<'a>, most: usize) -> Vec<Cursor<'a>> {
    let items = at.items();
    if items.len() > most {
        at.error(
            format!("{} items, but at most {most} are allowed", items.len()),
            "split the policy into several",
        );
    }
    items
}

fn pattern(at: &Cursor<'_>, text: &str) -> Option<Pattern> {
    match Pattern::from(text) {
        Pattern::Glob(_) => {
            at.error(
                format!("{text:?} has a `*` in the middle"),
                "put one `*` at the beginning or the end, or list the values",
            );
            None
        }
        pattern => Some(pattern),
    }
}

/// A pattern; if it can match nobody, as `judge` finds, that is said.
fn pattern_of(at: &Cursor<'_>, text: &str, judge: impl Fn(&Pattern) -> Option<Nobody>) -> Option<Pattern> {
    let pattern = pattern(at, text)?;
    warn(at, judge(&pattern));
    Some(pattern)
}

/// The same for a namespace, which may have a star within.
fn namespace_glob(at: &Cursor<'_>, text: &str) -> Pattern {
    let pattern = Pattern::from(text);
    warn(at, nobody::namespace(&pattern));
    pattern
}

fn warn(at: &Cursor<'_>, found: Option<Nobody>) {
    if let Some(Nobody { problem, fix }) = found {
        at.warn(problem, fix);
    }
}

fn service_account(at: &Cursor<'_>, text: &str, namespace: &str) -> Option<ServiceAccountRef> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if text.contains('*') || !is_label(namespace) || name.is_empty() || name.contains('/') {
        at.error(
            format!("{text:?} is not a service account"),
            "write `name` or `namespace/name`, without `*`",
        );
        return None;
    }
    let account = ServiceAccountRef { namespace: namespace.to_owned(), name: name.to_owned() };
    warn(at, nobody::service_account(&account));
    Some(account)
}

fn ip_block(at: &Cursor<'_>, text: &str) -> Option<IpNet> {
    let block = network::parse(text);
    if block.is_none() {
        at.error(
            format!("{text:?} is neither an IP address nor a CIDR"),
            "write one like `10.0.0.0/8`, `192.0.2.7` or `fd00::/64`",
        );
    }
    block
}

fn port(at: &Cursor<'_>, text: &str) -> Option<u16> {
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    if port.is_none() {
        at.error(format!("{text:?} is not a port"), "write a number from 1 to 65535, in quotes");
    }
    port
}

/// A path with at most one star at one end, or a template.
fn path(at: &Cursor<'_>, text: &str) -> Option<String> {
    if !text.contains("{*}") && !text.contains("{**}") {
        return pattern(at, text).map(|_| text.to_owned());
    }
    let operators = text.replace("{**}", "\u{0}").replace("{*}", "\u{1}");
    let last_is_open =
        operators.find('\u{0}').is_none_or(|i| !operators[i + 1..].contains(['\u{0}', '\u{1}']));
    if operators.contains(['*', '{', '}']) || !last_is_open {
        let fix = "write segments like `{*}`, and `{**}` at most once, as the last of them";
        at.error(format!("{text:?} is not a path template"), fix);
        return None;
    }
    Some(text.to_owned())
}
