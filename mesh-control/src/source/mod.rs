//! Where the configuration comes from: a directory of manifests, or the Kubernetes API.
//!
//! [`directory`] reads the one, keeping the last good state of what is broken now; `last_good` keeps that
//! state across restarts. The other is [`crate::kubernetes`]'s. [`Publisher`] compiles the objects and
//! publishes the result for everybody at once.

mod claims;
pub mod directory;
mod judgement;
mod last_good;

use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::compile::{Compiler, Condition, MeshConfig, ObjectChange, ResourceUpdate};
use mesh_api::manifest::ManifestError;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use self::directory::Directory;
use crate::config::Configuration;
use crate::findings::{Findings, Loaded};
use crate::kubernetes::objects::Objects;
use crate::metrics::Metrics;
use crate::watch::{DirectoryWatch, Touched};

/// Changes of a cluster come in bursts (a roll-out): they are gathered for so long.
const BURST: Duration = Duration::from_millis(50);

/// Compiling takes at most this part of a core: after a change that takes long the next ones wait.
const REST: u32 = 4;

/// Reads all objects.
pub enum Reader {
    /// Manifests in a directory.
    Directory(Box<Directory>),
    /// What the watches of the Kubernetes API have told.
    Kubernetes(Objects),
}

/// Tells when to read again.
pub enum Changes {
    /// A directory's files.
    Directory(DirectoryWatch),
    /// The cluster's objects.
    Kubernetes(Objects),
}

impl Reader {
    fn read(&mut self, touched: &Touched) -> io::Result<Loaded> {
        match self {
            Self::Directory(directory) => directory.read(touched),
            Self::Kubernetes(objects) => Ok(objects.load()),
        }
    }

    /// What was read last is published.
    fn is_published(&self) {
        if let Self::Kubernetes(objects) = self {
            objects.settle();
        }
    }
}

impl Changes {
    /// Returns when something has changed since the last time, with the files. `cost` is what reading it took
    /// then.
    async fn next(&mut self, cost: Duration) -> Touched {
        match self {
            Self::Directory(watch) => watch.changed().await,
            Self::Kubernetes(objects) => {
                objects.changed().await;
                tokio::time::sleep(BURST.max(cost * REST)).await;
                Touched::default()
            }
        }
    }
}

/// Reads, compiles and publishes.
pub struct Publisher {
    reader: Reader,
    compiler: Compiler,
    /// The last state that was published, to be changed into the next.
    present: Configuration,
    configuration: watch::Sender<Arc<Configuration>>,
    findings: Arc<Mutex<Findings>>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// A publisher of the empty configuration.
    pub fn new(reader: Reader, mesh: MeshConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            reader,
            compiler: Compiler::new(mesh),
            present: Configuration::default(),
            configuration: watch::Sender::new(Arc::default()),
            findings: Arc::default(),
            metrics,
        }
    }

    /// The configuration in force, now and later.
    pub fn configuration(&self) -> watch::Receiver<Arc<Configuration>> {
        self.configuration.subscribe()
    }

    /// What is wrong with it, now and later.
    pub fn findings(&self) -> Arc<Mutex<Findings>> {
        Arc::clone(&self.findings)
    }

    /// Publishes whatever changes. Never returns.
    pub async fn follow(mut self, mut changes: Changes) {
        let mut cost = Duration::ZERO;
        loop {
            let touched = changes.next(cost).await;
            // Reading and compiling a large mesh takes milliseconds of a core: not on the threads that serve.
            let work = tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                let panicked = self.attempt(|it| it.publish(&touched));
                (self, start.elapsed(), panicked)
            });
            // An error only when the runtime shuts down.
            let Ok((publisher, took, panicked)) = work.await else { return };
            (self, cost) = (publisher, took);
            if panicked {
                return self.stay().await;
            }
        }
    }

    /// Returns whether it panicked.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> bool {
        // What it has left half done nobody uses any more.
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        if let Ok(Err(error)) = &done {
            error!(%error, "configuration not read; the last one stays in force");
        }
        done.is_err()
    }

    /// Publishes no more: what a panic has left half done is not to be gone on with. What was published stays
    /// in force, and certificates are signed; a control plane that starts anew would most likely get no
    /// further.
    async fn stay(self) {
        error!(
            "compiling panicked; the last configuration stays in force until the control plane starts anew"
        );
        self.metrics.config_errors.set(1);
        std::future::pending::<()>().await;
    }

    /// Reads what was touched and publishes what that changes, all at once.
    pub fn publish(&mut self, touched: &Touched) -> io::Result<()> {
        let start = Instant::now();
        let Loaded { changes, objects, errors, warnings } = self.reader.read(touched)?;
        let count = changes.len();
        let policies_changed = changes.iter().any(|change| change.key.kind.is_policy());
        let changed = self.compile(changes);
        self.present.generation += 1;
        self.present.built = Some(Instant::now());
        self.present.objects = objects;
        let generation = self.present.generation;
        let (errors_now, took) = (errors.len(), start.elapsed());
        // What changes nothing that agents get is mostly a heartbeat: every node and lease has one.
        if changed > 0 || generation == 1 {
            info!(
                generation,
                objects,
                changes = count,
                resources = changed,
                errors = errors_now,
                ?took,
                "configuration"
            );
        } else {
            debug!(
                generation,
                objects,
                changes = count,
                errors = errors_now,
                ?took,
                "configuration, nothing new in it"
            );
        }
        self.count(errors.len(), start);
        let conditions = self.compiler.conditions();
        self.report(errors, warnings, conditions, policies_changed);
        self.reader.is_published();
        self.configuration.send_replace(Arc::new(self.present.clone()));
        Ok(())
    }

    /// Returns how many resources changed.
    fn compile(&mut self, changes: Vec<ObjectChange>) -> usize {
        for ObjectChange { key, object } in &changes {
            self.present.accounts.change(self.compiler.object(key), object.as_ref());
        }
        let Configuration { addresses, authorizations, .. } = &mut self.present;
        let mut changed = 0;
        self.compiler.apply(changes, |output| {
            let did = match output {
                ResourceUpdate::Address(name, address) => addresses.set_address(&name, address.as_deref()),
                ResourceUpdate::Authorization(name, policy) => {
                    authorizations.set_authorization(&name, policy.as_ref())
                }
            };
            changed += usize::from(did);
        });
        changed
    }

    /// Says once what is wrong, when it is new. Most changes are of pods: they cost no look at every policy.
    fn report(
        &self,
        errors: Vec<ManifestError>,
        warnings: Vec<ManifestError>,
        conditions: Vec<Condition>,
        policies_changed: bool,
    ) {
        let mut before = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let same = before.errors == errors && before.warnings == warnings && before.conditions == conditions;
        if same && !policies_changed {
            return;
        }
        let resources = judgement::judge(self.compiler.policies(), &errors, &warnings, &conditions);
        let now = Findings { errors, warnings, conditions, resources: Arc::new(resources) };
        for error in not_said(&before.errors, &now.errors) {
            error!("{error}");
        }
        for warning in not_said(&before.warnings, &now.warnings) {
            warn!("{warning}");
        }
        for condition in not_said(&before.conditions, &now.conditions) {
            warn!("{condition}");
        }
        *before = now;
    }

    fn count(&self, errors: usize, start: Instant) {
        let configuration = &self.present;
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.objects.set(gauge(configuration.objects));
        self.metrics.config_errors.set(gauge(errors));
        self.metrics.generation.set(i64::try_from(configuration.generation).unwrap_or(i64::MAX));
        self.metrics.load.observe(start.elapsed().as_secs_f64());
    }
}

/// The words for those of `now` for which there were none like them `before`. Users decide how many both are,
/// so each is not looked for in all of the others.
fn not_said<T: Display>(before: &[T], now: &[T]) -> Vec<String> {
    let said: HashSet<String> = before.iter().map(T::to_string).collect();
    now.iter().map(T::to_string).filter(|text| !said.contains(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_not_said_again_however_much_it_is() {
        assert_eq!(not_said(&["a", "b"], &["b", "c", "a", "d"]), ["c", "d"]);
        let prefix = "spec.http[0].match[0].headers".repeat(10);
        let words = |from: u32| (from..from + 60_000).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let (before, now) = (words(100_000), words(200_000));
        let start = Instant::now();
        assert_eq!(not_said(&before, &now).len(), now.len());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn what_was_published_stays_in_force_when_compiling_panics() {
        let reader = Reader::Kubernetes(Objects::default());
        let mut publisher = Publisher::new(reader, MeshConfig::default(), Arc::new(Metrics::default()));
        assert!(!publisher.attempt(|it| it.publish(&Touched::default())));
        let configuration = publisher.configuration();
        assert!(publisher.attempt(|_| panic!("a resource that nobody thought of")));
        let stays = tokio::spawn(publisher.stay());
        tokio::task::yield_now().await;
        assert!(
            !stays.is_finished() && configuration.has_changed().is_ok(),
            "who follows it is not sent away"
        );
        assert_eq!(configuration.borrow().generation, 1);
        stays.abort();
    }
}
