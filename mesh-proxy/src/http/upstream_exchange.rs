//! The endpoint's side of one request, whatever protocol it speaks.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};

use super::body_pump::{BodySink, BodySource, BodyUnframer};
use super::h1::{BodyDecoder, BodyFraming};
use super::h2::UpstreamStream;
use super::upstream_connection::{ServicePortSlot, UpstreamConnection};
use crate::authorized_connections::AuthorizedConnection;
use crate::stream::Stream;

/// Where a request goes, and its response comes from.
pub(super) enum UpstreamExchange {
    /// HTTP/1: a connection with one request at a time.
    Http1(Box<UpstreamConnection>),
    /// HTTP/2: one stream of a connection.
    Http2(Box<UpstreamStream>),
}

/// What carries the bytes of it.
pub(super) enum UpstreamIo<'a> {
    Http1(&'a mut Stream, &'a mut BytesMut),
    Http2(&'a mut SendStream<Bytes>, &'a mut Option<RecvStream>),
}

impl UpstreamIo<'_> {
    /// Returns where the body of the response comes from, once its head has come.
    pub fn source(&mut self) -> Option<BodySource<'_>> {
        match self {
            Self::Http1(io, input) => Some(BodySource::Http1(&mut **io, input)),
            Self::Http2(_, receive) => receive.as_mut().map(BodySource::Http2),
        }
    }

    /// Returns where the body of the request goes.
    pub fn sink(&mut self) -> BodySink<'_> {
        match self {
            Self::Http1(io, _) => BodySink::Http1(&mut **io),
            Self::Http2(send, _) => BodySink::Http2(send),
        }
    }
}

impl UpstreamExchange {
    /// Returns what takes the body of its response out of its framing.
    pub fn body_reader(&self, framing: BodyFraming) -> BodyUnframer {
        match self {
            Self::Http1(_) => BodyUnframer::Http1(BodyDecoder::new(framing)),
            Self::Http2(stream) => {
                // What comes behind a head that has no body is nobody's.
                let is_done = framing == BodyFraming::None
                    || stream.receive.as_ref().is_none_or(RecvStream::is_end_stream);
                BodyUnframer::Http2 { is_done }
            }
        }
    }

    /// Splits it into what carries bytes, and the policy's permit, if whoever moves bytes has to watch it.
    pub fn parts(&mut self) -> (UpstreamIo<'_>, Option<&AuthorizedConnection>) {
        match self {
            Self::Http1(connection) => {
                let (io, input, authorized) = connection.parts();
                (UpstreamIo::Http1(io, input), authorized)
            }
            Self::Http2(stream) => (UpstreamIo::Http2(&mut stream.send, &mut stream.receive), None),
        }
    }

    /// Counts a connection of HTTP/1 no longer, since another one takes its place. Returns its slot below the
    /// service's limit.
    pub fn take_slot(&mut self) -> Option<ServicePortSlot> {
        match self {
            Self::Http1(connection) => connection.take_slot(),
            Self::Http2(_) => None,
        }
    }

    /// Returns the transport as the access log names it, and the policy that allowed the connection.
    pub fn way(&self) -> (&'static str, Option<&Arc<str>>) {
        match self {
            Self::Http1(connection) => (connection.transport, connection.policy_that_allowed_it()),
            Self::Http2(stream) => (stream.counted.transport(), stream.counted.policy_that_allowed_it()),
        }
    }

    /// Ends it though the response has not come to its end: nobody waits for the rest.
    pub fn abandon(self) {
        match self {
            Self::Http1(connection) => connection.close_in_order(),
            Self::Http2(mut stream) => stream.cancel(),
        }
    }
}
