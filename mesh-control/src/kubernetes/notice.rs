//! Events about objects that the mesh does not own: each is told once for what there is to say, by whichever
//! replica leads.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use super::Cluster;
use super::objects::Name;

/// Longer notes are refused by the API server (1 KiB).
const LONGEST: usize = 1000;

/// What is to be told of an object.
pub(super) struct Notice<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a Name,
    pub uid: &'a str,
    /// What the event is called by.
    pub reason: &'a str,
    /// What became of what the object says.
    pub action: &'a str,
    pub note: &'a str,
    /// The state of the object that is told of.
    pub state: u64,
}

impl Notice<'_> {
    /// The event has a name that goes with the object's state, so the next leader's is the same and is not
    /// made again.
    pub async fn create(&self, cluster: &Cluster) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(cluster.client.clone(), &self.name.0);
        match api.create(&PostParams::default(), &self.event(&cluster.pod)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            // The namespace ends, and the object with it.
            Err(kube::Error::Api(status))
                if status.code == 404 || status.code == 403 && is_ending(&status.message) =>
            {
                Ok(())
            }
            made => made.map(drop),
        }
    }

    fn event(&self, replica: &str) -> Event {
        let (namespace, name) = self.name;
        // A name of the API's own length, however long the object's is.
        let stem: String = name.chars().take(200).collect();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:016x}", stem.trim_end_matches(['.', '-']), self.state)),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            type_: Some("Warning".to_owned()),
            reason: Some(self.reason.to_owned()),
            action: Some(self.action.to_owned()),
            note: Some(self.note.chars().take(LONGEST).collect()),
            regarding: Some(ObjectReference {
                api_version: Some(self.api_version.to_owned()),
                kind: Some(self.kind.to_owned()),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                uid: Some(self.uid.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some("nodemesh.io/mesh-control".to_owned()),
            reporting_instance: Some(replica.to_owned()),
            ..Event::default()
        }
    }
}

fn is_ending(message: &str) -> bool {
    message.contains("being terminated")
}

/// The same for the same state, in every replica.
pub(super) fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_fits_into_an_event_and_has_the_name_of_its_state() {
        let (name, note) = (("shop".to_owned(), "a".repeat(240) + ".b"), "x".repeat(5000));
        let of = |state: &str| {
            Notice {
                api_version: "v1",
                kind: "Service",
                name: &name,
                uid: "u",
                reason: "PastTheMesh",
                action: "Ignored",
                note: &note,
                state: fingerprint(&("u", state)),
            }
            .event("mesh-control-1")
        };
        let event = of("one");
        assert!(event.metadata.name.as_ref().is_some_and(|it| it.len() < 253), "{event:?}");
        assert_eq!(event.note.as_ref().map(String::len), Some(LONGEST));
        assert_eq!(
            event.metadata.name,
            of("one").metadata.name,
            "told again, it is refused as there already"
        );
        assert_ne!(event.metadata.name, of("another").metadata.name);
    }
}
