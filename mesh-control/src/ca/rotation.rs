//! The roots on disk, and how one replaces another without a failed connection.
//!
//! A rotation has three steps, each a change of `state.json` that the running server notices:
//!
//! 1. [`Step::Add`] makes a new root. Everybody is told to trust both; the old one still signs.
//! 2. [`Step::Sign`] lets the new one sign. Certificates of both kinds are accepted.
//! 3. [`Step::Drop`] takes the old one, and its key, away.
//!
//! Agents learn the roots with each certificate that they fetch. So after a step, one certificate lifetime
//! has to pass before the next is safe, and sooner it is refused unless forced.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::pem;
use super::root::{Root, RootError, RootId};
use crate::durable;

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Make a new root and have everybody trust it; the old one goes on signing.
    Add,
    /// Sign with the new root; certificates under the old one stay good.
    Sign,
    /// Stop trusting the old root and delete its key.
    Drop,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Sign => "sign",
            Self::Drop => "drop",
        })
    }
}

/// Where a rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Phase {
    /// One root.
    Steady,
    /// A second root is trusted, but does not sign yet.
    Added {
        /// The one to sign next.
        next: RootId,
    },
    /// The new root signs; the old one is still trusted.
    Signing {
        /// The one to be dropped.
        previous: RootId,
    },
}

impl Phase {
    /// The step that leads on from here.
    pub fn next_step(&self) -> Step {
        match self {
            Self::Steady => Step::Add,
            Self::Added { .. } => Step::Sign,
            Self::Signing { .. } => Step::Drop,
        }
    }

    fn other_root(&self) -> Option<&RootId> {
        match self {
            Self::Steady => None,
            Self::Added { next: other } | Self::Signing { previous: other } => Some(other),
        }
    }
}

/// What `state.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationState {
    /// The root that signs.
    pub signing: RootId,
    /// Where the rotation is.
    pub phase: Phase,
    /// Seconds since 1970 of the last step.
    pub changed_at: u64,
    /// Longest lifetime in seconds that the server gives to certificates.
    pub leaf_lifetime: u64,
}

/// The roots in force.
pub struct Roots {
    /// The one that signs.
    pub signing: Root,
    /// The one that is trusted besides, during a rotation.
    pub other: Option<Root>,
}

/// `<state-dir>/ca`, and the trust bundle beside it.
#[derive(Clone, Debug)]
pub struct RootStore {
    directory: PathBuf,
    bundle: PathBuf,
}

impl RootStore {
    /// The store below a state directory; nothing is read or written yet.
    pub fn at(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("ca"), bundle: bundle_path(state_dir) }
    }

    /// Makes the first root unless there is one, and notes how long certificates live from now on.
    pub fn prepare(&self, trust_domain: &str, leaf_lifetime: Duration) -> Result<(), RotationError> {
        fs::create_dir_all(&self.directory).map_err(|error| self.io(error))?;
        let _lock = self.lock()?;
        let state = match self.state() {
            Ok(state) => state,
            Err(RotationError::NoState { .. }) => self.first_state(trust_domain)?,
            Err(error) => return Err(error),
        };
        if state.leaf_lifetime != leaf_lifetime.as_secs() {
            self.save(&RotationState { leaf_lifetime: leaf_lifetime.as_secs(), ..state })?;
        }
        Ok(())
    }

    /// Reads the roots in force, and writes the trust bundle if it says otherwise.
    pub fn load(&self) -> Result<Roots, RotationError> {
        let state = self.state()?;
        let roots = Roots {
            signing: self.root(&state.signing)?,
            other: state.phase.other_root().map(|id| self.root(id)).transpose()?,
        };
        let certificates = [Some(&roots.signing), roots.other.as_ref()];
        publish(
            &self.bundle,
            &pem::encode_all(certificates.into_iter().flatten().map(|root| &root.certificate)),
        )?;
        Ok(roots)
    }

    /// Takes `step`, or the one that is due, and says where the rotation is then.
    pub fn rotate(
        &self,
        step: Option<Step>,
        force: bool,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<RotationState, RotationError> {
        let _lock = self.lock()?;
        let state = self.state()?;
        let step = step.unwrap_or(state.phase.next_step());
        state.check(step, force, now)?;
        let next = RotationState { changed_at: seconds(now), ..state.clone() };
        match state.phase {
            Phase::Steady => {
                let root = Root::generate(trust_domain, now)?;
                self.save_root(&root)?;
                self.save(&RotationState { phase: Phase::Added { next: root.id() }, ..next })?;
            }
            Phase::Added { next: signing } => {
                let phase = Phase::Signing { previous: state.signing };
                self.save(&RotationState { signing, phase, ..next })?;
            }
            Phase::Signing { previous } => {
                self.save(&RotationState { phase: Phase::Steady, ..next })?;
                fs::remove_file(self.root_path(&previous)).map_err(|error| self.io(error))?;
            }
        }
        self.load()?;
        self.state()
    }

    /// The directory to watch for changes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `state.json` says now.
    pub fn state(&self) -> Result<RotationState, RotationError> {
        let path = self.state_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RotationError::NoState { path });
            }
            Err(error) => return Err(RotationError::Io { path, error }),
        };
        serde_json::from_slice(&text).map_err(|error| RotationError::State { path, error })
    }

    fn first_state(&self, trust_domain: &str) -> Result<RotationState, RotationError> {
        let now = SystemTime::now();
        let root = Root::generate(trust_domain, now)?;
        self.save_root(&root)?;
        Ok(RotationState {
            signing: root.id(),
            phase: Phase::Steady,
            changed_at: seconds(now),
            leaf_lifetime: 0,
        })
    }

    fn root(&self, id: &RootId) -> Result<Root, RotationError> {
        let path = self.root_path(id);
        let text =
            fs::read_to_string(&path).map_err(|error| RotationError::Io { path: path.clone(), error })?;
        Root::from_pem(&text).map_err(|error| RotationError::Root { path, error })
    }

    fn save_root(&self, root: &Root) -> Result<(), RotationError> {
        durable::write(&self.root_path(&root.id()), root.to_pem().as_bytes(), durable::PRIVATE)
            .map_err(|error| self.io(error))
    }

    fn save(&self, state: &RotationState) -> Result<(), RotationError> {
        let path = self.state_path();
        let text = serde_json::to_vec_pretty(state)
            .map_err(|error| RotationError::State { path: path.clone(), error })?;
        durable::write(&path, &text, durable::PRIVATE).map_err(|error| self.io(error))
    }

    /// Held while the state is read and written: two rotations at once would each make a root.
    fn lock(&self) -> Result<fs::File, RotationError> {
        let file = fs::File::open(&self.directory).map_err(|error| self.io(error))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| self.io(error.into()))?;
        Ok(file)
    }

    fn state_path(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn root_path(&self, id: &RootId) -> PathBuf {
        self.directory.join(format!("{id}.pem"))
    }

    fn io(&self, error: io::Error) -> RotationError {
        RotationError::Io { path: self.directory.clone(), error }
    }
}

impl RotationState {
    fn check(&self, step: Step, force: bool, now: SystemTime) -> Result<(), RotationError> {
        let due = self.phase.next_step();
        if step != due {
            return Err(RotationError::OutOfOrder { step, due });
        }
        let wait = self.changed_at.saturating_add(self.leaf_lifetime).saturating_sub(seconds(now));
        if self.phase != Phase::Steady && wait > 0 && !force {
            return Err(RotationError::TooEarly { step, wait: Duration::from_secs(wait) });
        }
        Ok(())
    }
}

/// Where agents find what to trust: a file that may hold several certificates.
pub fn bundle_path(state_dir: &Path) -> PathBuf {
    state_dir.join("root-cert.pem")
}

/// Writes the trust bundle, unless it already reads so.
pub(super) fn publish(path: &Path, bundle: &str) -> Result<(), RotationError> {
    if fs::read(path).is_ok_and(|present| present == bundle.as_bytes()) {
        return Ok(());
    }
    durable::write(path, bundle.as_bytes(), durable::PUBLIC)
        .map_err(|error| RotationError::Io { path: path.to_owned(), error })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Why roots can't be read or a step not be taken. The operator has to act.
#[derive(Debug, Error)]
pub enum RotationError {
    /// The server has never run with this state directory, or uses a given authority.
    #[error("{} does not exist: no root of our own is kept there", path.display())]
    NoState {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or its directory.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// `state.json` is not what we wrote.
    #[error("{}: {error}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: serde_json::Error,
    },
    /// A root's file is not what we wrote.
    #[error("{}: {error}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        error: RootError,
    },
    /// A new root can't be made.
    #[error(transparent)]
    NewRoot(#[from] RootError),
    /// Another step is due.
    #[error("step `{step}` is out of order; `{due}` is due")]
    OutOfOrder {
        /// The one asked for.
        step: Step,
        /// The one that can be taken.
        due: Step,
    },
    /// Certificates may be in use that the step would make useless.
    #[error("step `{step}` is safe in {} only, when every certificate was renewed; --force takes it now",
        humantime::format_duration(*wait))]
    TooEarly {
        /// The one asked for.
        step: Step,
        /// Time to wait.
        wait: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn store() -> (tempfile::TempDir, RootStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = RootStore::at(directory.path());
        store.prepare("cluster.local", HOUR).unwrap();
        (directory, store)
    }

    #[test]
    fn the_root_is_made_once() {
        let (_directory, store) = store();
        let first = store.load().unwrap().signing.certificate;
        store.prepare("cluster.local", 2 * HOUR).unwrap();
        assert_eq!(store.load().unwrap().signing.certificate, first);
        assert_eq!(store.state().unwrap().leaf_lifetime, 7200);
    }

    #[test]
    fn a_rotation_walks_through_its_steps() {
        let (directory, store) = store();
        let old = store.load().unwrap().signing.id();
        let rotate = |at| store.rotate(None, false, "cluster.local", at);
        let bundle = || pem::decode_all(&fs::read_to_string(bundle_path(directory.path())).unwrap()).unwrap();
        let start = SystemTime::now();

        let Phase::Added { next: new } = rotate(start).unwrap().phase else { panic!("not added") };
        assert_eq!((store.load().unwrap().signing.id(), bundle().len()), (old.clone(), 2));

        assert!(matches!(rotate(start + HOUR / 2), Err(RotationError::TooEarly { step: Step::Sign, .. })));
        assert_eq!(rotate(start + HOUR).unwrap().phase, Phase::Signing { previous: old.clone() });
        assert_eq!((store.load().unwrap().signing.id(), bundle().len()), (new.clone(), 2));

        assert!(matches!(rotate(start + HOUR), Err(RotationError::TooEarly { step: Step::Drop, .. })));
        assert_eq!(rotate(start + 2 * HOUR).unwrap().phase, Phase::Steady);
        assert_eq!((store.load().unwrap().signing.id(), bundle().len()), (new, 1));
        assert!(!store.root_path(&old).exists(), "the old key is gone");
    }

    #[test]
    fn steps_are_taken_in_order_and_early_only_by_force() {
        let (_directory, store) = store();
        let now = SystemTime::now();
        let rotate = |step, force| store.rotate(Some(step), force, "cluster.local", now);
        assert!(matches!(rotate(Step::Drop, true), Err(RotationError::OutOfOrder { due: Step::Add, .. })));
        rotate(Step::Add, false).unwrap();
        assert!(matches!(rotate(Step::Add, true), Err(RotationError::OutOfOrder { due: Step::Sign, .. })));
        assert!(rotate(Step::Sign, false).is_err());
        rotate(Step::Sign, true).unwrap();
    }

    #[test]
    fn without_a_state_there_is_nothing_to_rotate() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("ca")).unwrap();
        let result = RootStore::at(directory.path()).rotate(None, false, "cluster.local", SystemTime::now());
        assert!(matches!(result, Err(RotationError::NoState { .. })));
    }
}
