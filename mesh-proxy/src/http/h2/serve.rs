//! Serves a connection that is read as HTTP/2: its requests, each in a task of its own.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use mesh_calm::{Guarded, Role};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client_stream::ClientStream;
use super::window_shares::{StreamWindowShare, WindowShares};
use super::{DATA_OVERHEAD, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::http::READ_SIZE;
use crate::http::answer_request::{Next, answer_request};
use crate::http::client_connection::LargeHeadReservation;
use crate::http::downstream_client::Client;
use crate::http::h1::{Malformed, RequestHead};
use crate::http::http_connection_context::HttpConnection;
use crate::http::local_response::LocalResponse;

/// Time for the preface and the client's settings.
const PREFACE_TIME: Duration = Duration::from_secs(10);
/// Time for a client to close a connection without streams once it was told to.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// Most requests of a connection that are worked on, also after the client has reset their streams.
const MAX_TASKS: usize = 2 * MAX_STREAMS as usize;
/// Time without a request after which a connection is closed (Envoy's default).
const IDLE_TIME: Duration = Duration::from_hours(1);

/// Serves a connection until either side is done with it.
pub async fn serve_http2(connection: HttpConnection, socket: TcpStream) {
    let about = Rc::new(connection);
    let client = about.client;
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .data_frame_budget(DATA_OVERHEAD)
        .handshake::<_, Bytes>(Guarded::new(socket, Role::Server));
    let mut connection = match tokio::time::timeout(PREFACE_TIME, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%client, %error, "no HTTP/2 from a client"),
        Err(_) => return tracing::debug!(%client, "no HTTP/2 settings from a client in time"),
    };
    let draining = Rc::clone(&about.worker.draining);
    let mut drain = std::pin::pin!(draining.wait_for_drain());
    let mut is_told = false;
    let shares = WindowShares::new(about.worker.receive_budget(&about.pod));
    // They end with the connection.
    let mut tasks = JoinSet::new();
    loop {
        let patience = if is_told { CLOSE_TIME } else { IDLE_TIME };
        let next = poll_fn(|context| {
            if !is_told && drain.as_mut().poll(context).is_ready() {
                is_told = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(context)
        });
        match tokio::time::timeout(patience, next).await {
            Ok(Some(Ok((request, mut respond)))) => {
                while tasks.try_join_next().is_some() {}
                if tasks.len() >= MAX_TASKS {
                    // The client may try again (RFC 9113, 8.7).
                    respond.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                let stream = (request, respond, shares.try_take());
                tasks.spawn_local(serve_request(Rc::clone(&about), stream));
                connection.set_target_window_size(shares.connection_window());
            }
            Ok(Some(Err(error))) => return tracing::debug!(%client, %error, "HTTP/2 connection broke"),
            Ok(None) => return,
            Err(_) if connection.has_streams() => {}
            Err(_) if is_told => return,
            Err(_) => {
                is_told = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Answers a request.
async fn serve_request(
    about: Rc<HttpConnection>,
    (request, respond, share): (Request<RecvStream>, SendResponse<Bytes>, Option<StreamWindowShare>),
) {
    let (parts, receive) = request.into_parts();
    let parsed = RequestHead::from_http2(&parts, receive.is_end_stream());
    drop(parts);
    let client = Client::Http2(Box::new(ClientStream::new(receive, respond, share)));
    let mut head = match parsed {
        Ok(head) => head,
        Err(malformed) => return refuse(&about, client, malformed).await,
    };
    let is_large = head.fields.size() > READ_SIZE;
    let large_head =
        is_large.then(|| LargeHeadReservation::try_take(&about.worker.receive_budget(&about.pod)));
    if matches!(large_head, Some(None)) {
        return refuse(&about, client, Malformed::TooLarge).await;
    }
    let next = Box::pin(answer_request(&about, client, &mut head)).await;
    drop(large_head);
    end(next).await;
}

/// Ends the stream of a request.
async fn end(next: Next) {
    match next {
        Next::Reset(Client::Http2(mut stream)) => stream.reset(Reason::INTERNAL_ERROR),
        Next::Close(Client::Http2(stream)) if !stream.receive.is_end_stream() => stream.drain_request().await,
        Next::Request(_) | Next::Close(_) | Next::Reset(_) | Next::Closed => {}
    }
}

/// Answers what is no request.
async fn refuse(about: &HttpConnection, mut client: Client, malformed: Malformed) {
    let (status, reason) = (malformed.status(), malformed.to_string());
    about.record_malformed(status, &reason);
    LocalResponse::with_text(status, &reason).send(&mut client, &RequestHead::default(), false).await;
    end(Next::Close(client)).await;
}
