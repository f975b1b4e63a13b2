//! Streams over mutual TLS, opened and accepted, whichever way they are framed: the mesh's own protocol or
//! HBONE. ALPN decides.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::StatusCode;
use http::header::HeaderMap;
use mesh_api::plan::Workload;
use rustls::client::UnbufferedClientConnection;

use super::hbone::headers::BadTarget;
use super::hbone::{self, headers};
pub use super::mux::Early;
use super::mux::{self, Budget, frame};
use super::stream::{HBONE, MESH, Stream};
use super::tls::TlsStream;

/// How connections between nodes are framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// By the mesh's own protocol where the peer has it, and as HBONE otherwise.
    #[default]
    Auto,
    /// As HBONE always.
    Hbone,
}

/// A connection that streams can be opened on.
#[derive(Clone)]
pub enum Connection {
    /// HTTP/2.
    Hbone(hbone::Connection),
    /// The mesh's own protocol.
    Mesh(mux::Connection),
}

/// A stream that a peer asks for, not answered yet.
pub enum IncomingStream {
    /// HTTP/2 CONNECT.
    Hbone(hbone::IncomingStream),
    /// The mesh's own protocol.
    Mesh(mux::IncomingStream),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Over HBONE.
    #[error(transparent)]
    Hbone(#[from] hbone::OpenError),
    /// Over the mesh's own protocol.
    #[error(transparent)]
    Mesh(#[from] mux::OpenError),
}

/// Why a stream can't be accepted any more.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// Over HBONE.
    #[error(transparent)]
    Hbone(#[from] h2::Error),
    /// Over the mesh's own protocol.
    #[error("{0}")]
    Mesh(mux::Broken),
}

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy denies it.
    Denied,
    /// It asks for what is not to be asked for here.
    BadRequest,
    /// The application can't be reached now.
    Unavailable,
}

impl OpenError {
    /// Whether the destination's policy said no.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Hbone(hbone::OpenError::Denied) | Self::Mesh(mux::OpenError::Denied))
    }

    /// Whether the application can't be reached now.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Hbone(hbone::OpenError::Unavailable) | Self::Mesh(mux::OpenError::Unavailable))
    }

    /// How the access log calls it.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Hbone(_) => HBONE,
            Self::Mesh(_) => MESH,
        }
    }

    /// Whether the connection is to blame and not the destination: a new one may do.
    pub fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Self::Hbone(hbone::OpenError::Connection(_)) | Self::Mesh(mux::OpenError::Connection(_))
        )
    }
}

/// What a stream is opened with.
pub struct Opening<'a> {
    /// The client's address and port, for the server to see.
    pub client: SocketAddr,
    /// The workload's address and port.
    pub destination: SocketAddr,
    /// Host name of the service that the client addressed, if it did.
    pub service: Option<&'a str>,
    /// The client's workload, of which an HBONE peer is told.
    pub workload: Option<&'a Workload>,
    /// What the client has sent already, which goes along where the protocol can take it.
    pub early: Early<'a>,
    /// Set when the server may have got some of that: then no other may get it again.
    pub exposed: &'a Cell<bool>,
}

impl Connection {
    /// Starts the protocol that the handshake has chosen, and a task that drives it; `ended` runs when the
    /// connection is over. What streams hold counts in `budget`. Errors: the peer does not speak it.
    pub async fn start(
        tls: TlsStream<UnbufferedClientConnection>,
        budget: &Rc<Budget>,
        ended: impl FnOnce() + 'static,
    ) -> Result<Self, OpenError> {
        if tls.alpn_protocol() == Some(mux::ALPN) {
            return Ok(Self::Mesh(mux::Connection::start(tls, budget, ended)));
        }
        Ok(Self::Hbone(hbone::Connection::start(tls, ended).await?))
    }

    /// Opens a stream. Errors: the connection is over or full, or the peer refuses.
    pub async fn open(&self, opening: &Opening<'_>) -> Result<Stream, OpenError> {
        let Opening { client, destination, service, workload, early, exposed } = *opening;
        match self {
            Self::Hbone(connection) => {
                let request = headers::connect(client, destination, service, workload);
                let request = request.map_err(hbone::OpenError::from)?;
                Ok(Stream::Hbone(connection.clone().open(request).await?))
            }
            Self::Mesh(connection) => {
                let open = mux::open_frame(client, destination, service);
                Ok(Stream::Mesh(connection.open(open, early, exposed).await?))
            }
        }
    }

    /// Whether another stream fits.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Hbone(connection) => connection.has_room(),
            Self::Mesh(connection) => connection.has_room(),
        }
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        match self {
            Self::Hbone(connection) => connection.streams(),
            Self::Mesh(connection) => connection.streams(),
        }
    }
}

impl IncomingStream {
    /// The client's address and port, as the peer says.
    pub fn client(&self) -> Option<SocketAddr> {
        match self {
            Self::Hbone(incoming) => headers::forwarded_client(&incoming.headers),
            Self::Mesh(incoming) => Some(incoming.open.source),
        }
    }

    /// Host name of the service that the client addressed, if it did.
    pub fn host(&self) -> Option<String> {
        match self {
            Self::Hbone(incoming) => headers::forwarded_host(&incoming.headers),
            Self::Mesh(incoming) => incoming.open.host.clone(),
        }
    }

    /// The address and port that it asks for, or what is wrong with it.
    pub fn destination(&self) -> Result<SocketAddr, BadTarget> {
        match self {
            Self::Mesh(incoming) => Ok(incoming.open.destination),
            Self::Hbone(incoming) => headers::target(&incoming.method, incoming.authority.as_deref()),
        }
    }

    /// How the access log calls it.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Hbone(_) => HBONE,
            Self::Mesh(_) => MESH,
        }
    }

    /// Accepts: from here on the stream carries the raw bytes. An HBONE peer is told of `workload`.
    /// An error if the stream is over by now.
    pub fn accept(self, workload: Option<&Workload>) -> Result<Stream, Gone> {
        match self {
            Self::Hbone(incoming) => Ok(Stream::Hbone(incoming.accept(answer_headers(workload))?)),
            Self::Mesh(incoming) => incoming.accept().map(Stream::Mesh).map_err(Gone::Mesh),
        }
    }

    /// Refuses. A peer that is gone does not hear it. (HBONE: docs/wire.md, Answers.)
    pub fn refuse(self, refusal: Refusal) {
        match self {
            Self::Hbone(incoming) => incoming.refuse(match refusal {
                Refusal::Denied => StatusCode::UNAUTHORIZED,
                Refusal::BadRequest => StatusCode::BAD_REQUEST,
                Refusal::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            }),
            Self::Mesh(incoming) => incoming.refuse(match refusal {
                Refusal::Denied => frame::Refusal::Denied,
                Refusal::BadRequest => frame::Refusal::BadRequest,
                Refusal::Unavailable => frame::Refusal::Unavailable,
            }),
        }
    }
}

fn answer_headers(workload: Option<&Workload>) -> HeaderMap {
    workload.map(headers::baggage).into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
