//! Streams over mutual TLS, opened and accepted in either framing, which ALPN has chosen: the mesh's own
//! protocol ([`crate::mux`]) or HBONE ([`crate::hbone`]).

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::StatusCode;
use http::header::HeaderMap;
use mesh_api::plan::Workload;
use rustls::client::UnbufferedClientConnection;

use super::hbone::headers::InvalidConnectTarget;
use super::hbone::{self, headers};
pub use super::mux::EarlyData;
use super::mux::{self, PodReceiveBudget, frame};
use super::stream::{HBONE_TRANSPORT, MESH_TRANSPORT, Stream};
use super::tls::TlsStream;

/// Which framings connections between nodes may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedFraming {
    /// The mesh's own where the peer has it, HBONE otherwise.
    #[default]
    Auto,
    /// HBONE always.
    Hbone,
}

/// A connection to another node's pod, on which streams can be opened.
#[derive(Clone)]
pub enum Tunnel {
    /// HTTP/2.
    Hbone(hbone::Connection),
    /// The mesh's own protocol.
    Mesh(mux::Connection),
}

/// A stream that a peer asks for, neither accepted nor refused yet.
pub enum IncomingStream {
    /// An HTTP/2 CONNECT request.
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

/// Why a stream can no longer be accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Over HBONE.
    #[error(transparent)]
    Hbone(#[from] h2::Error),
    /// Over the mesh's own protocol.
    #[error("{0}")]
    Mesh(mux::StreamError),
}

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy denies it.
    Denied,
    /// It asks for an address or port that must not be asked for here.
    BadRequest,
    /// The application can't be reached now.
    Unavailable,
}

impl OpenError {
    /// Whether the destination's policy denied it.
    pub fn is_denied_by_policy(&self) -> bool {
        matches!(self, Self::Hbone(hbone::OpenError::Denied) | Self::Mesh(mux::OpenError::Denied))
    }

    /// Whether the destination could not reach its application.
    pub fn is_application_unreachable(&self) -> bool {
        matches!(self, Self::Hbone(hbone::OpenError::Unavailable) | Self::Mesh(mux::OpenError::Unavailable))
    }

    /// Returns the transport as the access log names it.
    pub fn transport_name(&self) -> &'static str {
        match self {
            Self::Hbone(_) => HBONE_TRANSPORT,
            Self::Mesh(_) => MESH_TRANSPORT,
        }
    }

    /// Whether the connection is to blame and not the destination: a new connection may do.
    pub fn is_connection_failure(&self) -> bool {
        matches!(
            self,
            Self::Hbone(hbone::OpenError::Connection(_)) | Self::Mesh(mux::OpenError::Connection(_))
        )
    }
}

/// What a stream is opened with.
pub struct StreamRequest<'a> {
    /// The client's address and port, which the server gets to see.
    pub client: SocketAddr,
    /// The workload's address and port.
    pub destination: SocketAddr,
    /// Host name of the service that the client addressed, if it did.
    pub service: Option<&'a str>,
    /// The client's workload, which an HBONE peer is told.
    pub workload: Option<&'a Workload>,
    /// Bytes that the client has sent already, which are sent along where the protocol allows it.
    pub early: EarlyData<'a>,
    /// Set when the server may have got some of those bytes: then no other server may get them.
    pub exposed: &'a Cell<bool>,
}

impl Tunnel {
    /// Starts the protocol that ALPN has chosen and a task that drives it; `ended` runs when the connection
    /// is over. Memory of streams counts against `budget`. Errors: the peer does not speak the protocol.
    pub async fn start(
        tls: TlsStream<UnbufferedClientConnection>,
        budget: &Rc<PodReceiveBudget>,
        ended: impl FnOnce() + 'static,
    ) -> Result<Self, OpenError> {
        if tls.alpn_protocol() == Some(mux::ALPN) {
            return Ok(Self::Mesh(mux::Connection::start(tls, budget, ended)));
        }
        Ok(Self::Hbone(hbone::Connection::start(tls, ended).await?))
    }

    /// Opens a stream. Errors: the connection is over or full, or the peer refuses.
    pub async fn open_stream(&self, opening: &StreamRequest<'_>) -> Result<Stream, OpenError> {
        let StreamRequest { client, destination, service, workload, early, exposed } = *opening;
        match self {
            Self::Hbone(connection) => {
                let request = headers::connect_request(client, destination, service, workload);
                let request = request.map_err(hbone::OpenError::from)?;
                Ok(Stream::Hbone(connection.clone().open_stream(request).await?))
            }
            Self::Mesh(connection) => {
                let open = mux::traced_open_frame(client, destination, service);
                Ok(Stream::Mesh(connection.open_stream(open, early, exposed).await?))
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

    /// Returns the number of open streams.
    pub fn stream_count(&self) -> usize {
        match self {
            Self::Hbone(connection) => connection.stream_count(),
            Self::Mesh(connection) => connection.stream_count(),
        }
    }
}

impl IncomingStream {
    /// Returns the client's address and port, as the peer says; none if it says none.
    pub fn client_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Hbone(incoming) => headers::parse_forwarded_client(&incoming.headers),
            Self::Mesh(incoming) => Some(incoming.open.source),
        }
    }

    /// Returns the host name of the service that the client addressed, if it did.
    pub fn service_host(&self) -> Option<String> {
        match self {
            Self::Hbone(incoming) => headers::parse_forwarded_host(&incoming.headers),
            Self::Mesh(incoming) => incoming.open.host.clone(),
        }
    }

    /// Returns the address and port that the peer asks for. Errors: the request has none that can be used.
    pub fn destination(&self) -> Result<SocketAddr, InvalidConnectTarget> {
        match self {
            Self::Mesh(incoming) => Ok(incoming.open.destination),
            Self::Hbone(incoming) => {
                headers::parse_connect_target(&incoming.method, incoming.authority.as_deref())
            }
        }
    }

    /// Returns the transport as the access log names it.
    pub fn transport_name(&self) -> &'static str {
        match self {
            Self::Hbone(_) => HBONE_TRANSPORT,
            Self::Mesh(_) => MESH_TRANSPORT,
        }
    }

    /// Accepts the stream: from here on it carries raw bytes. An HBONE peer is told of `workload`. Errors:
    /// the stream is over already.
    pub fn into_accepted_stream(self, workload: Option<&Workload>) -> Result<Stream, AcceptError> {
        match self {
            Self::Hbone(incoming) => {
                Ok(Stream::Hbone(incoming.into_accepted_stream(answer_headers(workload))?))
            }
            Self::Mesh(incoming) => {
                incoming.into_accepted_stream().map(Stream::Mesh).map_err(AcceptError::Mesh)
            }
        }
    }

    /// Refuses the stream. A peer that is gone does not get it. (HBONE: docs/wire.md, Answers.)
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
    workload
        .map(headers::baggage_header)
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}
