//! Serves a connection that is read as HTTP/1: its requests, one after the other.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use mesh_api::plan::Workload;
use tokio::net::TcpStream;

use super::client::Client;
use super::client_connection::{ClientConnection, NoHead};
use super::exchange::{HttpConnection, Next, exchange};
use super::h1::{Malformed, RequestHead};
use super::local_response::LocalResponse;
use crate::address_roles::{ClientAddress, OriginalDestination};
use crate::local_pod::LocalPod;
use crate::relay::reset_on_drop;
use crate::telemetry::{RequestFlag, RequestRecord};
use crate::worker::Worker;

/// Serves a connection of `pod` to `original` until either side is done with it.
pub async fn serve_http1(
    worker: Rc<Worker>,
    (pod, workload): (Arc<LocalPod>, Arc<Workload>),
    socket: TcpStream,
    (client, original): (ClientAddress, OriginalDestination),
) {
    // A response goes out as it comes. Where this fails it only comes later.
    let _late_at_worst = socket.set_nodelay(true);
    let mut connection = ClientConnection::new(socket, worker.receive_budget(&pod));
    let about = HttpConnection { worker, pod, workload, client, original };
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
        let next = Box::pin(exchange(&about, Client::Http1(connection), &mut head)).await;
        connection = match next {
            Next::Request(Client::Http1(mut connection)) => {
                head.release_memory();
                connection.release_memory();
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
    let (client, original): (SocketAddr, SocketAddr) = (about.client.address(), about.original.address());
    let mut record = RequestRecord::new(&about.worker.metrics, client, original);
    record.details.set_source_workload(&about.workload);
    record.end(status, Some(RequestFlag::ClientProtocolError), reason);
    LocalResponse::with_text(status, reason).send_and_close(&mut connection).await;
    connection.close_in_order().await;
}
