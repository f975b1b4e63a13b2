//! What became of each policy, written on it: two conditions, and an event when one of them is not as it
//! should be.
//!
//! `nodemesh.io/Accepted` says whether it could be read, `nodemesh.io/InForce` how much of it counts. A route
//! of the Gateway API has conditions for each of its parents instead (`route_status`). The resource itself
//! says what was written last, so nothing is remembered here and nothing is written or told twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use mesh_api::admin::{InForce, ResourceStatus};
use mesh_api::manifest::ObjectKey;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::Cluster;
use super::objects::{Objects, Outcome, Version};
use super::route_status;
use super::watch::api_resource;
use crate::config::Configuration;
use crate::findings::Findings;

/// Types of the conditions.
const ACCEPTED: &str = "nodemesh.io/Accepted";
const IN_FORCE: &str = "nodemesh.io/InForce";

/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Writes of one round; the rest waits for the next, so that a thousand broken policies are no storm.
const MOST_AT_ONCE: usize = 50;

/// Between two rounds that write: a Service that comes and goes takes the state of its rules along.
const PAUSE: Duration = Duration::from_millis(500);

/// Longer messages help nobody, and the API server has a limit for events (1 KiB).
const LONGEST: usize = 1000;

/// What is known of the resources.
pub struct Writer {
    /// Where they are.
    pub cluster: Cluster,
    /// What they are.
    pub objects: Objects,
    /// What is wrong with them.
    pub findings: Arc<Mutex<Findings>>,
}

impl Writer {
    /// Writes what changes for ever, while this replica leads.
    pub async fn run(
        self,
        mut leads: watch::Receiver<bool>,
        mut configuration: watch::Receiver<Arc<Configuration>>,
    ) {
        let reporter = Reporter {
            controller: "nodemesh.io/mesh-control".into(),
            instance: Some(self.cluster.pod.clone()),
        };
        let events = Recorder::new(self.cluster.client.clone(), reporter);
        let mut written: HashMap<ObjectKey, Version> = HashMap::new();
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let mut due = self.due();
            // The watch may be a moment behind what was just written.
            due.retain(|due| written.get(&due.outcome.key) != Some(&due.outcome.version));
            due.truncate(MOST_AT_ONCE);
            let pause = if due.is_empty() { Duration::ZERO } else { PAUSE };
            for due in due {
                match due.tell(&self.cluster, &events).await {
                    Ok(()) => drop(written.insert(due.outcome.key, due.outcome.version)),
                    Err(error) => {
                        warn!(resource = %due.outcome.key, %error, "status not written; trying again");
                    }
                }
            }
            written.retain(|key, _| self.objects.has(key));
            tokio::time::sleep(pause).await;
            tokio::select! {
                changed = configuration.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Resources that do not say yet what became of them.
    fn due(&self) -> Vec<Due> {
        let outcomes = self.objects.outcomes();
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let judged: HashMap<_, _> = findings.resources.iter().map(|it| (it.key(), it)).collect();
        let all = outcomes.into_iter().filter_map(|outcome| Due::new(outcome, &judged));
        all.filter(Due::is_due).collect()
    }
}

/// A resource, and what it is to say.
struct Due {
    outcome: Outcome,
    /// What it says in one place, or of several parents.
    places: Vec<Place>,
}

/// Where a resource has conditions, and which.
pub(super) struct Place {
    /// The parent of a route. None: those of the whole resource.
    pub parent: Option<Value>,
    pub judgements: Vec<Judgement>,
}

/// A condition without its times.
pub(super) struct Judgement {
    pub condition: &'static str,
    pub status: &'static str,
    pub reason: String,
    pub message: String,
    /// Reason of the event that goes with it, if one does.
    pub event: Option<&'static str>,
}

pub(super) fn judgements(outcome: &Outcome, judged: &ResourceStatus) -> [Judgement; 2] {
    let all = judged.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
    let accepted = if outcome.errors.is_empty() {
        let message = "it has no mistakes; nodemesh.io/InForce says how much of it counts".to_owned();
        Judgement { condition: ACCEPTED, status: "True", reason: "Accepted".to_owned(), message, event: None }
    } else {
        let (reason, event) = ("Invalid".to_owned(), Some("Rejected"));
        Judgement { condition: ACCEPTED, status: "False", reason, message: cut(&all), event }
    };
    let (reason, message, event) = match judged.in_force {
        InForce::AsWritten => ("AsWritten", "in force as it is written".to_owned(), None),
        InForce::Partly => ("Partly", all, Some("PartlyInForce")),
        // The other condition tells.
        InForce::No if !outcome.errors.is_empty() => {
            ("No", "rejected, and nothing of it is in force".to_owned(), None)
        }
        InForce::No => ("No", format!("nothing of it is in force: {all}"), Some("NotInForce")),
        InForce::Earlier => ("Earlier", "rejected; what it said before is in force".to_owned(), None),
    };
    let status = if judged.in_force == InForce::AsWritten { "True" } else { "False" };
    let (reason, message) = (reason.to_owned(), cut(&message));
    [accepted, Judgement { condition: IN_FORCE, status, reason, message, event }]
}

/// The beginning of a message.
pub(super) fn cut(message: &str) -> String {
    message.chars().take(LONGEST).collect()
}

impl Due {
    /// None: it is not known yet.
    fn new(outcome: Outcome, judged: &HashMap<ObjectKey, &ResourceStatus>) -> Option<Self> {
        let judged = judged.get(&outcome.key).copied();
        let places = if outcome.key.kind.is_route() {
            route_status::places(&outcome, judged)?
        } else {
            vec![Place { parent: None, judgements: judgements(&outcome, judged?).into() }]
        };
        Some(Self { outcome, places })
    }

    fn is_due(&self) -> bool {
        let version = &self.outcome.version;
        let stands = |place: &Place| place.news(version).next().is_none();
        !self.places.iter().all(stands) || route_status::has_stale(version, &self.places)
    }

    /// What the status is to be.
    fn status(&self, now: Timestamp) -> Value {
        let version = &self.outcome.version;
        match &self.places[..] {
            [place @ Place { parent: None, .. }] => json!({"conditions": place.conditions(version, now)}),
            places => json!({"parents": route_status::parents(version, places, now)}),
        }
    }

    /// The events that go with what is new, each once.
    fn events(&self) -> Vec<Event> {
        let new = self.places.iter().flat_map(|place| place.news(&self.outcome.version));
        let mut events: Vec<Event> = Vec::new();
        for event in new.filter_map(Judgement::event) {
            if !events.iter().any(|known| known.reason == event.reason) {
                events.push(event);
            }
        }
        events
    }

    async fn tell(&self, cluster: &Cluster, events: &Recorder) -> Result<(), kube::Error> {
        let Outcome { key, version: of, .. } = &self.outcome;
        let resource = api_resource(key.kind, &of.api);
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &key.namespace, &resource);
        let patch = json!({
            // Refused if somebody else wrote meanwhile: then the watch brings the new state, and it is done
            // anew.
            "metadata": {"resourceVersion": of.resource},
            "status": self.status(Timestamp::now()),
        });
        api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        for event in self.events() {
            events.publish(&event, &self.regarding()).await?;
        }
        Ok(())
    }

    fn regarding(&self) -> ObjectReference {
        let Outcome { key, version, .. } = &self.outcome;
        ObjectReference {
            api_version: Some(version.api.clone()),
            kind: Some(key.kind.as_str().to_owned()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(version.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

impl Place {
    /// The conditions that are there.
    pub fn before<'a>(&self, version: &'a Version) -> &'a [Value] {
        match &self.parent {
            None => &version.conditions,
            Some(parent) => route_status::conditions_for(version, parent),
        }
    }

    /// What is not said there yet.
    fn news<'a>(&'a self, version: &'a Version) -> impl Iterator<Item = &'a Judgement> {
        let before = self.before(version);
        self.judgements.iter().filter(|judgement| !judgement.stands_in(before, version.generation))
    }

    /// The conditions with ours put right; other controllers' stay.
    pub fn conditions(&self, version: &Version, now: Timestamp) -> Vec<Value> {
        let before = self.before(version);
        let is_ours = |it: &&Value| self.judgements.iter().any(|judgement| it["type"] == judgement.condition);
        let others = before.iter().filter(|it| !is_ours(it)).cloned();
        let ours = self.judgements.iter().map(|it| it.condition(before, version.generation, now));
        others.chain(ours).collect()
    }
}

impl Judgement {
    fn before<'a>(&self, conditions: &'a [Value]) -> Option<&'a Value> {
        conditions.iter().find(|condition| condition["type"] == self.condition)
    }

    /// Whether it is said so already.
    fn stands_in(&self, conditions: &[Value], generation: i64) -> bool {
        self.before(conditions).is_some_and(|condition| {
            condition["status"] == self.status
                && condition["reason"] == self.reason
                && condition["message"] == self.message
                && condition["observedGeneration"] == generation
        })
    }

    fn condition(&self, before: &[Value], generation: i64, now: Timestamp) -> Value {
        let same = self.before(before).filter(|condition| condition["status"] == self.status);
        let since = same
            .and_then(|condition| condition["lastTransitionTime"].as_str())
            .map_or_else(|| format!("{now:.0}"), str::to_owned);
        json!({
            "type": self.condition,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since,
            "observedGeneration": generation,
        })
    }

    fn event(&self) -> Option<Event> {
        Some(Event {
            type_: EventType::Warning,
            reason: self.event?.to_owned(),
            note: Some(self.message.clone()),
            action: self.reason.clone(),
            secondary: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::admin::UnenforcedPart;
    use mesh_api::manifest::{Kind, ManifestError};

    use super::*;

    fn due(
        errors: Vec<ManifestError>,
        in_force: InForce,
        parts: Vec<UnenforcedPart>,
        conditions: Vec<Value>,
    ) -> Due {
        let (kind, namespace, name) = (Kind::AuthorizationPolicy, "shop".to_owned(), "open".to_owned());
        let key = ObjectKey { kind, namespace: namespace.clone(), name: name.clone() };
        let version = Version {
            api: "security.istio.io/v1".into(),
            uid: "u".into(),
            resource: "7".into(),
            generation: 2,
            conditions,
            ..Version::default()
        };
        let outcome = Outcome { key, version, errors };
        let (says, parents) = ("DENY".to_owned(), Vec::new());
        let judged = ResourceStatus { kind, namespace, name, says, in_force, parts, parents };
        Due::new(outcome, &HashMap::from([(judged.key(), &judged)])).unwrap()
    }

    fn part(field: &str, meaning: &str, fix: &str) -> UnenforcedPart {
        UnenforcedPart { field: field.into(), meaning: meaning.into(), fix: fix.into() }
    }

    fn rejected(conditions: Vec<Value>) -> Due {
        let error = ManifestError {
            file: String::new(),
            line: 1,
            resource: None,
            field: Some("spec.action".into()),
            problem: "unknown action".into(),
            fix: "write ALLOW".into(),
        };
        due(vec![error], InForce::No, vec![part("spec.action", "unknown action", "write ALLOW")], conditions)
    }

    fn without_effect(conditions: Vec<Value>) -> Due {
        due(
            Vec::new(),
            InForce::No,
            vec![part("spec.action", "CUSTOM is not supported", "write DENY")],
            conditions,
        )
    }

    fn told(due: &Due) -> Vec<String> {
        due.events().into_iter().map(|event| event.reason).collect()
    }

    fn conditions(due: &Due) -> Vec<Value> {
        due.status(Timestamp::UNIX_EPOCH)["conditions"].as_array().unwrap().clone()
    }

    #[test]
    fn a_condition_is_written_once_and_others_stay() {
        let others = json!({"type": "Reconciled", "status": "True"});
        let first = rejected(vec![others.clone()]);
        assert!(first.is_due());
        let written = conditions(&first);
        assert_eq!(written[0], others);
        assert_eq!(written[1]["message"], "spec.action: unknown action; fix: write ALLOW");
        assert_eq!(written[1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!((&written[2]["type"], &written[2]["status"]), (&json!(IN_FORCE), &json!("False")));
        assert!(!rejected(written.clone()).is_due());
        let mended = due(Vec::new(), InForce::AsWritten, Vec::new(), written);
        assert!(mended.is_due());
        let conditions = conditions(&mended);
        assert_eq!(conditions.len(), 3);
        assert!(conditions.iter().all(|condition| condition["status"] == "True"), "{conditions:?}");
    }

    #[test]
    fn a_policy_without_effect_is_accepted_and_not_in_force() {
        let first = without_effect(Vec::new());
        let written = conditions(&first);
        assert_eq!(written[0]["status"], "True");
        assert_eq!((&written[1]["status"], &written[1]["reason"]), (&json!("False"), &json!("No")));
        let message = "nothing of it is in force: spec.action: CUSTOM is not supported; fix: write DENY";
        assert_eq!(written[1]["message"], message);
        let nothing_is_said_to_be = |it: &Value| !it["message"].as_str().unwrap().contains("in force as");
        assert!(written.iter().all(nothing_is_said_to_be), "{written:?}");
    }

    #[test]
    fn each_change_is_told_once() {
        let first = without_effect(Vec::new());
        assert_eq!(told(&first), ["NotInForce"]);
        let written = conditions(&first);
        assert!(told(&without_effect(written.clone())).is_empty());
        let partly =
            due(Vec::new(), InForce::Partly, vec![part("spec.rules[0]", "left out", "x")], written.clone());
        assert_eq!(told(&partly), ["PartlyInForce"]);
        assert_eq!(told(&rejected(written)), ["Rejected"], "one event for a rejection, not two");
        assert!(told(&due(Vec::new(), InForce::AsWritten, Vec::new(), Vec::new())).is_empty());
    }
}
