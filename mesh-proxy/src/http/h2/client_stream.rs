//! A request of a client that speaks HTTP/2, and its response: one stream.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;

use super::window_shares::StreamWindowShare;
use crate::http::client_connection::{DISCARD_TIME, MAX_DISCARDED};

/// A client's stream.
pub(in crate::http) struct ClientStream {
    pub receive: RecvStream,
    respond: SendResponse<Bytes>,
    /// Once the head of the response is sent.
    sending: Option<SendStream<Bytes>>,
    _share: Option<StreamWindowShare>,
}

impl ClientStream {
    pub(super) fn new(
        receive: RecvStream,
        respond: SendResponse<Bytes>,
        share: Option<StreamWindowShare>,
    ) -> Self {
        Self { receive, respond, sending: None, _share: share }
    }

    /// Sends the head of an interim response. Errors: the client is gone.
    pub fn send_interim(&mut self, response: Response<()>) -> io::Result<()> {
        self.respond.send_informational(response).map_err(io::Error::other)
    }

    /// Sends the head of the response. `is_end` is whether nothing follows it. Errors: the client is gone.
    pub fn send_head(&mut self, response: Response<()>, is_end: bool) -> io::Result<()> {
        self.sending = Some(self.respond.send_response(response, is_end).map_err(io::Error::other)?);
        Ok(())
    }

    /// Sends all of a body, as the client takes it. Errors: the client is gone.
    pub async fn send_body(&mut self, mut body: &[u8]) -> io::Result<()> {
        let Some(sending) = &mut self.sending else { return Err(io::ErrorKind::NotConnected.into()) };
        while !body.is_empty() {
            sending.reserve_capacity(body.len());
            let capacity = poll_fn(|context| sending.poll_capacity(context)).await;
            let most = capacity.ok_or(io::ErrorKind::BrokenPipe)?.map_err(io::Error::other)?;
            let (piece, rest) = body.split_at(most.min(body.len()));
            sending.send_data(Bytes::copy_from_slice(piece), rest.is_empty()).map_err(io::Error::other)?;
            body = rest;
        }
        Ok(())
    }

    /// Returns where the body of the response goes; none before its head is sent.
    pub fn sink(&mut self) -> Option<&mut SendStream<Bytes>> {
        self.sending.as_mut()
    }

    /// Returns once the client has reset the stream, or is gone.
    pub fn poll_stream_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let reset = match &mut self.sending {
            Some(sending) => sending.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        reset.map(|reset| match reset {
            Ok(reason) => io::Error::other(format!("the stream was reset: {reason}")),
            Err(error) => io::Error::other(error),
        })
    }

    /// Ends the stream after a whole response: what is left of the request is read and thrown away, so that
    /// the client reads the response, and after a while refused (RFC 9113, 8.1).
    pub async fn drain_request(mut self) {
        let discard = async {
            let mut discarded = 0;
            while let Some(Ok(data)) = self.receive.data().await {
                discarded += data.len();
                if discarded > MAX_DISCARDED
                    || self.receive.flow_control().release_capacity(data.len()).is_err()
                {
                    return;
                }
            }
        };
        let _ended_or_late = tokio::time::timeout(DISCARD_TIME, discard).await;
        if !self.receive.is_end_stream() {
            self.reset(Reason::NO_ERROR);
        }
    }

    /// Ends the stream before its response is whole.
    pub fn reset(&mut self, reason: Reason) {
        match &mut self.sending {
            Some(sending) => sending.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}
