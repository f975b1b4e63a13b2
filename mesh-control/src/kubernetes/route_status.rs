//! The status of a route of the Gateway API: conditions for each of its parents that is the mesh's, beside
//! those of other controllers for theirs.

use k8s_openapi::jiff::Timestamp;
use mesh_api::admin::{ParentFault, ResourceStatus};
use serde_json::{Value, json};

use super::objects::{Outcome, Version};
use super::status::{Judgement, Place, cut, judgements};

/// Who says what is said of Services that are parents.
const CONTROLLER: &str = "nodemesh.io/mesh-controller";

/// What is to be said of each parent that is the mesh's. None: it is not known yet.
pub(super) fn places(outcome: &Outcome, judged: Option<&ResourceStatus>) -> Option<Vec<Place>> {
    let parents = outcome.version.parent_refs.iter().enumerate().filter(|(_, parent)| is_service(parent));
    let place = |(index, parent): (usize, &Value)| {
        let parent = Some(parent.clone());
        Some(Place { parent, judgements: of_parent(outcome, judged?, index) })
    };
    parents.map(place).collect()
}

/// Whether a parent is a Service; all others are other controllers'.
fn is_service(parent: &Value) -> bool {
    parent["kind"] == "Service" && (parent["group"] == "" || parent["group"] == "core")
}

fn of_parent(outcome: &Outcome, judged: &ResourceStatus, index: usize) -> Vec<Judgement> {
    let [rejected, in_force] = judgements(outcome, judged);
    if !outcome.errors.is_empty() {
        let unresolved = Judgement {
            condition: "ResolvedRefs",
            status: "Unknown",
            reason: "Pending".to_owned(),
            message: "what the route names is told when it can be read".to_owned(),
            event: None,
        };
        let reason = "UnsupportedValue".to_owned();
        return vec![Judgement { condition: "Accepted", reason, ..rejected }, unresolved, in_force];
    }
    let parent = judged.parents.iter().find(|parent| parent.index == index);
    let refused = parent.and_then(|parent| parent.refused.as_ref());
    let accepted = judgement("Accepted", refused, "the clients of the Service follow the route");
    let unresolved = parent.and_then(|parent| parent.unresolved.as_ref());
    let resolved = judgement("ResolvedRefs", unresolved, "all that the route names can be used");
    vec![accepted, resolved, in_force]
}

/// A condition that is true under its own name, unless there is a fault.
fn judgement(condition: &'static str, fault: Option<&ParentFault>, good: &str) -> Judgement {
    let (status, reason, message) = match fault {
        None => ("True", condition, good.to_owned()),
        Some(fault) => ("False", fault.reason.as_str(), cut(&fault.message)),
    };
    // The event of `nodemesh.io/InForce` tells of it.
    Judgement { condition, status, reason: reason.to_owned(), message, event: None }
}

/// What was said of a parent.
pub(super) fn conditions_for<'a>(version: &'a Version, parent: &Value) -> &'a [Value] {
    let own = version.parents.iter().find(|entry| is_ours(entry) && entry["parentRef"] == *parent);
    own.and_then(|entry| entry["conditions"].as_array()).map_or(&[], Vec::as_slice)
}

fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// Whether something is said of what is a parent no more.
pub(super) fn has_stale(version: &Version, places: &[Place]) -> bool {
    let is_parent = |entry: &Value| places.iter().any(|it| it.parent.as_ref() == Some(&entry["parentRef"]));
    version.parents.iter().any(|entry| is_ours(entry) && !is_parent(entry))
}

/// All that is to be said of parents: what others say as it is, and then what the mesh does.
pub(super) fn parents(version: &Version, places: &[Place], now: Timestamp) -> Vec<Value> {
    let others = version.parents.iter().filter(|entry| !is_ours(entry)).cloned();
    let ours = places.iter().filter_map(|place| {
        let conditions = place.conditions(version, now);
        Some(json!({
            "parentRef": place.parent.as_ref()?, "controllerName": CONTROLLER, "conditions": conditions,
        }))
    });
    others.chain(ours).collect()
}

#[cfg(test)]
mod tests {
    use mesh_api::admin::{InForce, ParentStatus};
    use mesh_api::manifest::{Kind, ManifestError, ObjectKey};

    use super::*;

    fn service(name: &str) -> Value {
        json!({"group": "", "kind": "Service", "name": name})
    }

    fn gateway() -> Value {
        json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"})
    }

    fn others() -> Value {
        json!({"parentRef": gateway(), "controllerName": "example.com/gateways", "conditions": []})
    }

    /// A route with a Gateway and these parents, and what was said of it.
    fn outcome(names: &[&str], generation: i64, parents: Vec<Value>) -> Outcome {
        let key = ObjectKey { kind: Kind::HTTPRoute, namespace: "shop".into(), name: "web".into() };
        let parent_refs = std::iter::once(gateway()).chain(names.iter().map(|name| service(name))).collect();
        let version = Version { generation, parent_refs, parents, ..Version::default() };
        Outcome { key, version, errors: Vec::new() }
    }

    fn judged(parents: Vec<ParentStatus>) -> ResourceStatus {
        ResourceStatus {
            kind: Kind::HTTPRoute,
            namespace: "shop".into(),
            name: "web".into(),
            says: String::new(),
            in_force: InForce::AsWritten,
            parts: Vec::new(),
            parents,
        }
    }

    fn good(index: usize) -> ParentStatus {
        ParentStatus { index, refused: None, unresolved: None }
    }

    fn fault(reason: &str) -> ParentFault {
        ParentFault { reason: reason.into(), message: "why".into() }
    }

    fn written(outcome: &Outcome, judged: &ResourceStatus, second: i64) -> Vec<Value> {
        let places = places(outcome, Some(judged)).unwrap();
        parents(&outcome.version, &places, Timestamp::from_second(second).unwrap())
    }

    /// Type, status and reason of each condition of an entry.
    fn told(entry: &Value) -> Vec<(&str, &str, &str)> {
        let conditions = entry["conditions"].as_array().unwrap().iter();
        conditions
            .map(|it| {
                let [kind, status, reason] =
                    ["type", "status", "reason"].map(|name| it[name].as_str().unwrap());
                (kind, status, reason)
            })
            .collect()
    }

    #[test]
    fn each_parent_that_is_a_service_has_its_conditions_and_others_keep_theirs() {
        let first = outcome(&["web", "api"], 3, vec![others()]);
        let refused = ParentStatus { refused: Some(fault("NoMatchingParent")), ..good(2) };
        let status = written(&first, &judged(vec![good(1), refused]), 0);
        assert_eq!((status.len(), &status[0]), (3, &others()));
        for (entry, name) in status[1..].iter().zip(["web", "api"]) {
            assert_eq!((&entry["parentRef"], &entry["controllerName"]), (&service(name), &json!(CONTROLLER)));
        }
        let in_force = ("nodemesh.io/InForce", "True", "AsWritten");
        let resolved = ("ResolvedRefs", "True", "ResolvedRefs");
        assert_eq!(told(&status[1]), [("Accepted", "True", "Accepted"), resolved, in_force]);
        assert_eq!(told(&status[2]), [("Accepted", "False", "NoMatchingParent"), resolved, in_force]);
        assert_eq!(status[1]["conditions"][0]["observedGeneration"], 3);
    }

    #[test]
    fn nothing_is_written_twice_and_a_time_stays_while_nothing_changes() {
        let first = outcome(&["web"], 1, vec![others()]);
        let judgement = judged(vec![good(1)]);
        let status = written(&first, &judgement, 0);
        let again = outcome(&["web"], 2, status);
        let later = written(&again, &judgement, 60);
        let condition = &later[1]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:00Z", "{condition}");
        assert_eq!(condition["observedGeneration"], 2);
        let unresolved = ParentStatus { unresolved: Some(fault("BackendNotFound")), ..good(1) };
        let changed = written(&outcome(&["web"], 2, later), &judged(vec![unresolved]), 60);
        assert_eq!(told(&changed[1])[1], ("ResolvedRefs", "False", "BackendNotFound"));
        let times = [0, 1].map(|index| changed[1]["conditions"][index]["lastTransitionTime"].clone());
        assert_eq!(times, ["1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z"]);
    }

    #[test]
    fn what_is_no_parent_any_more_is_said_nothing_of() {
        let status =
            written(&outcome(&["web", "api"], 1, vec![others()]), &judged(vec![good(1), good(2)]), 0);
        let now = outcome(&["api"], 2, status);
        let places_now = places(&now, Some(&judged(vec![good(1)]))).unwrap();
        assert!(has_stale(&now.version, &places_now));
        let left = parents(&now.version, &places_now, Timestamp::UNIX_EPOCH);
        let names: Vec<_> = left.iter().map(|entry| entry["parentRef"]["name"].clone()).collect();
        assert_eq!(names, ["edge", "api"]);
        let none = places(&outcome(&[], 3, left.clone()), None).expect("a route of gateways is known");
        let version = outcome(&[], 3, left).version;
        assert!(none.is_empty() && has_stale(&version, &none));
        assert_eq!(parents(&version, &none, Timestamp::UNIX_EPOCH), [others()]);
        assert!(!has_stale(&outcome(&[], 3, vec![others()]).version, &none), "others' are left alone");
        assert!(places(&outcome(&["web"], 1, Vec::new()), None).is_none(), "not known yet");
    }

    #[test]
    fn a_route_with_mistakes_is_not_accepted() {
        let error = ManifestError {
            file: String::new(),
            line: 1,
            resource: None,
            field: Some("spec.rules".into()),
            problem: "wrong".into(),
            fix: "mend it".into(),
        };
        let rejected = Outcome { errors: vec![error], ..outcome(&["web"], 1, Vec::new()) };
        let before = ResourceStatus { in_force: InForce::Earlier, ..judged(vec![good(1)]) };
        let status = written(&rejected, &before, 0);
        let unresolved = ("ResolvedRefs", "Unknown", "Pending");
        let expected = [
            ("Accepted", "False", "UnsupportedValue"),
            unresolved,
            ("nodemesh.io/InForce", "False", "Earlier"),
        ];
        assert_eq!(told(&status[0]), expected);
    }
}
