//! For tests of both protocols between nodes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::spawn_local;

/// TLS for both sides. Anybody's certificate is as good as another's.
pub fn configs() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    static CONFIGS: std::sync::OnceLock<(Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>)> =
        std::sync::OnceLock::new();
    CONFIGS.get_or_init(new_configs).clone()
}

fn new_configs() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["0.0.0.0".to_owned()]).unwrap().self_signed(&key).unwrap();
    let der: CertificateDer<'static> = certificate.der().clone();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der], private)
        .unwrap();
    (Arc::new(client), Arc::new(server))
}

/// Runs a test as a core would, for a minute at most.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let limited = async { tokio::time::timeout(Duration::from_mins(1), test).await.expect("in time") };
    local.block_on(&runtime, limited);
}

/// A server that echoes until its client is done, and then says so.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut from, mut to) = socket.split();
                let _end = tokio::io::copy(&mut from, &mut to).await;
                let _end = to.write_all(b"<done>").await;
                let _end = to.shutdown().await;
            });
        }
    });
    address
}
