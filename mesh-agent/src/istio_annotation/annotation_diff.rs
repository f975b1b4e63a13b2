//! Decides which annotations are to be written, without asking the API.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_api::admin::{EnrolmentState, PodStatus};

use super::{ObservedAnnotation, ObservedAnnotations};

/// An annotation that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueWrite {
    /// Uid of the pod.
    pub uid: Arc<str>,
    /// The annotation as it was read.
    pub pod: ObservedAnnotation,
    /// Whether the annotation is to be there.
    pub enabled: bool,
}

/// Returns the annotations that are to be written. A pod that should be in the mesh and is not, or not yet,
/// keeps what it has: after a restart of the agent it soon will be, and where it can't be its connections are
/// refused, which peers that speak plaintext to it would not notice.
pub fn due_writes(pods: &[PodStatus], annotated: &ObservedAnnotations, installed: bool) -> Vec<DueWrite> {
    let states: HashMap<_, _> = pods.iter().map(|pod| (&*pod.uid, pod.state)).collect();
    let write = |(uid, pod): (&Arc<str>, &ObservedAnnotation)| {
        let enabled = match states.get(&**uid) {
            _ if !installed => false,
            Some(EnrolmentState::Enrolled) => true,
            Some(EnrolmentState::NotSelected) => false,
            Some(EnrolmentState::Pending | EnrolmentState::Failed) | None => return None,
        };
        let done = if enabled { pod.ours && pod.enabled } else { !pod.ours };
        (!done).then(|| DueWrite { uid: Arc::clone(uid), pod: pod.clone(), enabled })
    };
    annotated.iter().filter_map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(state: EnrolmentState) -> PodStatus {
        PodStatus {
            uid: "u".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            state,
            reason: None,
            netns: None,
            link: None,
            strict_egress: None,
        }
    }

    /// What is written of a pod in that state, if anything is.
    fn written(state: EnrolmentState, (enabled, ours): (bool, bool), installed: bool) -> Option<bool> {
        let annotated = ObservedAnnotation { namespace: "shop".into(), name: "web".into(), enabled, ours };
        let writes = due_writes(&[pod(state)], &[("u".into(), annotated)].into(), installed);
        assert!(writes.len() < 2);
        writes.first().map(|write| write.enabled)
    }

    #[test]
    fn it_is_there_while_a_pod_is_in_the_mesh_and_goes_with_that() {
        use EnrolmentState::{Enrolled, Failed, NotSelected, Pending};
        let (none, ours, istios, changed) = ((false, false), (true, true), (true, false), (false, true));
        for (state, annotated, expected) in [
            (Enrolled, none, Some(true)),
            (Enrolled, ours, None),
            (Enrolled, istios, Some(true)),
            (Enrolled, changed, Some(true)),
            (NotSelected, none, None),
            (NotSelected, ours, Some(false)),
            (NotSelected, istios, None),
            (NotSelected, changed, Some(false)),
            (Pending, none, None),
            (Pending, ours, None),
            (Failed, ours, None),
        ] {
            assert_eq!(written(state, annotated, true), expected, "{state:?} {annotated:?}");
        }
    }

    #[test]
    fn what_is_ours_goes_with_the_mesh_and_nothing_is_written_any_more() {
        for state in [EnrolmentState::Enrolled, EnrolmentState::Pending, EnrolmentState::NotSelected] {
            assert_eq!(written(state, (true, true), false), Some(false));
            assert_eq!(written(state, (true, false), false), None);
            assert_eq!(written(state, (false, false), false), None);
        }
    }

    #[test]
    fn pods_that_the_agent_has_not_looked_at_are_left_alone() {
        let annotated =
            ObservedAnnotation { namespace: "shop".into(), name: "web".into(), enabled: true, ours: true };
        assert_eq!(due_writes(&[], &[("u".into(), annotated)].into(), true), []);
    }
}
