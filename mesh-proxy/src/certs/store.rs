//! The certificates of this node, and for how long each is wanted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use mesh_api::admin::CertificateStatus;
use mesh_api::identity::SpiffeId;
use rustls::RootCertStore;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::{AnswerError, CaClient, CaError, Issued, Subject};
use super::inherited::{self, Kept, Written};
use super::trust::{Roots, Trust};
use super::verify::MeshVerifier;
use super::{WorkloadCertificate, renewal, tls};
use crate::inheritance::Inheritance;
use crate::tunnel::Framing;

/// Requests to the authority at a time. More would only wait there.
const ASKED_AT_A_TIME: usize = 16;

/// The certificates of this node. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Certificates {
    pub(super) shared: Arc<Shared>,
}

/// What the handle and the keepers share.
pub(super) struct Shared {
    ca: CaClient,
    pub trust: Arc<Trust>,
    verifier: Arc<MeshVerifier>,
    framing: Framing,
    pub runtime: Handle,
    pub current: ArcSwap<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    /// What a proxy before this one has left, until somebody wants it.
    inherited: Mutex<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    /// What there is, as a next proxy will get it.
    kept: Mutex<Written>,
    /// That is another than it was.
    pub changed: Notify,
    /// URI of the agent's own identity.
    pub own_uri: String,
    wanted: Mutex<HashMap<SpiffeId, Wanted>>,
    own: watch::Sender<Option<OwnCertificate>>,
    pub installed: watch::Sender<()>,
    asking: Semaphore,
    /// Whoever failed may try again: the authority is back.
    pub retry: Notify,
    /// The roots may have changed: the authority is to be asked.
    pub refresh: Notify,
}

/// The agent's own certificate, for discovery.
#[derive(Clone)]
pub(crate) struct OwnCertificate {
    pub identity: tonic::transport::Identity,
    pub not_after: SystemTime,
}

pub(super) struct Wanted {
    holders: usize,
    keeper: AbortHandle,
    error: Option<String>,
}

impl Certificates {
    /// Certificates from an authority, for connections that are framed in a way, which are left to a next
    /// proxy. To be called on the runtime that is to renew them; the agent's own is asked for at once.
    pub fn new(ca: CaClient, trust_domain: &str, framing: Framing, inheritance: Inheritance) -> Self {
        let provider = tls::provider();
        let trust = Arc::new(Trust::new(Arc::clone(&provider), &ca.control_plane.root_cert));
        let verifier =
            MeshVerifier { trust: Arc::clone(&trust), provider, trust_domain: trust_domain.into() };
        let uri = format!("spiffe://{trust_domain}/ns/nodemesh-system/sa/mesh-agent");
        let shared = Arc::new(Shared {
            ca,
            trust,
            verifier: Arc::new(verifier),
            framing,
            runtime: Handle::current(),
            current: ArcSwap::default(),
            inherited: Mutex::default(),
            kept: Mutex::default(),
            changed: Notify::new(),
            own_uri: uri.clone(),
            wanted: Mutex::default(),
            own: watch::Sender::new(None),
            installed: watch::Sender::new(()),
            asking: Semaphore::new(ASKED_AT_A_TIME),
            retry: Notify::new(),
            refresh: Notify::new(),
        });
        tokio::spawn(renewal::keep(Arc::clone(&shared), Subject::Agent { uri }));
        tokio::spawn(renewal::follow(Arc::clone(&shared)));
        tokio::spawn(inherited::bequeath(Arc::clone(&shared), inheritance));
        Self { shared }
    }

    /// The certificate of an identity, if there is a valid one. Takes no lock.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        // An expired one is as good as none: a peer would refuse it anyway, for a reason that is harder to
        // find.
        self.shared.current.load().get(id).filter(|found| SystemTime::now() < found.not_after).cloned()
    }

    /// The same, waiting for one for at most `longest`.
    pub async fn ready(&self, id: &SpiffeId, longest: Duration) -> Option<Arc<WorkloadCertificate>> {
        let mut installed = self.shared.installed.subscribe();
        let wait = async {
            loop {
                if let Some(identity) = self.current(id) {
                    return Some(identity);
                }
                installed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(longest, wait).await.ok().flatten()
    }

    /// Wants a certificate for an identity from now on. Each call needs a [`Self::release`].
    pub fn retain(&self, id: &SpiffeId) {
        let mut wanted = self.shared.wanted();
        if let Some(wanted) = wanted.get_mut(id) {
            wanted.holders += 1;
            return;
        }
        let keeper = renewal::keep(Arc::clone(&self.shared), Subject::Workload(id.clone()));
        let keeper = self.shared.runtime.spawn(keeper).abort_handle();
        wanted.insert(id.clone(), Wanted { holders: 1, keeper, error: None });
        drop(wanted);
        self.shared.use_inherited(id);
    }

    /// Wants it no more. With the last call certificate and key are dropped.
    pub fn release(&self, id: &SpiffeId) {
        let mut all = self.shared.wanted();
        let Some(wanted) = all.get_mut(id) else { return };
        wanted.holders -= 1;
        if wanted.holders == 0 {
            wanted.keeper.abort();
            all.remove(id);
            self.shared.replace(|current| drop(current.remove(id)));
            self.shared.kept().remove(id.as_str());
            self.shared.changed.notify_one();
        }
    }

    /// How each wanted certificate is, in the order of the identities.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let current = self.shared.current.load();
        let roots = self.shared.trust.roots();
        let roots: Vec<_> = roots.certificates.iter().map(|root| fingerprint(root)).collect();
        let mut list: Vec<_> = self
            .shared
            .wanted()
            .iter()
            .map(|(id, wanted)| status(id, wanted, current.get(id), now, &roots))
            .collect();
        list.sort_by(|one, other| one.identity.cmp(&other.identity));
        list
    }

    /// Seconds until the first certificate in use expires; none if there is none.
    pub fn first_expiry(&self) -> Option<Duration> {
        let current = self.shared.current.load();
        let first = current.values().map(|identity| identity.not_after).min()?;
        Some(first.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The agent's own certificate, for whoever connects to the control plane.
    pub(crate) fn own(&self) -> watch::Receiver<Option<OwnCertificate>> {
        self.shared.own.subscribe()
    }

    /// What the control plane is to be checked with.
    pub(crate) fn control_roots(&self) -> RootCertStore {
        self.shared.trust.read_file();
        self.shared.trust.for_control()
    }

    /// Has every request that failed made again now: the control plane is back.
    pub(crate) fn retry_now(&self) {
        self.shared.retry.notify_waiters();
    }
}

impl Shared {
    /// Gets a certificate and puts it into use; answers until when it is valid.
    pub async fn renew(&self, subject: &Subject) -> Result<SystemTime, CaError> {
        // The semaphore is never closed.
        let _turn = self.asking.acquire().await;
        self.trust.read_file();
        let issued = self.ca.certify(subject, &self.trust.for_control()).await?;
        let not_after = issued.not_after;
        self.check(&issued).map_err(AnswerError::from)?;
        self.trust.learn(issued.roots.clone()).map_err(AnswerError::from)?;
        match subject {
            Subject::Agent { .. } => self.install_own(&issued),
            Subject::Workload(id) => self.install(id, &issued).map_err(AnswerError::from)?,
        }
        Ok(not_after)
    }

    /// Returns once peers refuse the certificate of an identity: it leads to no root in force any more, or is
    /// not valid by a clock that was set.
    pub async fn invalidated(&self, id: &SpiffeId) {
        let mut changes = self.trust.changes();
        let is_invalid = || {
            let current = self.current.load();
            current.get(id).is_some_and(|identity| self.trust.roots().check(&identity.chain).is_err())
        };
        while !is_invalid() {
            // The sender lives as long as we do.
            let _ = changes.changed().await;
        }
    }

    /// Notes how the last try went.
    pub fn note(&self, subject: &Subject, error: Option<String>) {
        if let Subject::Workload(id) = subject
            && let Some(wanted) = self.wanted().get_mut(id)
        {
            wanted.error = error;
        }
    }

    /// A certificate that our own peers would refuse is not worth having.
    pub fn check(&self, issued: &Issued) -> Result<(), rustls::Error> {
        Roots::new(issued.roots.clone(), &self.verifier.provider)?.check(&issued.chain)
    }

    /// What handshakes need of a certificate. Errors: its key is another's.
    pub fn identity(&self, issued: &Issued) -> Result<WorkloadCertificate, rustls::Error> {
        let client = tls::client(&self.verifier, issued.chain.clone(), issued.private_key(), self.framing)?;
        let server = tls::server(&self.verifier, issued.chain.clone(), issued.private_key(), self.framing)?;
        Ok(WorkloadCertificate {
            id: issued.id.clone(),
            client: Arc::new(client),
            server: Arc::new(server),
            not_before: issued.not_before,
            not_after: issued.not_after,
            serial: issued.serial.clone(),
            chain: issued.chain.clone(),
        })
    }

    fn install(&self, id: &SpiffeId, issued: &Issued) -> Result<(), rustls::Error> {
        let identity = Arc::new(self.identity(issued)?);
        let wanted = self.wanted();
        // It may have been released while the answer was on its way.
        if wanted.contains_key(id) {
            self.replace(|current| drop(current.insert(id.clone(), Arc::clone(&identity))));
            self.keep(issued);
        }
        drop(wanted);
        self.installed.send_replace(());
        Ok(())
    }

    fn keep(&self, issued: &Issued) {
        self.kept().insert(issued.id.as_str().to_owned(), Kept::of(issued));
        self.changed.notify_one();
    }

    pub fn kept(&self) -> MutexGuard<'_, Written> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn inherited(&self) -> MutexGuard<'_, HashMap<SpiffeId, Arc<WorkloadCertificate>>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's own certificate.
    pub fn own(&self) -> Option<OwnCertificate> {
        self.own.borrow().clone()
    }

    pub fn install_own(&self, issued: &Issued) {
        self.keep(issued);
        let identity = tonic::transport::Identity::from_pem(&issued.chain_pem, issued.key.serialize_pem());
        self.own.send_replace(Some(OwnCertificate { identity, not_after: issued.not_after }));
    }

    /// Writers hold the lock of `wanted`, so no change gets lost.
    pub fn replace(&self, change: impl FnOnce(&mut HashMap<SpiffeId, Arc<WorkloadCertificate>>)) {
        let mut next = HashMap::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }

    pub(super) fn wanted(&self) -> MutexGuard<'_, HashMap<SpiffeId, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(
    id: &SpiffeId,
    wanted: &Wanted,
    identity: Option<&Arc<WorkloadCertificate>>,
    now: SystemTime,
    roots: &[String],
) -> CertificateStatus {
    let state = match identity {
        None => "missing",
        Some(identity) if identity.not_after <= now => "expired",
        Some(_) if wanted.error.is_some() => "renewing",
        Some(_) => "valid",
    };
    CertificateStatus {
        identity: id.to_string(),
        state: state.to_owned(),
        serial: identity.map(|identity| identity.serial.clone()),
        not_before: identity.map(|identity| seconds(identity.not_before)),
        not_after: identity.map(|identity| seconds(identity.not_after)),
        roots: roots.to_vec(),
        error: wanted.error.clone(),
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// SHA-256 of the public key, hexadecimal; empty for what is not a certificate.
fn fingerprint(certificate: &[u8]) -> String {
    use std::fmt::Write as _;
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return String::new() };
    digest(&SHA256, parsed.public_key().raw).as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
