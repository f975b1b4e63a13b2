//! The authority in force, and how it changes while the server runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use mesh_api::identity::{InvalidSpiffeId, SpiffeId};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::watch;

use super::pem;
use super::root::RootError;
use super::rotation::{self, RootStore, RotationError, RotationState, Step};
use super::signer::{Issued, Signer, SignerError, Subject};

/// Files of an authority that the operator gives instead of letting one be made.
#[derive(Clone, Debug)]
pub struct GivenAuthority {
    /// The signing certificate (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The certificates above it, up to the root (PEM).
    pub chain: Option<PathBuf>,
}

/// Issues the certificates of one trust domain.
pub struct Authority {
    agent: SpiffeId,
    control: SpiffeId,
    longest: Duration,
    store: Option<RootStore>,
    signer: watch::Sender<Arc<Signer>>,
}

impl Authority {
    /// Uses the root kept in `state_dir`, which is made if there is none, or the given authority.
    ///
    /// No certificate lives longer than `longest`.
    pub fn open(
        state_dir: &Path,
        given: Option<&GivenAuthority>,
        trust_domain: &str,
        longest: Duration,
    ) -> Result<Self, AuthorityError> {
        let own = |account| SpiffeId::new(trust_domain, "nodemesh-system", account);
        let (agent, control) = (own("mesh-agent")?, own("mesh-control")?);
        let (store, signer) = if let Some(files) = given {
            (None, read_given(files)?)
        } else {
            let store = RootStore::at(state_dir);
            store.prepare(trust_domain, longest)?;
            let signer = Signer::from_roots(store.load()?)?;
            (Some(store), signer)
        };
        rotation::publish(&rotation::bundle_path(state_dir), &pem::encode_all(signer.roots()))?;
        let signer = watch::Sender::new(Arc::new(signer));
        Ok(Self { agent, control, longest, store, signer })
    }

    /// The trust domain that identities must be of.
    pub fn trust_domain(&self) -> &str {
        self.agent.trust_domain()
    }

    /// Certifies `subject`, for `lifetime` or the longest allowed.
    pub fn issue<K: PublicKeyData>(
        &self,
        subject: &Subject<'_, K>,
        lifetime: Option<Duration>,
    ) -> Result<Issued, SignerError> {
        let lifetime = lifetime.map_or(self.longest, |asked| asked.min(self.longest));
        self.signer.borrow().issue(subject, lifetime, SystemTime::now())
    }

    /// What to trust; the root that signs now comes first.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.signer.borrow().roots().to_vec()
    }

    /// Woken whenever roots change.
    pub fn changes(&self) -> watch::Receiver<Arc<Signer>> {
        self.signer.subscribe()
    }

    /// Directory whose files decide on the roots; none for a given authority, which is read at the start
    /// only.
    pub fn watched_directory(&self) -> Option<&Path> {
        self.store.as_ref().map(RootStore::directory)
    }

    /// Reads the roots again. Says whether they changed; on an error the ones in force stay.
    pub fn reload(&self) -> Result<bool, AuthorityError> {
        let Some(store) = &self.store else { return Ok(false) };
        let signer = Arc::new(Signer::from_roots(store.load()?)?);
        Ok(self.signer.send_if_modified(|current| {
            let changed = current.roots() != signer.roots();
            *current = signer;
            changed
        }))
    }

    /// Takes a step of a rotation and uses its result at once.
    pub fn rotate(&self, step: Option<Step>, force: bool) -> Result<RotationState, AuthorityError> {
        let store = self.store.as_ref().ok_or(AuthorityError::GivenRotates)?;
        let state = store.rotate(step, force, self.trust_domain(), SystemTime::now())?;
        self.reload()?;
        Ok(state)
    }

    /// Identity under which every agent talks to the control plane.
    pub fn agent_identity(&self) -> &SpiffeId {
        &self.agent
    }

    /// Identity of the control plane.
    pub fn control_identity(&self) -> &SpiffeId {
        &self.control
    }
}

fn read_given(files: &GivenAuthority) -> Result<Signer, AuthorityError> {
    let mut certificates = read_certificates(&files.certificate)?;
    if let Some(chain) = &files.chain {
        certificates.extend(read_certificates(chain)?);
    }
    if certificates.is_empty() {
        return Err(AuthorityError::Empty { path: files.certificate.clone() });
    }
    let key = KeyPair::from_pem(&read(&files.key)?)
        .map_err(|_| AuthorityError::Key { path: files.key.clone(), error: RootError::Key })?;
    let signing = certificates.remove(0);
    Ok(Signer::from_given(&signing, key, certificates)?)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    pem::decode_all(&read(path)?)
        .map_err(|_| AuthorityError::Key { path: path.to_owned(), error: RootError::Certificate })
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|error| AuthorityError::Io { path: path.to_owned(), error })
}

/// Why there is no authority. The operator has to act.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// No identity can be made of the trust domain.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[from] InvalidSpiffeId),
    /// The state directory is unusable.
    #[error(transparent)]
    Store(#[from] RotationError),
    /// The certificates can't be used to sign.
    #[error("certificate authority: {0}")]
    Signer(#[from] SignerError),
    /// A given file can't be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A given file has no certificate.
    #[error("{}: there is no certificate in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A given file holds something else.
    #[error("{}: {error}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: RootError,
    },
    /// A given authority is not ours to rotate.
    #[error("the authority was given by --ca-cert: rotate it where it is made, and restart")]
    GivenRotates,
}
