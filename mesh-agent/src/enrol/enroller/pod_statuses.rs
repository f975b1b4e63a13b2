//! The state of each pod, for the admin endpoint and the metrics.

use std::collections::HashSet;
use std::sync::Arc;

use mesh_api::admin::{EnrolmentState, PodStatus, StrictEgressStatus};
use mesh_api::resource::enrolment::Enrolment;

use super::Enroller;
use crate::pods::{NodePod, NodePods};

impl Enroller {
    /// Publishes the state of each pod, and the counts of them.
    pub(super) fn share_statuses_and_counts(&self, wanted: &NodePods, pending: &HashSet<Arc<str>>) {
        let statuses = wanted.values().map(|pod| {
            let (state, reason) = self.state_of(pod, pending);
            PodStatus {
                uid: pod.uid.to_string(),
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                state,
                reason,
                netns: self.enrolled.get(&pod.uid).map(|enrolled| enrolled.netns),
                link: None,
                strict_egress: self.strict_egress(pod),
            }
        });
        let statuses: Vec<_> = statuses.collect();
        self.setup.statuses.send_if_modified(|told| {
            let changed = *told != statuses;
            if changed {
                *told = statuses;
            }
            changed
        });
        let count = i64::try_from(self.enrolled.len()).unwrap_or(i64::MAX);
        self.setup.metrics.enrolled_pods.set(count);
        self.setup.metrics.pods_not_enrolled.set(i64::try_from(self.failed.len()).unwrap_or(i64::MAX));
    }

    fn strict_egress(&self, pod: &NodePod) -> Option<StrictEgressStatus> {
        // Nothing is refused of a pod that is not in the mesh.
        let enrolled = self.enrolled.get(&pod.uid)?;
        let egress = pod.egress.as_ref()?;
        Some(StrictEgressStatus {
            by: egress.by.to_string(),
            allowed: egress.allowed.iter().map(ToString::to_string).collect(),
            problem: egress.problem.clone(),
            not_in_force: enrolled.egress_not_in_force.clone(),
        })
    }

    fn state_of(&self, pod: &NodePod, pending: &HashSet<Arc<str>>) -> (EnrolmentState, Option<String>) {
        if let Enrolment::NotSelected(why) = &pod.enrolment {
            return (EnrolmentState::NotSelected, Some(why.to_string()));
        }
        if let Some(reason) = self.failed.get(&pod.uid) {
            return (EnrolmentState::Failed, Some(reason.clone()));
        }
        if let Some(enrolled) = self.enrolled.get(&pod.uid) {
            return (EnrolmentState::Enrolled, enrolled.plain.plaintext_reason());
        }
        debug_assert!(pending.contains(&pod.uid), "wanted, not enrolled and not failed");
        let reason = "no process in a network namespace of its own with an address found yet";
        (EnrolmentState::Pending, Some(reason.to_owned()))
    }
}
