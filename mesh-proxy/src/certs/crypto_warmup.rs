//! Runs a handshake with itself at the start, so that no connection pays for the first use of the algorithms.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConnection, ServerConnection};

use super::tls_config;
use super::trust_domain_verifier::TrustDomainVerifier;
use super::trusted_roots::TrustedRoots;
use crate::tunnel::AllowedFraming;

const WHO: &str = "spiffe://warm.up/ns/a/sa/b";

/// Makes a handshake in memory, post-quantum key exchange included. The library's first use of each algorithm
/// takes tens of milliseconds, which would otherwise be the first connection's.
pub async fn warm_up_crypto() {
    let done = tokio::task::spawn_blocking(|| handshake().map_err(|error| error.to_string())).await;
    if let Ok(Err(error)) = done {
        tracing::warn!(
            error,
            "the warm-up handshake failed; the first connection will be slow, or fail as well"
        );
    }
}

fn handshake() -> Result<(), Box<dyn std::error::Error>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(WHO.try_into()?)];
    let leaf: CertificateDer<'static> = params.signed_by(&key, &root)?.der().clone();

    let provider = tls_config::crypto_provider();
    let trust = Arc::new(TrustedRoots::new(Arc::clone(&provider), "".as_ref()));
    trust.install_ca_roots(vec![root.der().clone()])?;
    let verifier = Arc::new(TrustDomainVerifier { trust, provider, trust_domain: "warm.up".into() });
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let client = tls_config::client_config(&verifier, vec![leaf.clone()], key(), AllowedFraming::default())?;
    let server = tls_config::server_config(&verifier, vec![leaf], key(), AllowedFraming::default())?;
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    talk(ClientConnection::new(client.into(), name)?, ServerConnection::new(server.into())?)
}

fn talk(
    mut client: ClientConnection,
    mut server: ServerConnection,
) -> Result<(), Box<dyn std::error::Error>> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        server.read_tls(&mut bytes.as_slice())?;
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes)?;
        client.read_tls(&mut bytes.as_slice())?;
        client.process_new_packets()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_handshake_succeeds() {
        super::handshake().unwrap();
    }
}
