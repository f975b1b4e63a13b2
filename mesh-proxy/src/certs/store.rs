//! Holds the certificates of this node, for as long as each is wanted.

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

use super::ca_client::{CaClient, CaError, CaResponseError, IssuedCertificate, Subject};
use super::inheritance::{self, ChainAndKey, ChainsAndKeys};
use super::trust_domain_verifier::TrustDomainVerifier;
use super::trusted_roots::{RootSet, TrustedRoots};
use super::{WorkloadCertificate, renewal, tls_config};
use crate::inheritance::BequestSender;
use crate::tunnel::AllowedFraming;

/// Requests to the authority at a time; more would only wait there.
const ASKED_AT_A_TIME: usize = 16;

/// The certificates of this node. Cheap to clone: all clones share them.
#[derive(Clone)]
pub struct Certificates {
    pub(super) shared: Arc<Shared>,
}

/// State that the handle and the tasks that renew share.
pub(super) struct Shared {
    ca: CaClient,
    pub trust: Arc<TrustedRoots>,
    verifier: Arc<TrustDomainVerifier>,
    framing: AllowedFraming,
    pub runtime: Handle,
    pub current: ArcSwap<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    /// Certificates of the proxy before this one, until somebody wants them.
    inherited: Mutex<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    /// Certificates as the next proxy will get them.
    kept: Mutex<ChainsAndKeys>,
    /// Notified when `kept` changes.
    pub changed: Notify,
    /// URI of the agent's own identity.
    pub own_uri: String,
    wanted: Mutex<HashMap<SpiffeId, IdentityEntry>>,
    own: watch::Sender<Option<AgentCertificate>>,
    pub installed: watch::Sender<()>,
    asking: Semaphore,
    /// Notified when the authority is back: whoever failed tries again.
    pub retry: Notify,
    /// Notified when the roots may have changed: the authority is to be asked.
    pub refresh: Notify,
}

/// The agent's own certificate, with which it connects to the control plane.
#[derive(Clone)]
pub(crate) struct AgentCertificate {
    pub identity: tonic::transport::Identity,
    pub not_after: SystemTime,
}

/// An identity that somebody wants a certificate of: how many want it, the task that renews it, and why the
/// last try failed.
pub(super) struct IdentityEntry {
    holders: usize,
    renewal: AbortHandle,
    error: Option<String>,
}

impl Certificates {
    /// Creates the store: certificates from `ca` for connections in `framing`, left to the next proxy through
    /// `inheritance`. Call it on the runtime that is to renew them; the agent's own certificate is requested
    /// at once.
    pub fn new(
        ca: CaClient,
        trust_domain: &str,
        framing: AllowedFraming,
        inheritance: BequestSender,
    ) -> Self {
        let provider = tls_config::crypto_provider();
        let trust = Arc::new(TrustedRoots::new(Arc::clone(&provider), &ca.control_plane.root_cert));
        let verifier =
            TrustDomainVerifier { trust: Arc::clone(&trust), provider, trust_domain: trust_domain.into() };
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
        tokio::spawn(renewal::keep_renewed(Arc::clone(&shared), Subject::Agent { uri }));
        tokio::spawn(renewal::watch_roots_and_clock(Arc::clone(&shared)));
        tokio::spawn(inheritance::bequeath_on_change(Arc::clone(&shared), inheritance));
        Self { shared }
    }

    /// Returns the certificate of an identity, if there is a valid one. Takes no lock.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        // An expired one is as good as none: a peer would refuse it, for a reason that is harder to find.
        self.shared.current.load().get(id).filter(|found| SystemTime::now() < found.not_after).cloned()
    }

    /// Returns the certificate of an identity, waiting up to `longest` for a valid one; none if there is none
    /// by then.
    pub async fn wait_for_certificate(
        &self,
        id: &SpiffeId,
        longest: Duration,
    ) -> Option<Arc<WorkloadCertificate>> {
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

    /// Requests a certificate for an identity and keeps it fresh. Each call needs a
    /// [`Self::release_identity`].
    pub fn retain_identity(&self, id: &SpiffeId) {
        let mut wanted = self.shared.lock_retained();
        if let Some(wanted) = wanted.get_mut(id) {
            wanted.holders += 1;
            return;
        }
        let renewal = renewal::keep_renewed(Arc::clone(&self.shared), Subject::Workload(id.clone()));
        let renewal = self.shared.runtime.spawn(renewal).abort_handle();
        wanted.insert(id.clone(), IdentityEntry { holders: 1, renewal, error: None });
        drop(wanted);
        self.shared.use_inherited_if_none_current(id);
    }

    /// Undoes one [`Self::retain_identity`]. With the last one certificate and key are dropped.
    pub fn release_identity(&self, id: &SpiffeId) {
        let mut all = self.shared.lock_retained();
        let Some(wanted) = all.get_mut(id) else { return };
        wanted.holders -= 1;
        if wanted.holders == 0 {
            wanted.renewal.abort();
            all.remove(id);
            self.shared.update_current(|current| drop(current.remove(id)));
            self.shared.lock_bequeathed().remove(id.as_str());
            self.shared.changed.notify_one();
        }
    }

    /// Returns the state of each wanted certificate, ordered by identity.
    pub fn statuses(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let current = self.shared.current.load();
        let roots = self.shared.trust.roots();
        let roots: Vec<_> = roots.certificates.iter().map(|root| fingerprint(root)).collect();
        let mut list: Vec<_> = self
            .shared
            .lock_retained()
            .iter()
            .map(|(id, wanted)| status(id, wanted, current.get(id), now, &roots))
            .collect();
        list.sort_by(|one, other| one.identity.cmp(&other.identity));
        list
    }

    /// Returns the time until the first of the pods' certificates in use expires, zero if it has; none if
    /// there is no certificate.
    pub fn time_to_first_expiry(&self) -> Option<Duration> {
        let current = self.shared.current.load();
        let first = current.values().map(|identity| identity.not_after).min()?;
        Some(first.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Follows the agent's own certificate, for clients of the control plane.
    pub(crate) fn subscribe_agent_certificate(&self) -> watch::Receiver<Option<AgentCertificate>> {
        self.shared.own.subscribe()
    }

    /// Returns the roots that the control plane is checked with.
    pub(crate) fn control_plane_roots(&self) -> RootCertStore {
        self.shared.trust.reload_file_if_changed();
        self.shared.trust.control_plane_roots()
    }

    /// Retries every request that failed now: the control plane is back.
    pub(crate) fn retry_failed_requests(&self) {
        self.shared.retry.notify_waiters();
    }
}

impl Shared {
    /// Requests a certificate and puts it into use. Returns when it expires. Errors: see [`CaError`].
    pub async fn renew(&self, subject: &Subject) -> Result<SystemTime, CaError> {
        // The semaphore is never closed.
        let _turn = self.asking.acquire().await;
        self.trust.reload_file_if_changed();
        let issued = self.ca.request_certificate(subject, &self.trust.control_plane_roots()).await?;
        let not_after = issued.not_after;
        self.verify_as_peer(&issued).map_err(CaResponseError::from)?;
        self.trust.install_ca_roots(issued.roots.clone()).map_err(CaResponseError::from)?;
        match subject {
            Subject::Agent { .. } => self.install_agent_certificate(&issued),
            Subject::Workload(id) => self.install(id, &issued).map_err(CaResponseError::from)?,
        }
        Ok(not_after)
    }

    /// Returns once peers refuse the certificate of an identity: it no longer leads to a root in force, or is
    /// not valid after the clock was set.
    pub async fn wait_until_peers_refuse(&self, id: &SpiffeId) {
        let mut changes = self.trust.subscribe_root_and_clock_changes();
        let is_invalid = || {
            let current = self.current.load();
            current.get(id).is_some_and(|identity| self.trust.roots().verify_chain(&identity.chain).is_err())
        };
        while !is_invalid() {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Notes the result of the last try: an error's text, or success.
    pub fn note_renewal_result(&self, subject: &Subject, error: Option<String>) {
        if let Subject::Workload(id) = subject
            && let Some(wanted) = self.lock_retained().get_mut(id)
        {
            wanted.error = error;
        }
    }

    /// Verifies a certificate as our peers do. Errors: they would refuse it.
    pub fn verify_as_peer(&self, issued: &IssuedCertificate) -> Result<(), rustls::Error> {
        RootSet::new(issued.roots.clone(), &self.verifier.provider)?.verify_chain(&issued.chain)
    }

    /// Builds a certificate's TLS configurations. Errors: its key is another's.
    pub fn build_workload_certificate(
        &self,
        issued: &IssuedCertificate,
    ) -> Result<WorkloadCertificate, rustls::Error> {
        let client = tls_config::client_config(
            &self.verifier,
            issued.chain.clone(),
            issued.private_key(),
            self.framing,
        )?;
        let server = tls_config::server_config(
            &self.verifier,
            issued.chain.clone(),
            issued.private_key(),
            self.framing,
        )?;
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

    fn install(&self, id: &SpiffeId, issued: &IssuedCertificate) -> Result<(), rustls::Error> {
        let identity = Arc::new(self.build_workload_certificate(issued)?);
        let wanted = self.lock_retained();
        // The identity may have been released while the answer was on its way.
        if wanted.contains_key(id) {
            self.update_current(|current| drop(current.insert(id.clone(), Arc::clone(&identity))));
            self.keep(issued);
        }
        drop(wanted);
        self.installed.send_replace(());
        Ok(())
    }

    fn keep(&self, issued: &IssuedCertificate) {
        self.lock_bequeathed().insert(issued.id.as_str().to_owned(), ChainAndKey::from_issued(issued));
        self.changed.notify_one();
    }

    pub fn lock_bequeathed(&self) -> MutexGuard<'_, ChainsAndKeys> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lock_inherited(&self) -> MutexGuard<'_, HashMap<SpiffeId, Arc<WorkloadCertificate>>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the agent's own certificate, once there is one.
    pub fn agent_certificate(&self) -> Option<AgentCertificate> {
        self.own.borrow().clone()
    }

    pub fn install_agent_certificate(&self, issued: &IssuedCertificate) {
        self.keep(issued);
        let identity = tonic::transport::Identity::from_pem(&issued.chain_pem, issued.key.serialize_pem());
        self.own.send_replace(Some(AgentCertificate { identity, not_after: issued.not_after }));
    }

    /// Replaces the certificates in use by a changed copy. Callers hold the lock of `wanted`, so no change
    /// gets lost.
    pub fn update_current(&self, change: impl FnOnce(&mut HashMap<SpiffeId, Arc<WorkloadCertificate>>)) {
        let mut next = HashMap::clone(&self.current.load());
        change(&mut next);
        self.current.store(Arc::new(next));
    }

    pub(super) fn lock_retained(&self) -> MutexGuard<'_, HashMap<SpiffeId, IdentityEntry>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(
    id: &SpiffeId,
    wanted: &IdentityEntry,
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

/// Returns the SHA-256 of the public key, hexadecimal; empty for bytes that are no certificate.
fn fingerprint(certificate: &[u8]) -> String {
    use std::fmt::Write as _;
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return String::new() };
    digest(&SHA256, parsed.public_key().raw).as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
