//! Writing it: beside all else that the agent does, some pods at a time, and again after a pause where that
//! fails.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mesh_api::admin::PodStatus;
use mesh_api::resource::enrolment::{REDIRECTION_WRITER, redirection};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Errand, Failures, Note, Notes, due};

/// Requests that are under way at a time.
const AT_ONCE: usize = 8;
/// For one answer of the API server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until what failed is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// What is written comes back from the API within this, or is written again.
const READ_BACK: Duration = Duration::from_secs(5);
/// How often each is tried while the mesh is removed, which waits for it.
const LAST_TRIES: u32 = 3;

/// Keeps the annotation of each pod of the node in line with its enrolment.
pub struct Writer {
    client: Client,
    pods: watch::Receiver<Vec<PodStatus>>,
    notes: watch::Receiver<Arc<Notes>>,
    installed: watch::Receiver<bool>,
    failures: Failures,
    written: HashMap<Arc<str>, Written>,
    failed: HashMap<Arc<str>, Failed>,
    /// Kinds of failures that the log has, until all is well again.
    told: HashSet<String>,
}

/// What was written and is not read back yet.
struct Written {
    /// What was read before.
    note: Note,
    enabled: bool,
    again: Instant,
}

/// What could not be written.
struct Failed {
    error: String,
    tries: u32,
    again: Instant,
}

impl Writer {
    /// For the pods whose state is told, with what the API says of them.
    pub fn new(
        client: Client,
        pods: watch::Receiver<Vec<PodStatus>>,
        notes: watch::Receiver<Arc<Notes>>,
        installed: watch::Receiver<bool>,
        failures: Failures,
    ) -> Self {
        let (written, failed, told) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { client, pods, notes, installed, failures, written, failed, told }
    }

    /// Writes until the mesh is removed and what is ours is gone, as far as it will go; or until a source
    /// ends.
    pub async fn run(mut self) {
        loop {
            let installed = *self.installed.borrow_and_update();
            let notes = self.notes.borrow_and_update().clone();
            let errands = due(&self.pods.borrow_and_update(), &notes, installed);
            let open = self.open(errands, &notes);
            if !installed && open.iter().all(|errand| self.is_given_up(errand)) {
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
                changed = self.notes.changed() => changed.is_ok(),
                changed = self.installed.changed(), if installed => changed.is_ok(),
                () = wait => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// What of it is not written yet, as far as is known; what is not due any more is forgotten.
    fn open(&mut self, errands: Vec<Errand>, notes: &Notes) -> Vec<Errand> {
        let now = Instant::now();
        self.written.retain(|uid, it| notes.get(uid) == Some(&it.note) && now < it.again);
        self.failed.retain(|uid, _| errands.iter().any(|errand| errand.uid == *uid));
        self.show();
        let is_written = |it: &Errand| self.written.get(&it.uid).is_some_and(|its| its.enabled == it.enabled);
        errands.into_iter().filter(|errand| !is_written(errand)).collect()
    }

    async fn write(&mut self, errands: Vec<Errand>) {
        let client = &self.client;
        let writing = errands.into_iter().map(|errand| async move {
            let result = tokio::time::timeout(ANSWER_TIMEOUT, write(client, &errand)).await;
            (errand, result.unwrap_or(Err(Failure::Silent)))
        });
        let results: Vec<_> = stream::iter(writing).buffer_unordered(AT_ONCE).collect().await;
        for (errand, result) in results {
            match result {
                Ok(()) => {
                    self.failed.remove(&errand.uid);
                    let (Errand { uid, note, enabled }, again) = (errand, Instant::now() + READ_BACK);
                    self.written.insert(uid, Written { note, enabled, again });
                }
                Err(failure) => self.fail(&errand, &failure),
            }
        }
        self.show();
    }

    fn fail(&mut self, errand: &Errand, failure: &Failure) {
        if self.told.insert(failure.kind()) {
            tracing::warn!(namespace = %errand.note.namespace, pod = %errand.note.name, error = %failure,
                           "annotation ambient.istio.io/redirection not written, of this pod and maybe others: Istio's control \
                            plane and proxies take a pod without it for one outside of the mesh; trying again");
        }
        let tries = self.failed.get(&errand.uid).map_or(0, |failed| failed.tries) + 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (tries - 1).min(6)).min(LONGEST_PAUSE);
        let failed = Failed { error: failure.to_string(), tries, again: Instant::now() + pause };
        self.failed.insert(Arc::clone(&errand.uid), failed);
    }

    fn show(&mut self) {
        if self.failed.is_empty() {
            self.told.clear();
        }
        let shown = self.failed.iter().map(|(uid, failed)| (Arc::clone(uid), failed.error.clone()));
        self.failures.replace(shown.collect::<BTreeMap<_, _>>());
    }

    fn is_given_up(&self, errand: &Errand) -> bool {
        self.failed.get(&errand.uid).is_some_and(|failed| failed.tries >= LAST_TRIES)
    }

    fn say_what_stays(&self, open: &[Errand]) {
        if let Some(errand) = open.first() {
            let error = self.failed.get(&errand.uid).map(|failed| &*failed.error).unwrap_or_default();
            tracing::error!(pods = open.len(), namespace = %errand.note.namespace, pod = %errand.note.name, error,
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
    /// What many pods may have in common: messages name the pod.
    fn kind(&self) -> String {
        match self {
            Self::Refused(status) => format!("{} {}", status.code, status.reason),
            other => other.to_string(),
        }
    }
}

/// Metadata may be written with the pod's status too, which takes less of a right than the pod itself.
async fn write(client: &Client, errand: &Errand) -> Result<(), Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &errand.note.namespace);
    let said = Patch::Apply(redirection(&errand.note.name, &errand.uid, errand.enabled));
    let how = PatchParams::apply(REDIRECTION_WRITER).force();
    match pods.patch_status(&errand.note.name, &how, &said).await {
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
