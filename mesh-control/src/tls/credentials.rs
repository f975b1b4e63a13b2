//! Our own certificate and the roots that clients are checked against; both are replaced while serving.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use tracing::{error, info};

use crate::ca::Authority;
use crate::ca::signer::{SignerError, Subject};

/// What Istio's agents are built to expect.
const ISTIO: &str = "istiod.istio-system.svc";
/// After a failure to renew.
const RETRY: Duration = Duration::from_secs(10);
/// The clock may be set, and the machine suspended, while one waits; so nobody waits for longer without
/// looking at it.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// Names under which agents may know a control plane that runs in `namespace`.
pub fn names(namespace: &str, cluster_domain: &str) -> Vec<String> {
    let service = format!("mesh-control.{namespace}.svc");
    vec![
        "mesh-control".to_owned(),
        format!("mesh-control.{namespace}"),
        format!("{service}.{cluster_domain}"),
        service,
        format!("{ISTIO}.{cluster_domain}"),
        ISTIO.to_owned(),
        "localhost".to_owned(),
    ]
}

/// The TLS configuration for the next connection.
pub struct ServerTls {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: ArcSwap<ServerConfig>,
}

impl ServerTls {
    /// Makes the first certificate, for `names`.
    pub fn new(authority: Arc<Authority>, names: Vec<String>) -> Result<Self, TlsError> {
        let (config, _) = configure(&authority, &names)?;
        Ok(Self { authority, names, current: ArcSwap::from_pointee(config) })
    }

    /// What the next handshake is made with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Renews at half of the certificate's life, when the clock was set back to before it was made, and
    /// whenever the roots change. Never returns.
    pub async fn keep_fresh(&self) {
        let mut roots = self.authority.changes();
        loop {
            let made = SystemTime::now();
            match configure(&self.authority, &self.names) {
                Ok((config, expires)) => {
                    self.current.store(Arc::new(config));
                    info!(expires = %humantime::format_rfc3339_seconds(expires), "new serving certificate");
                    // Either leads to the same: make it anew.
                    tokio::select! { _ = roots.changed() => {}, () = half_over(made, expires) => {} }
                }
                Err(error) => {
                    error!(%error, "serving certificate not renewed; the old one stays");
                    let _ = tokio::time::timeout(RETRY, roots.changed()).await;
                }
            }
        }
    }
}

/// Returns when the clock shows half of a certificate's life, or a time before it was made. A second passes
/// in any case.
async fn half_over(made: SystemTime, expires: SystemTime) {
    let renewal = made + expires.duration_since(made).unwrap_or_default() / 2;
    let mut wait = Duration::from_secs(1);
    loop {
        tokio::time::sleep(wait).await;
        let now = SystemTime::now();
        match renewal.duration_since(now) {
            Ok(left) if now >= made => wait = left.min(LOOK_AT_CLOCK),
            _ => return,
        }
    }
}

fn configure(authority: &Authority, names: &[String]) -> Result<(ServerConfig, SystemTime), TlsError> {
    let key = KeyPair::generate().map_err(SignerError::from)?;
    let dns_names: Vec<&str> = names.iter().map(String::as_str).collect();
    let subject = Subject { identity: authority.control_identity(), dns_names: &dns_names, key: &key };
    let issued = authority.issue(&subject, None)?;

    let mut trusted = RootCertStore::empty();
    for root in authority.roots() {
        trusted.add(root)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // A first contact has no certificate yet; what needs one asks for it (discovery does).
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.into(), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check of a certificate that has expired since, or of a dropped root.
    config.send_tls13_tickets = 0;
    Ok((config, issued.expires))
}

/// Why there is no TLS configuration. The operator has to act.
#[derive(Debug, Error)]
pub enum TlsError {
    /// No certificate for ourselves.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The roots can't be used to check clients.
    #[error("client verification: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Anything else that rustls does not like.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}
