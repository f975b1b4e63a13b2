//! The TLS handshake, RFC 8446.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::records::{Records, append};
use super::stream::TlsStream;

/// A peer that takes longer than this has gone away or wants to hold resources.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a handshake that are kept for a peer: a post-quantum hello and a chain of several certificates fit
/// many times over.
const MOST_BYTES: usize = 32 * 1024;

/// What one side sends at a time, if its chain is short.
const LIKELY: usize = 4 * 1024;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer sent what TLS or our configuration does not allow, or its certificate was refused.
    #[error("TLS: {0}")]
    Peer(#[from] rustls::Error),
    /// The connection broke.
    #[error("connection lost during the TLS handshake: {0}")]
    Lost(#[from] io::Error),
    /// The peer was silent or endless.
    #[error("TLS handshake not finished after {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The peer sent more than a handshake needs.
    #[error("TLS handshake larger than {MOST_BYTES} bytes")]
    TooLarge,
}

/// Opens a TLS session as client. The server's name is not sent (the identity is checked by the caller), so any
/// address does as the name.
pub async fn connect(
    tcp: TcpStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<UnbufferedClientConnection>, Error> {
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    drive(tcp, Box::new(UnbufferedClientConnection::new(config, name)?)).await
}

/// Accepts a TLS session as server.
pub async fn accept(
    tcp: TcpStream,
    config: Arc<rustls::ServerConfig>,
) -> Result<TlsStream<UnbufferedServerConnection>, Error> {
    drive(tcp, Box::new(UnbufferedServerConnection::new(config)?)).await
}

async fn drive<C: Records>(tcp: TcpStream, records: Box<C>) -> Result<TlsStream<C>, Error> {
    tokio::time::timeout(
        TIMEOUT,
        Handshake { tcp, records, incoming: Vec::with_capacity(LIKELY), outgoing: Vec::new() }.run(),
    )
    .await
    .map_err(|_| Error::Timeout)?
}

struct Handshake<C> {
    tcp: TcpStream,
    records: Box<C>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// What the state machine asks for next.
enum Next {
    Process,
    Send,
    Receive,
    Finished { early: Vec<u8> },
    Failed(rustls::Error),
}

impl<C: Records> Handshake<C> {
    async fn run(mut self) -> Result<TlsStream<C>, Error> {
        loop {
            match self.step() {
                Next::Process => {}
                Next::Send => self.send().await?,
                Next::Receive => self.receive().await?,
                Next::Finished { early } => {
                    self.send().await?;
                    return Ok(TlsStream::new(self.tcp, self.records, self.incoming, early));
                }
                Next::Failed(error) => {
                    self.say_why().await;
                    return Err(error.into());
                }
            }
        }
    }

    fn step(&mut self) -> Next {
        let UnbufferedStatus { mut discard, state, .. } = self.records.process(&mut self.incoming);
        let next = match state {
            Err(error) => Next::Failed(error),
            Ok(ConnectionState::EncodeTlsData(encode)) => {
                append(encode, &mut self.outgoing);
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

    async fn receive(&mut self) -> Result<(), Error> {
        if self.incoming.len() >= MOST_BYTES {
            return Err(Error::TooLarge);
        }
        match self.tcp.read_buf(&mut self.incoming).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// After a failure rustls has an alert for the peer, which makes its error message useful. Best effort.
    async fn say_why(&mut self) {
        while let Ok(ConnectionState::EncodeTlsData(encode)) = self.records.process(&mut []).state {
            append(encode, &mut self.outgoing);
        }
        let _unheard = self.send().await;
        let _unheard = self.tcp.shutdown().await;
    }
}
