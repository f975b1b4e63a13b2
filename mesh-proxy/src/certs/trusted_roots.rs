//! The roots that peers are checked with.
//!
//! Workloads trust what the authority's last answer listed, and nothing else. The file of roots is for
//! reaching the authority; where it is the authority's own bundle, a change of it says that the bundle has
//! changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;

use crate::file_version::FileVersion;

/// A list of certificates.
pub(super) type CertificateList = Vec<CertificateDer<'static>>;

/// The roots in force. Every handshake looks here, so a new root counts at once and needs no new
/// configuration.
#[derive(Debug)]
pub(super) struct TrustedRoots {
    provider: Arc<CryptoProvider>,
    file: PathBuf,
    from_file: Mutex<FromFile>,
    roots: ArcSwap<RootSet>,
    changes: watch::Sender<()>,
}

/// The file's contents when it could last be read.
#[derive(Debug, Default)]
struct FromFile {
    roots: CertificateList,
    version: Option<FileVersion>,
}

/// One state of the roots.
#[derive(Debug)]
pub(super) struct RootSet {
    /// The certificates, sorted.
    pub certificates: CertificateList,
    /// Verifies servers with these roots.
    pub store: Arc<RootCertStore>,
    /// Verifies clients with these roots; none while there is no root.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl TrustedRoots {
    pub fn new(provider: Arc<CryptoProvider>, file: &Path) -> Self {
        let nothing =
            RootSet { certificates: Vec::new(), store: RootCertStore::empty().into(), clients: None };
        let trust = Self {
            provider,
            file: file.to_owned(),
            from_file: Mutex::default(),
            roots: ArcSwap::from_pointee(nothing),
            changes: watch::Sender::new(()),
        };
        trust.reload_file_if_changed();
        trust
    }

    /// Returns the roots in force.
    pub fn roots(&self) -> Arc<RootSet> {
        self.roots.load_full()
    }

    /// Notifies when a certificate may have become valid or invalid: the roots changed, or the clock was set.
    pub fn subscribe_root_and_clock_changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns the roots that the control plane is checked with: the file's and the authority's.
    pub fn control_plane_roots(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.known().roots.clone());
        store.add_parsable_certificates(self.roots().certificates.clone());
        store
    }

    /// Reads the file again. Returns whether its contents changed. A file that can't be read changes nothing.
    pub fn reload_file_if_changed(&self) -> bool {
        let mut known = self.known();
        let Ok(version) = FileVersion::of(&self.file) else { return false };
        if known.version == Some(version) {
            return false;
        }
        let Ok(text) = std::fs::read(&self.file) else { return false };
        known.version = Some(version);
        let Ok(roots) = CertificateDer::pem_slice_iter(&text).collect::<Result<CertificateList, _>>() else {
            return false;
        };
        let roots = sorted(roots);
        let changed = !roots.is_empty() && known.roots != roots;
        if changed {
            known.roots = roots;
        }
        changed
    }

    /// Returns those of `roots` that the file has too. Only the node's operator and the control plane write
    /// it.
    pub fn roots_also_in_file(&self, mut roots: CertificateList) -> CertificateList {
        self.reload_file_if_changed();
        let known = self.known();
        roots.retain(|root| known.roots.contains(root));
        roots
    }

    /// Whether the file has the authority's own bundle, so that the file tells of every change.
    pub fn file_matches_ca_roots(&self) -> bool {
        self.known().roots == self.roots().certificates
    }

    /// Takes over the roots that the authority listed. Errors: they can't be used.
    pub fn install_ca_roots(&self, bundle: CertificateList) -> Result<(), rustls::Error> {
        let certificates = sorted(bundle);
        if certificates == self.roots().certificates {
            return Ok(());
        }
        let roots = RootSet::new(certificates, &self.provider)?;
        tracing::info!(roots = roots.certificates.len(), "the mesh's roots changed");
        self.roots.store(Arc::new(roots));
        self.changes.send_replace(());
        Ok(())
    }

    /// Notifies that the clock was set: whoever waits for a change checks its certificate.
    pub fn notify_clock_jump(&self) {
        self.changes.send_replace(());
    }

    fn known(&self) -> std::sync::MutexGuard<'_, FromFile> {
        self.from_file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RootSet {
    pub fn new(certificates: CertificateList, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in &certificates {
            store.add(root.clone())?;
        }
        let store = Arc::new(store);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(provider)).build();
        let clients = clients.map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { certificates, store, clients: Some(clients) })
    }

    /// Verifies a chain, leaf first, as a peer with these roots would now. Errors: it would be refused.
    pub fn verify_chain(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if let (Some(clients), [leaf, rest @ ..]) = (&self.clients, chain) {
            clients.verify_client_cert(leaf, rest, UnixTime::now())?;
        }
        Ok(())
    }
}

fn sorted(mut bundle: CertificateList) -> CertificateList {
    bundle.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
    bundle.dedup();
    bundle
}
