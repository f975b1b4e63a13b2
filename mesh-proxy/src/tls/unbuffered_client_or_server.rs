//! The two sides of rustls' unbuffered interface under one name.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{EncodeError, EncodeTlsData, UnbufferedStatus};

/// A TLS state machine without buffers.
pub trait UnbufferedConnection: Unpin + 'static {
    /// rustls' data of this side.
    type Side;

    /// Processes received records; see [`rustls::unbuffered`].
    fn process_records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;

    /// Returns the peer's certificates, leaf first, once it has sent them.
    fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]>;

    /// Returns the protocol that both sides chose (RFC 7301), if they did.
    fn alpn_protocol(&self) -> Option<&[u8]>;
}

impl UnbufferedConnection for UnbufferedClientConnection {
    type Side = ClientConnectionData;

    fn process_records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        (**self).peer_certificates()
    }

    fn alpn_protocol(&self) -> Option<&[u8]> {
        (**self).alpn_protocol()
    }
}

impl UnbufferedConnection for UnbufferedServerConnection {
    type Side = ServerConnectionData;

    fn process_records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        (**self).peer_certificates()
    }

    fn alpn_protocol(&self) -> Option<&[u8]> {
        (**self).alpn_protocol()
    }
}

/// Appends a handshake record to `outgoing`.
pub(super) fn append_handshake_record<S>(mut encode: EncodeTlsData<'_, S>, outgoing: &mut Vec<u8>) {
    let at = outgoing.len();
    outgoing.resize(at + 1024, 0);
    let mut answer = encode.encode(&mut outgoing[at..]);
    if let Err(EncodeError::InsufficientSize(needed)) = answer {
        outgoing.resize(at + needed.required_size, 0);
        answer = encode.encode(&mut outgoing[at..]);
    }
    outgoing.truncate(at + answer.unwrap_or(0));
}
