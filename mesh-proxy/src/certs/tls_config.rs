//! TLS settings of the mesh (docs/wire.md, TLS): TLS 1.3 only, certificates on both sides, no server name, no
//! resumption.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};

use super::trust_domain_verifier::TrustDomainVerifier;
use crate::mux;
use crate::tunnel::AllowedFraming;

const HBONE: &[u8] = b"h2";

/// Returns the protocols for ALPN, the best first.
fn alpn(framing: AllowedFraming) -> Vec<Vec<u8>> {
    match framing {
        AllowedFraming::Auto => vec![mux::ALPN.to_vec(), HBONE.to_vec()],
        AllowedFraming::Hbone => vec![HBONE.to_vec()],
    }
}

/// Returns the cipher suites and key exchanges. AES-128 comes first since it is cheaper and either will do.
/// The hybrid group keeps what is recorded today from the quantum computers of tomorrow.
pub(super) fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..default_provider()
    })
}

/// Returns the configuration for connecting. It checks the peer's chain; whether the peer is who was meant is
/// checked after the handshake, by [`peer_spiffe_id`](super::peer_spiffe_id). Errors: the key is not the
/// chain's.
pub(super) fn client_config(
    verifier: &Arc<TrustDomainVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    framing: AllowedFraming,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as _)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = alpn(framing);
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Returns the configuration for accepting. Errors: the key is not the chain's.
pub(super) fn server_config(
    verifier: &Arc<TrustDomainVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    framing: AllowedFraming,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(verifier) as _)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn(framing);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
