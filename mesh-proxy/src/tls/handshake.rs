//! The TLS handshake (RFC 8446), over rustls' unbuffered interface.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stream::TlsStream;
use super::unbuffered_client_or_server::{UnbufferedConnection, append_handshake_record};
use crate::relay::fin_on_drop;

/// Timeout of a handshake: a slower peer has gone away, or wants to hold resources.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a handshake that are held for a peer: a post-quantum hello and a chain of several
/// certificates fit many times over.
const MOST_BYTES: usize = 32 * 1024;

/// How long a refused peer has to read why, and how many bytes it may send meanwhile.
const TIME_TO_READ: Duration = Duration::from_secs(1);
const MOST_UNHEARD: usize = 64 * 1024;

/// Initial size of the buffers, bytes: what one side sends at a time if its chain is short.
const LIKELY: usize = 4 * 1024;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer sent what TLS or our configuration does not allow, or its certificate was refused.
    #[error("TLS: {0}")]
    Peer(#[from] rustls::Error),
    /// The connection broke.
    #[error("connection lost during the TLS handshake: {0}")]
    Lost(#[from] io::Error),
    /// The handshake took too long.
    #[error("TLS handshake not finished after {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The peer sent more than a handshake needs.
    #[error("TLS handshake larger than {MOST_BYTES} bytes")]
    TooLarge,
}

/// Runs a handshake as client. The server's name is not sent (the caller checks the identity), so any address
/// serves as the name. Errors: see [`HandshakeError`].
pub async fn client_handshake_unverified_name(
    tcp: TcpStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<UnbufferedClientConnection>, HandshakeError> {
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    drive(tcp, Box::new(UnbufferedClientConnection::new(config, name)?)).await
}

/// Runs a handshake as server. Errors: see [`HandshakeError`].
pub async fn server_handshake(
    tcp: TcpStream,
    config: Arc<rustls::ServerConfig>,
) -> Result<TlsStream<UnbufferedServerConnection>, HandshakeError> {
    drive(tcp, Box::new(UnbufferedServerConnection::new(config)?)).await
}

async fn drive<C: UnbufferedConnection>(
    tcp: TcpStream,
    unbuffered: Box<C>,
) -> Result<TlsStream<C>, HandshakeError> {
    tokio::time::timeout(
        TIMEOUT,
        Handshake { tcp, unbuffered, incoming: Vec::with_capacity(LIKELY), outgoing: Vec::new() }.run(),
    )
    .await
    .map_err(|_| HandshakeError::Timeout)?
}

struct Handshake<C> {
    tcp: TcpStream,
    unbuffered: Box<C>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// What the state machine needs next.
enum Next {
    Process,
    Send,
    Receive,
    Finished { early: Vec<u8> },
    Failed(rustls::Error),
}

impl<C: UnbufferedConnection> Handshake<C> {
    async fn run(mut self) -> Result<TlsStream<C>, HandshakeError> {
        loop {
            match self.step() {
                Next::Process => {}
                Next::Send => self.send().await?,
                Next::Receive => self.receive().await?,
                Next::Finished { early } => {
                    self.send().await?;
                    return Ok(TlsStream::new(self.tcp, self.unbuffered, self.incoming, early));
                }
                Next::Failed(error) => {
                    self.say_why().await;
                    return Err(error.into());
                }
            }
        }
    }

    fn step(&mut self) -> Next {
        let UnbufferedStatus { mut discard, state, .. } = self.unbuffered.process_records(&mut self.incoming);
        let next = match state {
            Err(error) => Next::Failed(error),
            Ok(ConnectionState::EncodeTlsData(encode)) => {
                append_handshake_record(encode, &mut self.outgoing);
                Next::Process
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Next::Send
            }
            Ok(ConnectionState::WriteTraffic(_)) => Next::Finished { early: Vec::new() },
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut early = Vec::new();
                while let Some(Ok(record)) = traffic.next_record() {
                    discard += record.discard;
                    early.extend_from_slice(record.payload);
                }
                Next::Finished { early }
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Receive,
            Ok(_) => Next::Failed(rustls::Error::General("closed during the handshake".into())),
        };
        self.incoming.drain(..discard);
        next
    }

    async fn send(&mut self) -> io::Result<()> {
        self.tcp.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), HandshakeError> {
        if self.incoming.len() >= MOST_BYTES {
            return Err(HandshakeError::TooLarge);
        }
        match self.tcp.read_buf(&mut self.incoming).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// Sends the alert that rustls has for the peer after a failure, which makes its error message useful.
    /// Best effort.
    async fn say_why(&mut self) {
        // Received bytes are shown again: rustls may know of messages in them that it has not read yet.
        loop {
            let UnbufferedStatus { discard, state, .. } = self.unbuffered.process_records(&mut self.incoming);
            let Ok(ConnectionState::EncodeTlsData(encode)) = state else { break };
            append_handshake_record(encode, &mut self.outgoing);
            self.incoming.drain(..discard);
        }
        let _unheard = self.send().await;
        let _unheard = tokio::time::timeout(TIME_TO_READ, self.part()).await;
    }

    /// Closes so that the alert arrives. Sockets accepted in pods are reset when they are closed, and so is
    /// any connection with unread bytes. To a peer that is still writing (in TLS 1.3 a client is done before
    /// it is refused) a reset says that the network failed, and not that its certificate did.
    async fn part(&mut self) -> io::Result<()> {
        fin_on_drop(&self.tcp);
        self.tcp.shutdown().await?;
        let mut unheard = 0;
        while unheard < MOST_UNHEARD {
            self.incoming.clear();
            match self.tcp.read_buf(&mut self.incoming).await? {
                0 => break,
                read => unheard += read,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::net::TcpListener;

    use super::*;

    fn root(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate and its key.
    fn leaf(
        root: &CertifiedIssuer<'static, KeyPair>,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["0.0.0.0".to_owned()]).unwrap().signed_by(&key, root).unwrap();
        (vec![leaf.der().clone()], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn server(root: &CertifiedIssuer<'static, KeyPair>) -> ServerConfig {
        let (chain, key) = leaf(root);
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
    }

    fn client(root: &CertifiedIssuer<'static, KeyPair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }

    /// A client's certificate is refused when the client is done already, and maybe writing.
    #[tokio::test]
    async fn a_client_that_is_refused_hears_why_while_it_writes() {
        let _installed_once = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (trusted, other) = (root("trusted"), root("other"));
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(roots.clone().into()).build().unwrap();
        let (chain, key) = leaf(&trusted);
        let server = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key);
        let (chain, key) = leaf(&other);
        let strange =
            ClientConfig::builder().with_root_certificates(roots.clone()).with_client_auth_cert(chain, key);
        let nobody = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = Arc::new(server.unwrap());
        for (client, why) in [(strange.unwrap(), "UnknownCA"), (nobody, "CertificateRequired")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // As in a pod.
            socket2::SockRef::from(&listener).set_linger(Some(Duration::ZERO)).unwrap();
            let address = listener.local_addr().unwrap();
            let config = Arc::clone(&server);
            let mut accepted = tokio::spawn(async move {
                let (tcp, _) = listener.accept().await.unwrap();
                server_handshake(tcp, config).await.map(drop)
            });
            let mut session = client_handshake_unverified_name(
                TcpStream::connect(address).await.unwrap(),
                Arc::new(client),
            )
            .await
            .unwrap();
            // By then the server has refused, and closed unless it waits for us.
            let waits = tokio::time::timeout(TIME_TO_READ / 2, &mut accepted).await;
            assert!(waits.is_err(), "{waits:?}");
            session.write_all(b"x").await.unwrap();
            std::future::poll_fn(|context| session.poll_send_all(context))
                .await
                .expect("nobody has reset it");
            let heard = session.read_u8().await.unwrap_err().to_string();
            assert!(heard.contains("received fatal alert") && heard.contains(why), "{heard}");
            drop(session);
            assert!(matches!(accepted.await.unwrap(), Err(HandshakeError::Peer(_))));
        }
    }

    /// A server's messages come in one record, and the one that is refused is not the last of them.
    #[tokio::test]
    async fn a_server_that_is_refused_hears_why() {
        let _installed_once = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (trusted, other) = (root("trusted"), root("other"));
        for (signer, good) in [(&trusted, true), (&other, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let config = Arc::new(server(signer));
            let accepted = tokio::spawn(async move {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut session = server_handshake(tcp, config).await?;
                // In TLS 1.3 a server is done before it has heard of its client's verdict.
                session.read_u8().await.map(drop).map_err(HandshakeError::from)
            });
            let tcp = TcpStream::connect(address).await.unwrap();
            let connected = client_handshake_unverified_name(tcp, Arc::new(client(&trusted))).await;
            assert_eq!(connected.is_ok(), good);
            drop(connected);
            let heard = accepted.await.unwrap().unwrap_err().to_string();
            assert_eq!(heard.contains("received fatal alert"), !good, "{heard}");
        }
    }
}
