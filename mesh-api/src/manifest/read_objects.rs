//! From a parsed document to typed objects: which kind it is, whose name it bears, and which reader it goes
//! to.

use std::sync::Arc;

use super::{Kind, Located, ManifestError, ParsedManifest};
use crate::document::{
    cursor::{Cursor, Findings, quote_words},
    list_items,
    manifest_error::FieldError,
    nearest_word::nearest_word,
    split_documents::YamlDocument,
    yaml_tree::{self, Value, YamlNode},
};
use crate::kind::{self, KNOWN_KINDS, Treatment};
use crate::resource::{self, Object};

/// Reads one document into `parsed`.
pub(super) fn read_document(file: &Arc<str>, document: &YamlDocument<'_>, parsed: &mut ParsedManifest) {
    match yaml_tree::parse_document(document) {
        Err(fault) => {
            parsed.errors.push(fault.into_manifest_error(file, guess_resource(document.text).as_deref()));
        }
        Ok(loaded) => {
            let Some(root) = loaded.root.filter(|root| !matches!(root.value, Value::Null)) else { return };
            if loaded.duplicates.is_empty() {
                read_objects(file, &root, parsed);
            } else {
                let resource = describe(&root);
                let errors = loaded.duplicates.into_iter();
                parsed
                    .errors
                    .extend(errors.map(|fault| fault.into_manifest_error(file, resource.as_deref())));
            }
        }
    }
}

/// Reads an object, or each of a `List`'s.
pub(super) fn read_objects(file: &Arc<str>, root: &YamlNode, parsed: &mut ParsedManifest) {
    if let Some(items) = list_items::items_of_list(root) {
        for item in items {
            read_objects(file, &item, parsed);
        }
        return;
    }
    match object(file, root) {
        Ok((object, warnings)) => {
            parsed.warnings.extend(warnings);
            parsed.push(object);
        }
        Err(Refusal::Broken(errors)) => parsed.errors.extend(errors),
        Err(Refusal::NotOurs(warning)) => parsed.warnings.push(*warning),
    }
}

/// Why a document gives no object.
enum Refusal {
    Broken(Vec<ManifestError>),
    NotOurs(Box<ManifestError>),
}

fn object(file: &Arc<str>, root: &YamlNode) -> Result<(Located<Object>, Vec<ManifestError>), Refusal> {
    let resource = describe(root);
    let locate = |fault: FieldError| fault.into_manifest_error(file, resource.as_deref());
    let kind = identify(root).map_err(|refusal| match refusal {
        Unidentified::Broken(fault) => Refusal::Broken(vec![locate(fault)]),
        Unidentified::NotOurs(fault) => Refusal::NotOurs(Box::new(locate(fault))),
    })?;
    let findings = Findings::default();
    let object = resource::read(kind, root, &findings);
    // Said in any case, however much else there is to say.
    let unused = (kind.table_row().treatment == Treatment::ReadNotUsed).then(|| not_used(kind, root));
    let errors = findings.errors.into_inner();
    match object {
        Some(value) if errors.is_empty() => {
            let raw = root.value.to_json();
            let warnings = findings.warnings.into_inner().into_iter().chain(unused).map(locate).collect();
            Ok((Located { file: Arc::clone(file), line: root.line, value, raw }, warnings))
        }
        _ => Err(Refusal::Broken(errors.into_iter().map(locate).collect())),
    }
}

/// Says that nothing is done with what was read.
fn not_used(kind: Kind, root: &YamlNode) -> FieldError {
    FieldError {
        line: root.get("kind").map_or(root.line, |entry| entry.line),
        field: Some("kind".to_owned()),
        problem: format!("{kind} is not used yet: it changes nothing about connections"),
        fix: "remove it, or leave it for a mesh that uses it; this one behaves as if it were not there"
            .to_owned(),
    }
}

/// Why it is not known which of our kinds a document is of.
enum Unidentified {
    Broken(FieldError),
    NotOurs(FieldError),
}

/// Decides from `apiVersion` and `kind` what a document is.
fn identify(root: &YamlNode) -> Result<Kind, Unidentified> {
    let broken = |fault| Err(Unidentified::Broken(fault));
    let fault = |line, field: Option<&str>, problem: String, fix: String| FieldError {
        line,
        field: field.map(str::to_owned),
        problem,
        fix,
    };
    if !matches!(root.value, Value::Map(_)) {
        let problem = format!("a resource must be a map, but this is {}", root.value.describe());
        return broken(fault(root.line, None, problem, "write `apiVersion:`, `kind:`, `metadata:` …".into()));
    }
    let Some(name) = root.text("kind") else {
        return broken(required(root, "kind", "add `kind`, such as `kind: AuthorizationPolicy`"));
    };
    let Some(api_version) = root.text("apiVersion") else {
        return broken(required(root, "apiVersion", "add `apiVersion`, such as `apiVersion: v1`"));
    };
    let line_of = |key| root.get(key).map_or(root.line, |entry| entry.line);
    let meant = match kind::find_kind(api_version, name) {
        Some(known) => known.kind,
        None => Kind::ALL.into_iter().find(|kind| kind.as_str() == name && may_be_meant(*kind, api_version)),
    };
    match meant {
        Some(kind) if kind.api_versions().contains(&api_version) => Ok(kind),
        Some(kind) => {
            let problem = format!("{api_version:?} does not serve the kind {kind}");
            let fix = format!("write one of {}", quote_words(kind.api_versions()));
            broken(fault(line_of("apiVersion"), Some("apiVersion"), problem, fix))
        }
        None => unknown_kind(name, api_version, line_of("kind")),
    }
}

/// Whether `api_version` looks like a slip rather than another project's kind of the same name
/// (`serving.knative.dev/v1` has a `Service` too).
fn may_be_meant(kind: Kind, api_version: &str) -> bool {
    let (ours, group) = (kind.table_row().group(), kind::api_group(api_version));
    group.is_empty()
        || kind::is_istio_group(api_version)
        || nearest_word(group, Some(ours).filter(|ours| !ours.is_empty())).is_some()
}

const OTHER_GATEWAY_KINDS: [&str; 7] =
    ["Gateway", "GatewayClass", "TCPRoute", "TLSRoute", "UDPRoute", "BackendTLSPolicy", "ListenerSet"];

fn unknown_kind(name: &str, api_version: &str, line: u32) -> Result<Kind, Unidentified> {
    let field = Some("kind".to_owned());
    let mut istio_unread = KNOWN_KINDS
        .iter()
        .filter(|it| it.kind.is_none() && kind::is_istio_group(it.api_versions[0]))
        .map(|it| it.name);
    let known = Kind::ALL.iter().map(|kind| kind.as_str()).chain(istio_unread.clone());
    let near = nearest_word(name, known).filter(|near| *near != name);
    let ours = kind::is_istio_group(api_version)
        || Kind::ALL.iter().any(|k| k.api_versions().contains(&api_version));
    // Kinds of the Gateway API that have names like those that are read, and are no slips.
    let ours = ours && !OTHER_GATEWAY_KINDS.contains(&name);
    if kind::is_istio_group(api_version) && istio_unread.any(|it| it == name) {
        let problem = format!("{name} is not supported yet, ignored");
        let fix = "remove it, or leave it for a mesh that reads it; this one behaves as if it were not there"
            .to_owned();
        return Err(Unidentified::NotOurs(FieldError { line, field, problem, fix }));
    }
    if let Some(near) = near.filter(|_| ours) {
        let problem = format!("unknown kind {name:?}");
        return Err(Unidentified::Broken(FieldError {
            line,
            field,
            problem,
            fix: format!("did you mean `{near}`?"),
        }));
    }
    if kind::is_istio_group(api_version) {
        let problem = format!("{api_version:?} has no kind {name:?}");
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        let fix = format!("write one of {}", quote_words(&names));
        return Err(Unidentified::Broken(FieldError { line, field, problem, fix }));
    }
    let problem = format!("the mesh does not use the kind {name}, ignored");
    let fix = "leave it out of what the mesh is given; it behaves as if it were not there".to_owned();
    Err(Unidentified::NotOurs(FieldError { line, field, problem, fix }))
}

/// The complaint about a top-level string that is absent or no string.
fn required(root: &YamlNode, key: &str, fix: &str) -> FieldError {
    let (line, problem) = match root.get(key) {
        Some(entry) => (entry.line, format!("must be a string, but is {}", entry.value.value.describe())),
        None => (root.line, format!("`{key}` is missing")),
    };
    FieldError { line, field: Some(key.to_owned()), problem, fix: fix.to_owned() }
}

/// `Kind namespace/name` as far as the document says.
fn describe(root: &YamlNode) -> Option<String> {
    let kind = root.text("kind");
    let metadata = root.get("metadata").map(|entry| &entry.value);
    let name = metadata.and_then(|node| node.text("name"));
    if kind.is_none() && name.is_none() {
        return None;
    }
    let (kind, name) = (kind.unwrap_or("(no kind)"), name.unwrap_or("(no name)"));
    let namespaced = Kind::ALL.iter().find(|k| k.as_str() == kind).is_none_or(|k| k.is_namespaced());
    let namespace = metadata.and_then(|node| node.text("namespace"));
    if !namespaced {
        return Some(format!("{kind} {name}"));
    }
    Some(format!("{kind} {}/{name}", namespace.unwrap_or(resource::DEFAULT_NAMESPACE)))
}

/// The same for a text that does not parse: what stands on the lines where these things usually are.
fn guess_resource(text: &str) -> Option<String> {
    let value = |line: &str, key: &str| {
        let rest = line.strip_prefix(key)?.strip_prefix(':')?.trim();
        (!rest.is_empty()).then(|| rest.trim_matches(['"', '\'']).to_owned())
    };
    let kind = text.lines().find_map(|line| value(line, "kind"))?;
    let metadata = text.lines().skip_while(|line| !line.starts_with("metadata:")).skip(1);
    let metadata: Vec<_> =
        metadata.take_while(|line| line.starts_with([' ', '\t'])).map(str::trim_start).collect();
    let field = |key| metadata.iter().find_map(|line| value(line, key));
    let name = field("name")?;
    let namespace = field("namespace").unwrap_or_else(|| resource::DEFAULT_NAMESPACE.to_owned());
    Some(format!("{kind} {namespace}/{name}"))
}

impl<'a> Cursor<'a> {
    /// The `spec` of a strict kind, after a look at the fields beside it. A namespace or annotation that is
    /// misspelt would put a policy elsewhere, or in force.
    pub(crate) fn spec(root: &'a YamlNode, findings: &'a Findings) -> Option<Self> {
        const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        const METADATA: [&str; 15] = [
            "name",
            "namespace",
            "labels",
            "annotations",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "finalizers",
            "generateName",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
        ];
        if let Value::Map(entries) = &root.value {
            for entry in entries.iter().filter(|entry| !TOP.contains(&entry.key.as_str())) {
                let fix = match nearest_word(&entry.key, TOP) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "remove it, or move it under `spec`".to_owned(),
                };
                Self::at_root_field(entry, findings).error("unknown field", fix);
            }
        }
        if let Some(metadata) = root.get("metadata") {
            Self::at_root_field(metadata, findings).fields(&METADATA);
        }
        root.get("spec").map(|entry| Self::at_root_field(entry, findings))
    }
}
