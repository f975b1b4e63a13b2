//! Services and pods that can be reached past the mesh, by addresses that are not the mesh's: each is told so
//! by an event.
//!
//! An event and no condition: a pod's status is its kubelet's, and a Service's the cloud's.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_api::admin::ResourceStatus;
use mesh_api::manifest::{Kind, ObjectKey};
use tokio::sync::watch;
use tracing::warn;

use super::Cluster;
use super::notice::{Notice, fingerprint};
use super::objects::Objects;
use crate::config::Configuration;
use crate::findings::Findings;

/// Events for objects of one kind; who has more of them, as of a `DaemonSet`'s pods, has understood.
const MOST_OF_A_KIND: usize = 100;

/// Events of one round; the rest waits for the next.
const MOST_AT_ONCE: usize = 20;

/// Between two rounds, and before what could not be told is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// What is known of the objects.
pub struct Teller {
    /// Where they are.
    pub cluster: Cluster,
    /// What they are.
    pub objects: Objects,
    /// What is to be said of them.
    pub findings: Arc<Mutex<Findings>>,
}

/// One object in one state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    uid: String,
    note: String,
}

impl Teller {
    /// Tells each object for ever, while this replica leads.
    pub async fn run(
        self,
        mut leads: watch::Receiver<bool>,
        mut configuration: watch::Receiver<Arc<Configuration>>,
    ) {
        let mut told = HashMap::new();
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let resources = self.resources();
            let due = due(&resources, &mut told, |key| self.objects.uid(key));
            let waits = due.is_empty();
            for (key, said) in due {
                match tell(&self.cluster, &key, &said).await {
                    Ok(()) => drop(told.insert(key, said)),
                    Err(error) => warn!(resource = %key, %error, "not told; trying again"),
                }
            }
            tokio::select! {
                changed = configuration.changed(), if waits => if changed.is_err() { return },
                () = tokio::time::sleep(PAUSE), if !waits => {}
            }
        }
    }

    fn resources(&self) -> Arc<Vec<ResourceStatus>> {
        Arc::clone(&self.findings.lock().unwrap_or_else(PoisonError::into_inner).resources)
    }
}

/// Objects that have not been told yet what is said of them now. What is gone is forgotten.
fn due(
    resources: &[ResourceStatus],
    told: &mut HashMap<ObjectKey, Said>,
    uid: impl Fn(&ObjectKey) -> Option<String>,
) -> Vec<(ObjectKey, Said)> {
    let others: Vec<_> = resources.iter().filter(|it| !it.is_policy()).collect();
    let there: HashSet<_> = others.iter().map(|it| it.key()).collect();
    told.retain(|key, _| there.contains(key));
    let of_kind = |kind| others.iter().filter(move |it| it.kind == kind).take(MOST_OF_A_KIND);
    let all = of_kind(Kind::Service).chain(of_kind(Kind::Pod)).filter_map(|it| {
        let note = it.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
        Some((it.key(), Said { uid: uid(&it.key())?, note }))
    });
    all.filter(|(key, said)| told.get(key) != Some(said)).take(MOST_AT_ONCE).collect()
}

async fn tell(cluster: &Cluster, key: &ObjectKey, said: &Said) -> Result<(), kube::Error> {
    let notice = Notice {
        api_version: key.kind.api_versions()[0],
        kind: key.kind.as_str(),
        name: &(key.namespace.clone(), key.name.clone()),
        uid: &said.uid,
        reason: "PastTheMesh",
        action: "Ignored",
        note: &said.note,
        state: fingerprint(said),
    };
    notice.create(cluster).await
}

#[cfg(test)]
mod tests {
    use mesh_api::admin::{InForce, UnenforcedPart};

    use super::*;

    fn resource(kind: Kind, name: &str, meaning: &str) -> ResourceStatus {
        let part = UnenforcedPart { field: "f".into(), meaning: meaning.into(), fix: "x".into() };
        let (namespace, name, says) = ("shop".into(), name.into(), String::new());
        let (in_force, parts, parents) = (InForce::Partly, vec![part], Vec::new());
        ResourceStatus { kind, namespace, name, says, in_force, parts, parents }
    }

    fn tell(resources: &[ResourceStatus], told: &mut HashMap<ObjectKey, Said>) -> Vec<String> {
        let due = due(resources, told, |key| Some(key.name.clone()));
        told.extend(due.iter().cloned());
        due.into_iter().map(|(key, said)| format!("{key} {}", said.note)).collect()
    }

    #[test]
    fn each_object_is_told_once_for_what_is_said_of_it() {
        let mut told = HashMap::new();
        let policy = resource(Kind::DestinationRule, "rule", "no Service");
        let web = resource(Kind::Service, "web", "192.0.2.1");
        let all = [policy.clone(), web];
        assert_eq!(
            tell(&all, &mut told),
            ["Service shop/web f: 192.0.2.1; fix: x"],
            "policies have conditions"
        );
        assert!(tell(&all, &mut told).is_empty());
        let moved = [policy, resource(Kind::Service, "web", "192.0.2.2")];
        assert_eq!(tell(&moved, &mut told), ["Service shop/web f: 192.0.2.2; fix: x"]);
        assert!(tell(&[], &mut told).is_empty() && told.is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn of_many_pods_some_are_told() {
        let mut told = HashMap::new();
        let mut all: Vec<_> =
            (0..500).map(|number| resource(Kind::Pod, &format!("web-{number:03}"), "port")).collect();
        all.push(resource(Kind::Service, "web", "192.0.2.1"));
        let rounds = std::iter::from_fn(|| Some(tell(&all, &mut told)).filter(|round| !round.is_empty()));
        let rounds: Vec<_> = rounds.collect();
        assert!(rounds.iter().all(|round| round.len() <= MOST_AT_ONCE), "{rounds:?}");
        assert_eq!(rounds.iter().map(Vec::len).sum::<usize>(), MOST_OF_A_KIND + 1);
    }
}
