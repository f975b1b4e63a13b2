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

/// Several certificates.
pub(super) type Bundle = Vec<CertificateDer<'static>>;

/// The roots in force. Handshakes look here each time, so a new root counts at once and needs no new
/// configuration.
#[derive(Debug)]
pub(super) struct Trust {
    provider: Arc<CryptoProvider>,
    file: PathBuf,
    from_file: Mutex<FromFile>,
    roots: ArcSwap<Roots>,
    changes: watch::Sender<()>,
}

/// What the file said when it could last be read.
#[derive(Debug, Default)]
struct FromFile {
    roots: Bundle,
    version: Option<FileVersion>,
}

/// One state of the roots.
#[derive(Debug)]
pub(super) struct Roots {
    /// The certificates, sorted.
    pub certificates: Bundle,
    /// The same, for checking servers.
    pub store: Arc<RootCertStore>,
    /// The same, for checking clients; none while there is no root.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Trust {
    pub fn new(provider: Arc<CryptoProvider>, file: &Path) -> Self {
        let nothing = Roots { certificates: Vec::new(), store: RootCertStore::empty().into(), clients: None };
        let trust = Self {
            provider,
            file: file.to_owned(),
            from_file: Mutex::default(),
            roots: ArcSwap::from_pointee(nothing),
            changes: watch::Sender::new(()),
        };
        trust.read_file();
        trust
    }

    /// The roots in force.
    pub fn roots(&self) -> Arc<Roots> {
        self.roots.load_full()
    }

    /// Told whenever certificates may count that did not, or the other way round: there are other roots, or
    /// the clock was set.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// What the control plane is checked with: the file's roots, and those that the authority told.
    pub fn for_control(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.known().roots.clone());
        store.add_parsable_certificates(self.roots().certificates.clone());
        store
    }

    /// Reads the file again; answers whether it says something else than before. One that can't be read
    /// changes nothing.
    pub fn read_file(&self) -> bool {
        let mut known = self.known();
        let Ok(version) = FileVersion::of(&self.file) else { return false };
        if known.version == Some(version) {
            return false;
        }
        let Ok(text) = std::fs::read(&self.file) else { return false };
        known.version = Some(version);
        let Ok(roots) = CertificateDer::pem_slice_iter(&text).collect::<Result<Bundle, _>>() else {
            return false;
        };
        let roots = sorted(roots);
        let changed = !roots.is_empty() && known.roots != roots;
        if changed {
            known.roots = roots;
        }
        changed
    }

    /// Those roots that the file names, too. Nobody but the node's operator and the control plane writes it.
    pub fn of_file(&self, mut roots: Bundle) -> Bundle {
        self.read_file();
        let known = self.known();
        roots.retain(|root| known.roots.contains(root));
        roots
    }

    /// Whether the file is the authority's bundle, so that it tells of a change by itself.
    pub fn file_is_bundle(&self) -> bool {
        self.known().roots == self.roots().certificates
    }

    /// Takes over what the authority listed.
    pub fn learn(&self, bundle: Bundle) -> Result<(), rustls::Error> {
        let certificates = sorted(bundle);
        if certificates == self.roots().certificates {
            return Ok(());
        }
        let roots = Roots::new(certificates, &self.provider)?;
        tracing::info!(roots = roots.certificates.len(), "the mesh's roots changed");
        self.roots.store(Arc::new(roots));
        self.changes.send_replace(());
        Ok(())
    }

    /// The clock was set: whoever waits for a change is to check what it holds.
    pub fn look_again(&self) {
        self.changes.send_replace(());
    }

    fn known(&self) -> std::sync::MutexGuard<'_, FromFile> {
        self.from_file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roots {
    pub fn new(certificates: Bundle, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
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

    /// Fails for a certificate, the leaf first, that peers with these roots would refuse now.
    pub fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if let (Some(clients), [leaf, rest @ ..]) = (&self.clients, chain) {
            clients.verify_client_cert(leaf, rest, UnixTime::now())?;
        }
        Ok(())
    }
}

fn sorted(mut bundle: Bundle) -> Bundle {
    bundle.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
    bundle.dedup();
    bundle
}
