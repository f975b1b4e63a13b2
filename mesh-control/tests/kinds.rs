//! What can't be made of the table of kinds (`mesh-api/src/kind.rs`) says the same as it: the chart, and the
//! documents. Each test says which file lacks which line.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mesh_api::kind::{KNOWN_KINDS, Kind, KnownKind, Treatment};

const RULES: &str = "deploy/helm/nodemesh/templates/control/rbac.yaml";
const DEFINITIONS: &str = "deploy/helm/nodemesh/templates/crds/definitions.yaml";
const DOCUMENT: &str = "docs/control-plane.md";

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Fails if `file` lacks something that is wanted, or has something that is not.
fn same(file: &str, wanted: &BTreeSet<String>, found: &BTreeSet<String>) {
    let lacks: Vec<_> = wanted.difference(found).map(String::as_str).collect();
    assert!(lacks.is_empty(), "{file} lacks, by mesh-api/src/kind.rs:\n{}", lacks.join("\n"));
    let has: Vec<_> = found.difference(wanted).map(String::as_str).collect();
    assert!(has.is_empty(), "{file} has what mesh-api/src/kind.rs knows nothing of:\n{}", has.join("\n"));
}

#[test]
fn the_control_plane_may_do_what_it_does_with_each_kind_and_no_more() {
    let wanted: BTreeSet<_> = KNOWN_KINDS.iter().flat_map(rights).collect();
    let all = rights_of_cluster_role(&read(RULES), "nodemesh-control");
    // The others of core are for what it does besides: nodes' taints, objects of its own.
    let is_of_a_kind = |(group, resource, verb): &(String, String, String)| {
        let follows =
            |known: &KnownKind| known.plural == resource && ["list", "watch"].contains(&verb.as_str());
        KNOWN_KINDS.iter().any(|known| known.group() == group && (!group.is_empty() || follows(known)))
    };
    let found = all.into_iter().filter(is_of_a_kind).map(|(g, r, v)| rule(&g, &r, &v)).collect();
    same(RULES, &wanted, &found);
}

/// What is done with a kind takes these.
fn rights(known: &KnownKind) -> Vec<String> {
    let of = |resource: &str, verbs: &[&str]| -> Vec<String> {
        verbs.iter().map(|verb| rule(known.group(), resource, verb)).collect()
    };
    let follow = of(known.plural, &["list", "watch"]);
    match known.treatment {
        Treatment::Followed | Treatment::NotRead | Treatment::Consulted => follow,
        Treatment::Used | Treatment::UsedIfDefined | Treatment::ReadNotUsed => {
            [follow, of(&format!("{}/status", known.plural), &["patch"])].concat()
        }
        Treatment::FromManifests | Treatment::NotLookedFor => Vec::new(),
    }
}

fn rule(group: &str, resource: &str, verb: &str) -> String {
    format!("  - {{apiGroups: [{group:?}], resources: [{resource}], verbs: [{verb}]}}")
}

/// Group, resource and verb of each rule that is not for objects of some names.
fn rights_of_cluster_role(text: &str, name: &str) -> BTreeSet<(String, String, String)> {
    let head = format!("kind: ClusterRole\nmetadata:\n  name: {name}\n");
    let (_, role) = text.split_once(&head).unwrap_or_else(|| panic!("{RULES} has no ClusterRole {name}"));
    let role = role.split("\n---").next().unwrap_or_default();
    let mut rights = BTreeSet::new();
    for rule in role.split("- apiGroups:").skip(1).filter(|rule| !rule.contains("resourceNames:")) {
        let (groups, rest) = rule.split_once("resources:").unwrap_or_else(|| panic!("no resources: {rule}"));
        let (resources, verbs) = rest.split_once("verbs:").unwrap_or_else(|| panic!("no verbs: {rule}"));
        // What is behind the list is the template's.
        let verbs = verbs.split_inclusive(']').next().unwrap_or_default();
        for group in words(groups) {
            for resource in words(resources) {
                rights.extend(
                    words(verbs).map(|verb| (group.to_owned(), resource.to_owned(), verb.to_owned())),
                );
            }
        }
    }
    rights
}

/// Items of a list, in brackets or below each other.
fn words(list: &str) -> impl Iterator<Item = &str> {
    let items = list.trim().trim_matches(['[', ']']).split([',', '\n']);
    items.map(|item| item.trim().trim_start_matches("- ").trim_matches('"'))
}

#[test]
fn the_chart_defines_the_kinds_that_are_used() {
    let wanted = Kind::with_treatment(Treatment::Used).map(|kind| definition(kind.table_row())).collect();
    let text = read(DEFINITIONS);
    let found = text.split("include \"nodemesh.definition\" (dict\n").skip(1).map(|it| {
        let lines = it.lines().take_while(|line| !line.starts_with(')'));
        let table = lines.filter(|line| !["context", "short", "columns"].iter().any(|key| is_of(key, line)));
        table.collect::<Vec<_>>().join("\n")
    });
    same(DEFINITIONS, &wanted, &found.collect());
    for known in Kind::with_treatment(Treatment::Used).map(Kind::table_row) {
        for file in ["deploy/helm/nodemesh/values.yaml", "deploy/helm/nodemesh/templates/NOTES.txt"] {
            assert!(read(file).contains(known.name), "{file} does not name {}", known.name);
        }
        let (file, definition) = ("docs/install.md", known.crd_name());
        assert!(read(file).contains(&definition), "{file} does not say how to delete {definition}");
    }
}

fn is_of(key: &str, line: &str) -> bool {
    line.trim_start().starts_with(&format!("{key:?} "))
}

/// What the chart says of a kind, but for what people see of it.
fn definition(known: &KnownKind) -> String {
    let versions = known.api_versions.iter().map(|it| it.rsplit('/').next().unwrap_or_default());
    let versions: Vec<_> = versions.map(|version| format!("{version:?}")).collect();
    let name = known.name;
    let schema = name[..1].to_lowercase() + &name[1..];
    format!(
        "  \"group\" {:?}\n  \"kind\" {name:?}\n  \"plural\" {:?}\n  \"versions\" (tuple {})\n  \"schema\" \"nodemesh.schema.{schema}\"",
        known.group(),
        known.plural,
        versions.join(" ")
    )
}

#[test]
fn the_document_tells_of_every_kind() {
    let text = read(DOCUMENT);
    let section = text.split_once("\n### Kinds\n").map_or("", |(_, rest)| rest);
    let section = section.split("\n### ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2).map(str::to_owned);
    same(DOCUMENT, &KNOWN_KINDS.iter().map(row).collect(), &rows.collect());
}

fn row(known: &KnownKind) -> String {
    let group = if known.group().is_empty() { "core" } else { known.group() };
    let versions: Vec<_> = known.api_versions.iter().filter_map(|it| it.rsplit('/').next()).collect();
    let treatment = match known.treatment {
        Treatment::Followed => "followed",
        Treatment::FromManifests => "manifests alone",
        Treatment::Used => "used",
        Treatment::UsedIfDefined => "used where defined",
        Treatment::Consulted => "used where defined, no conditions",
        Treatment::ReadNotUsed => "read, not used",
        Treatment::NotRead => "not read",
        Treatment::NotLookedFor => "not read, manifests alone",
    };
    format!("| {group} | {} | {} | {} | {treatment} |", known.name, known.plural, versions.join(", "))
}
