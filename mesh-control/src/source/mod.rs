//! Where the configuration comes from: a directory of manifests, or the Kubernetes API.
//!
//! [`directory`] reads the one, keeping the last good state of what is broken now; `last_good` keeps that state across
//! restarts. The other is [`crate::kubernetes`]'s. [`Publisher`] compiles the objects and publishes the result for
//! everybody at once.

pub mod directory;
mod last_good;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::compile::{Condition, MeshConfig, World, compile};
use mesh_api::manifest::{Located, ManifestError};
use mesh_api::resource::Object;
use tokio::sync::watch;
use tracing::{error, info, warn};

pub use self::directory::Loaded;

use self::directory::Directory;
use crate::config::{Accounts, Configuration, Resources};
use crate::kubernetes::objects::Objects;
use crate::metrics::Metrics;
use crate::watch::DirectoryWatch;

/// Changes of a cluster come in bursts (a roll-out): they are gathered for so long.
const BURST: Duration = Duration::from_millis(50);

/// Compiling takes at most this part of a core: in a mesh so large that it takes long it is done less often.
const REST: u32 = 4;

/// Reads all objects.
pub enum Reader {
    /// Manifests in a directory.
    Directory(Directory),
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
    fn read(&mut self) -> io::Result<Loaded> {
        match self {
            Self::Directory(directory) => directory.read(),
            Self::Kubernetes(objects) => Ok(objects.load()),
        }
    }
}

impl Changes {
    /// Returns when something has changed since the last time. `cost` is what reading it took then.
    async fn next(&mut self, cost: Duration) {
        match self {
            Self::Directory(watch) => watch.changed().await,
            Self::Kubernetes(objects) => {
                objects.changed().await;
                tokio::time::sleep(BURST.max(cost * REST)).await;
            }
        }
    }
}

/// What is wrong with the configuration now, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Mistakes; the documents concerned are left out, or stay as they last were.
    pub errors: Vec<ManifestError>,
    /// What was accepted but has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
    /// What is not in force as it was written.
    pub conditions: Vec<Condition>,
}

/// Reads, compiles and publishes.
pub struct Publisher {
    reader: Reader,
    mesh: MeshConfig,
    configuration: watch::Sender<Arc<Configuration>>,
    findings: Arc<Mutex<Findings>>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// A publisher of the empty configuration.
    pub fn new(reader: Reader, mesh: MeshConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            reader,
            mesh,
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
            changes.next(cost).await;
            // Reading and compiling a large mesh takes milliseconds of a core: not on the threads that serve.
            let work = tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                if let Err(error) = self.publish() {
                    error!(%error, "configuration not read; the last one stays in force");
                }
                (self, start.elapsed())
            });
            match work.await {
                Ok((publisher, took)) => (self, cost) = (publisher, took),
                // Only when the runtime shuts down.
                Err(_) => return,
            }
        }
    }

    /// Reads everything and publishes it, all at once.
    pub fn publish(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let Loaded { objects, errors, warnings } = self.reader.read()?;
        let world: World<'_> = objects.iter().map(|object| &object.value).collect();
        let compiled = compile(&world, &self.mesh);
        let generation = self.configuration.borrow().generation + 1;
        let configuration = Configuration {
            generation,
            addresses: Resources::of_addresses(&compiled.addresses),
            authorizations: Resources::of_authorizations(&compiled.authorizations),
            accounts: accounts(&objects),
            objects: objects.len(),
            built: Some(Instant::now()),
        };
        info!(generation, objects = objects.len(), errors = errors.len(), took = ?start.elapsed(), "configuration");
        self.count(&configuration, errors.len(), start);
        self.report(Findings { errors, warnings, conditions: compiled.conditions });
        self.configuration.send_replace(Arc::new(configuration));
        Ok(())
    }

    /// Says once what is wrong, when it is new.
    fn report(&self, now: Findings) {
        let mut before = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        for error in now.errors.iter().filter(|error| !before.errors.contains(error)) {
            error!("{error}");
        }
        for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            warn!("{warning}");
        }
        for condition in now.conditions.iter().filter(|condition| !before.conditions.contains(condition)) {
            warn!("{condition}");
        }
        *before = now;
    }

    fn count(&self, configuration: &Configuration, errors: usize, start: Instant) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.objects.set(gauge(configuration.objects));
        self.metrics.config_errors.set(gauge(errors));
        self.metrics.generation.set(i64::try_from(configuration.generation).unwrap_or(i64::MAX));
        self.metrics.load.observe(start.elapsed().as_secs_f64());
    }
}

/// Which accounts have a pod on which node. A pod that has ended does not count.
fn accounts(objects: &[Arc<Located<Object>>]) -> Accounts {
    let mut accounts = Accounts::new();
    for object in objects {
        let Object::Pod(pod) = &object.value else { continue };
        if pod.is_terminal() || pod.spec.node_name.is_empty() {
            continue;
        }
        let account = (pod.metadata.namespace.clone(), pod.service_account().to_owned());
        accounts.entry(pod.spec.node_name.clone()).or_default().insert(account);
    }
    accounts
}
