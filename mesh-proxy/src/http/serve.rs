//! Serves a connection that is read as HTTP; of HTTP/1, its requests one after the other.

use std::rc::Rc;

use http::StatusCode;
use tokio::net::TcpStream;

use super::answer_request::{Next, answer_request};
use super::client_connection::{ClientConnection, NoHead};
use super::detect::ClientProtocol;
use super::downstream_client::Client;
use super::h1::{Malformed, RequestHead};
use super::h2::serve_http2;
use super::http_connection_context::HttpConnection;
use super::local_response::LocalResponse;
use crate::relay::reset_on_drop;

/// Serves a connection in the protocol that its client speaks, until either side is done with it.
pub async fn serve_http(protocol: ClientProtocol, connection: HttpConnection, socket: TcpStream) {
    // A response goes out as it comes. Where this fails it only comes later.
    let _late_at_worst = socket.set_nodelay(true);
    match protocol {
        ClientProtocol::Http1 => Box::pin(serve_http1(connection, socket)).await,
        ClientProtocol::Http2 => Box::pin(serve_http2(connection, socket)).await,
    }
}

async fn serve_http1(about: HttpConnection, socket: TcpStream) {
    let mut connection = ClientConnection::new(socket, about.worker.receive_budget(&about.pod));
    let mut head = RequestHead::default();
    let draining = Rc::clone(&about.worker.draining);
    loop {
        let is_there = tokio::select! {
            biased;
            is_there = connection.wait_for_request() => is_there,
            () = draining.wait_for_drain() => false,
        };
        if !is_there {
            return connection.close_in_order().await;
        }
        let bytes = match connection.read_head().await {
            Ok(bytes) => bytes,
            Err(NoHead::NoMoreBytes) => return,
            Err(NoHead::Timeout) => {
                return refuse(&about, connection, StatusCode::REQUEST_TIMEOUT, "no head came in time").await;
            }
            Err(NoHead::Malformed(malformed)) => {
                return refuse_malformed(&about, connection, malformed).await;
            }
        };
        if let Err(malformed) = head.parse(&bytes) {
            return refuse_malformed(&about, connection, malformed).await;
        }
        drop(bytes);
        // Boxed, since an idle connection needs none of it.
        let next = Box::pin(answer_request(&about, Client::Http1(connection), &mut head)).await;
        connection = match next {
            Next::Request(Client::Http1(mut connection)) => {
                head.release_memory();
                connection.release_large_head();
                connection
            }
            Next::Close(Client::Http1(connection)) => return connection.close_in_order().await,
            Next::Reset(Client::Http1(connection)) => return reset_on_drop(&connection.socket),
            // What comes back is the client that was given away, or nothing.
            Next::Request(_) | Next::Close(_) | Next::Reset(_) | Next::Closed => return,
        };
    }
}

async fn refuse_malformed(about: &HttpConnection, connection: ClientConnection, malformed: Malformed) {
    refuse(about, connection, malformed.status(), &malformed.to_string()).await;
}

/// Answers what is no request, and closes the connection: where the next one would begin is not known.
async fn refuse(about: &HttpConnection, mut connection: ClientConnection, status: StatusCode, reason: &str) {
    about.record_malformed(status, reason);
    LocalResponse::with_text(status, reason).send_announcing_close(&mut connection).await;
    connection.close_in_order().await;
}
