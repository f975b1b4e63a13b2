//! Certificates that outlive the proxy that asked for them: written to memory for the next proxy, and taken
//! over from the one before. See [`crate::inheritance`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::identity::SpiffeId;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::Certificates;
use super::ca_client::{CaError, CaResponseError, IssuedCertificate, Subject};
use super::store::Shared;
use crate::inheritance::InheritedKind;
use crate::inheritance::certificate_file::{
    CertificateEntry, CertificateFile, MAX_CERTIFICATE_FILE_BYTES, parse_certificate_file,
    write_certificate_file,
};
use crate::inheritance::{self, BequestSender};

/// How long changes are gathered before they are written.
const TOGETHER: Duration = Duration::from_millis(50);

/// Time after which inherited certificates that nobody asked for are forgotten. The pods of the proxy before
/// have been asked for again by then.
const ASKED_FOR_BY: Duration = Duration::from_mins(1);

/// Chains and keys as they came, by the URI of the identity.
pub(super) type ChainsAndKeys = BTreeMap<String, ChainAndKey>;

/// The chain and key of one identity.
#[derive(Clone)]
pub(super) struct ChainAndKey {
    /// Chain in PEM, leaf first.
    pub chain: Arc<str>,
    /// Private key (PKCS #8, DER).
    pub key: Arc<PrivatePkcs8KeyDer<'static>>,
}

impl ChainAndKey {
    pub fn from_issued(issued: &IssuedCertificate) -> Self {
        let key = PrivatePkcs8KeyDer::from(issued.key.serialize_der());
        Self { chain: issued.chain_pem.as_str().into(), key: Arc::new(key) }
    }
}

/// Writes all certificates for the next proxy whenever they have changed.
pub(super) async fn bequeath_on_change(shared: Arc<Shared>, inheritance: BequestSender) {
    loop {
        shared.changed.notified().await;
        tokio::time::sleep(TOGETHER).await;
        let kept = shared.lock_bequeathed().clone();
        match written(&shared, &kept) {
            Ok(file) => inheritance.bequeath(InheritedKind::Certificates, Some(file)),
            Err(error) => tracing::warn!(%error, "a proxy after this one will have no certificates at first"),
        }
    }
}

fn written(shared: &Shared, kept: &ChainsAndKeys) -> io::Result<File> {
    let roots = shared.trust.roots();
    let entries = kept.iter().map(|(uri, kept)| CertificateEntry {
        uri,
        chain: &kept.chain,
        key: kept.key.secret_pkcs8_der(),
    });
    let contents = CertificateFile {
        roots: roots.certificates.iter().map(AsRef::as_ref).collect(),
        entries: entries.collect(),
    };
    let file = inheritance::create_empty_memfd(c"nodemesh-certificates")?;
    let mut to = BufWriter::new(&file);
    write_certificate_file(&contents, &mut to)?;
    to.flush()?;
    drop(to);
    inheritance::seal_read_only(&file)?;
    Ok(file)
}

impl Certificates {
    /// Takes over what the proxy before has left: the roots that the operator's file has too, and the
    /// certificates that lead to them, are valid now and have their key. They are in use until the authority
    /// has answered.
    pub fn load_inherited(&self, file: &File) {
        let taken = inheritance::read_whole_file(file, MAX_CERTIFICATE_FILE_BYTES)
            .map(|bytes| self.shared.inherit(&bytes));
        match taken {
            Ok(Some(identities)) => {
                tracing::info!(identities, "certificates of the proxy before this one are in use");
            }
            Ok(None) => {
                tracing::warn!(
                    "what the proxy before this one has left is of no use: certificates are asked for"
                );
            }
            Err(error) => tracing::warn!(%error, "what the proxy before this one has left can't be read"),
        }
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(async move {
            tokio::time::sleep(ASKED_FOR_BY).await;
            shared.forget_unasked();
        });
    }
}

impl Shared {
    /// Returns the number of identities taken over; none if nothing can be used.
    fn inherit(&self, bytes: &[u8]) -> Option<usize> {
        let contents = parse_certificate_file(bytes)?;
        let roots: Vec<_> =
            contents.roots.iter().map(|root| CertificateDer::from(*root).into_owned()).collect();
        let roots = self.trust.roots_also_in_file(roots);
        // The authority may have answered already: its answer stays.
        if roots.is_empty() || !self.trust.roots().certificates.is_empty() {
            return None;
        }
        self.trust.install_ca_roots(roots).ok()?;
        let takes = |entry: &&CertificateEntry<'_>| {
            let taken = self.inherit_one(entry);
            if let Err(error) = &taken {
                tracing::debug!(identity = entry.uri, %error, "not taken over from the proxy before this one");
            }
            taken.is_ok()
        };
        Some(contents.entries.iter().filter(takes).count())
    }

    fn inherit_one(&self, entry: &CertificateEntry<'_>) -> Result<(), CaError> {
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(entry.key))?;
        let roots = self.trust.roots().certificates.clone();
        let issued = IssuedCertificate::from_chain(entry.chain.to_owned(), roots, key)?;
        let uri = issued.id.as_str().to_owned();
        if uri != entry.uri {
            return Err(
                CaResponseError::WrongIdentity { asked: entry.uri.to_owned(), found: issued.id }.into()
            );
        }
        self.verify_as_peer(&issued).map_err(CaResponseError::from)?;
        let (kept, identity) = (
            ChainAndKey::from_issued(&issued),
            self.build_workload_certificate(&issued).map_err(CaResponseError::from)?,
        );
        if uri != self.own_uri {
            self.lock_inherited().insert(identity.id.clone(), Arc::new(identity));
            self.lock_bequeathed().entry(uri).or_insert(kept);
        } else if self.agent_certificate().is_none() {
            self.install_agent_certificate(&issued);
        }
        Ok(())
    }

    /// Puts the inherited certificate of an identity into use, if there is one, the identity is wanted, and
    /// no certificate of it is in use.
    pub fn use_inherited_if_none_current(&self, id: &SpiffeId) {
        let Some(identity) = self.lock_inherited().remove(id) else { return };
        let wanted = self.lock_retained();
        if wanted.contains_key(id) && !self.current.load().contains_key(id) {
            self.update_current(|current| drop(current.insert(id.clone(), identity)));
        }
        drop(wanted);
        self.installed.send_replace(());
    }

    /// Returns when the certificate in use expires; none if there is none.
    pub fn current_expiry(&self, subject: &Subject) -> Option<SystemTime> {
        match subject {
            Subject::Agent { .. } => self.agent_certificate().map(|own| own.not_after),
            Subject::Workload(id) => self.current.load().get(id).map(|identity| identity.not_after),
        }
    }

    fn forget_unasked(&self) {
        let unasked = std::mem::take(&mut *self.lock_inherited());
        self.lock_bequeathed().retain(|uri, _| !unasked.keys().any(|id| id.as_str() == uri));
        if !unasked.is_empty() {
            self.changed.notify_one();
        }
    }
}
