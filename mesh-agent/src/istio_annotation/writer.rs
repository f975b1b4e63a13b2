//! Writes annotations: beside everything else that the agent does, some pods at a time, and again after a
//! pause if that fails.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use mesh_api::admin::PodStatus;
use mesh_api::resource::enrolment::{REDIRECTION_WRITER, redirection};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{AnnotationFailures, DueWrite, ObservedAnnotation, ObservedAnnotations, due_writes};

/// Most requests under way at a time.
const AT_ONCE: usize = 8;
/// Timeout of an answer of the API server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before a failed write is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Time for a written annotation to come back from the API; after that it is written again.
const READ_BACK: Duration = Duration::from_secs(5);
/// Tries of each while the mesh is removed, which waits for them.
const LAST_TRIES: u32 = 3;

/// Keeps the annotation of each pod of the node in line with its enrolment.
pub struct AnnotationWriter {
    client: Client,
    pods: watch::Receiver<Vec<PodStatus>>,
    annotated: watch::Receiver<Arc<ObservedAnnotations>>,
    installed: watch::Receiver<bool>,
    failures: AnnotationFailures,
    written: HashMap<Arc<str>, Written>,
    failed: HashMap<Arc<str>, Failed>,
    /// Kinds of failures that were logged, until everything is written.
    told: HashSet<String>,
}

/// An annotation that was written and is not read back yet.
struct Written {
    /// The annotation as it was read before.
    pod: ObservedAnnotation,
    enabled: bool,
    again: Instant,
}

/// An annotation that could not be written.
struct Failed {
    error: String,
    tries: u32,
    again: Instant,
}

impl AnnotationWriter {
    /// Creates a writer that follows the pods' state and what the API has of them.
    pub fn new(
        client: Client,
        pods: watch::Receiver<Vec<PodStatus>>,
        annotated: watch::Receiver<Arc<ObservedAnnotations>>,
        installed: watch::Receiver<bool>,
        failures: AnnotationFailures,
    ) -> Self {
        let (written, failed, told) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { client, pods, annotated, installed, failures, written, failed, told }
    }

    /// Writes until the mesh is removed and our annotations are gone, as far as possible; or until a source
    /// ends.
    pub async fn run(mut self) {
        loop {
            let installed = *self.installed.borrow_and_update();
            let annotated = self.annotated.borrow_and_update().clone();
            let writes = due_writes(&self.pods.borrow_and_update(), &annotated, installed);
            let open = self.open(writes, &annotated);
            if !installed && open.iter().all(|write| self.is_given_up(write)) {
                self.say_what_stays(&open);
                return;
            }
            let now = Instant::now();
            let now_due =
                open.into_iter().filter(|it| self.failed.get(&it.uid).is_none_or(|it| it.again <= now));
            let now_due: Vec<_> = now_due.collect();
            if !now_due.is_empty() {
                self.write(now_due).await;
                continue;
            }
            let again =
                self.failed.values().map(|it| it.again).chain(self.written.values().map(|it| it.again));
            let again = again.min();
            let wait = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = self.pods.changed() => changed.is_ok(),
                changed = self.annotated.changed() => changed.is_ok(),
                changed = self.installed.changed(), if installed => changed.is_ok(),
                () = wait => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Returns the due writes that are not known to be written yet; forgets those that are no longer due.
    fn open(&mut self, writes: Vec<DueWrite>, annotated: &ObservedAnnotations) -> Vec<DueWrite> {
        let now = Instant::now();
        self.written.retain(|uid, it| annotated.get(uid) == Some(&it.pod) && now < it.again);
        self.failed.retain(|uid, _| writes.iter().any(|write| write.uid == *uid));
        self.show();
        let is_written =
            |it: &DueWrite| self.written.get(&it.uid).is_some_and(|its| its.enabled == it.enabled);
        writes.into_iter().filter(|write| !is_written(write)).collect()
    }

    async fn write(&mut self, writes: Vec<DueWrite>) {
        let client = &self.client;
        let writing = writes.into_iter().map(|write| async move {
            let result = tokio::time::timeout(ANSWER_TIMEOUT, patch(client, &write)).await;
            (write, result.unwrap_or(Err(Failure::Silent)))
        });
        let results: Vec<_> = stream::iter(writing).buffer_unordered(AT_ONCE).collect().await;
        for (write, result) in results {
            match result {
                Ok(()) => {
                    self.failed.remove(&write.uid);
                    let (DueWrite { uid, pod, enabled }, again) = (write, Instant::now() + READ_BACK);
                    self.written.insert(uid, Written { pod, enabled, again });
                }
                Err(failure) => self.fail(&write, &failure),
            }
        }
        self.show();
    }

    fn fail(&mut self, write: &DueWrite, failure: &Failure) {
        if self.told.insert(failure.kind()) {
            tracing::warn!(namespace = %write.pod.namespace, pod = %write.pod.name, error = %failure,
                           "annotation ambient.istio.io/redirection not written, of this pod and maybe others: Istio's control \
                            plane and proxies take a pod without it for one outside of the mesh; trying again");
        }
        let tries = self.failed.get(&write.uid).map_or(0, |failed| failed.tries) + 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (tries - 1).min(6)).min(LONGEST_PAUSE);
        let failed = Failed { error: failure.to_string(), tries, again: Instant::now() + pause };
        self.failed.insert(Arc::clone(&write.uid), failed);
    }

    fn show(&mut self) {
        if self.failed.is_empty() {
            self.told.clear();
        }
        let shown = self.failed.iter().map(|(uid, failed)| (Arc::clone(uid), failed.error.clone()));
        self.failures.replace(shown.collect::<BTreeMap<_, _>>());
    }

    fn is_given_up(&self, write: &DueWrite) -> bool {
        self.failed.get(&write.uid).is_some_and(|failed| failed.tries >= LAST_TRIES)
    }

    fn say_what_stays(&self, open: &[DueWrite]) {
        if let Some(write) = open.first() {
            let error = self.failed.get(&write.uid).map(|failed| &*failed.error).unwrap_or_default();
            tracing::error!(pods = open.len(), namespace = %write.pod.namespace, pod = %write.pod.name, error,
                            "annotation ambient.istio.io/redirection stays on pods that are in no mesh any more: take it off \
                             with `kubectl annotate pod NAME ambient.istio.io/redirection-`");
        }
    }
}

/// Why the annotation was not written.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{} ({})", .0.message, .0.code)]
    Refused(Box<kube::core::Status>),
    #[error(transparent)]
    Api(kube::Error),
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
}

impl Failure {
    /// Returns the failure without the pod's name: many pods may have the same.
    fn kind(&self) -> String {
        match self {
            Self::Refused(status) => format!("{} {}", status.code, status.reason),
            other => other.to_string(),
        }
    }
}

/// Metadata can be written with the pod's status too, which takes less of a permission than the pod itself.
async fn patch(client: &Client, write: &DueWrite) -> Result<(), Failure> {
    let pods: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), &write.pod.namespace);
    let said = Patch::Apply(redirection(&write.pod.name, &write.uid, write.enabled));
    let how = PatchParams::apply(REDIRECTION_WRITER).force();
    match pods.patch_status(&write.pod.name, &how, &said).await {
        Ok(_) => Ok(()),
        // The pod is gone, or another one has its name.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.message.contains("metadata.uid") => {
            Ok(())
        }
        Err(kube::Error::Api(status)) => Err(Failure::Refused(status)),
        Err(error) => Err(Failure::Api(error)),
    }
}

#[cfg(test)]
mod tests;
