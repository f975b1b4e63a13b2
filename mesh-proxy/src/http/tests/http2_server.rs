//! A server that speaks HTTP/2.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// What the server does with requests from now on.
#[derive(Clone, Debug, Default)]
pub enum Http2Answer {
    /// It says what it got, with trailers.
    #[default]
    Describe,
    /// It sends no response.
    Silence,
    /// It resets the stream.
    Reset(Reason),
    /// It answers with a head alone, with an outcome of gRPC.
    Outcome(&'static str),
    /// It sends bytes behind a status that has no body.
    NoContentAndBytes(&'static str),
    /// It sends no content, says so, and an outcome of gRPC behind it.
    EmptyAndOutcome(&'static str),
    /// It sends this many bytes, and then resets the stream.
    BreakAfter(usize),
}

/// What a server does, and what it has seen.
#[derive(Default)]
pub struct Http2Server {
    pub answer: RefCell<Http2Answer>,
    /// How often that answer is given before it describes again.
    pub times: Cell<Option<usize>>,
    pub requests: RefCell<Vec<Request<()>>>,
    /// Whether the client has reset a stream that had no response.
    pub was_cancelled: std::rc::Rc<Cell<bool>>,
}

impl Http2Server {
    /// Gives this answer from now on.
    pub fn answer(&self, answer: Http2Answer) {
        *self.answer.borrow_mut() = answer;
        self.times.set(None);
    }

    /// Gives this answer so often.
    pub fn answer_times(&self, answer: Http2Answer, times: usize) {
        *self.answer.borrow_mut() = answer;
        self.times.set(Some(times));
    }

    fn next_answer(&self) -> Http2Answer {
        match self.times.get() {
            Some(0) => Http2Answer::Describe,
            Some(left) => {
                self.times.set(Some(left - 1));
                self.answer.borrow().clone()
            }
            None => self.answer.borrow().clone(),
        }
    }
}

/// Whether a connection begins as one of HTTP/2.
pub async fn is_http2(socket: &TcpStream) -> bool {
    let mut bytes = [0; 3];
    while socket.peek(&mut bytes).await.is_ok_and(|read| (1..3).contains(&read)) {
        tokio::task::yield_now().await;
    }
    &bytes == b"PRI"
}

/// Serves a connection, as the server of that name.
pub async fn serve_http2_as(name: &'static str, socket: TcpStream, server: &Http2Server) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (parts, body) = request.into_parts();
        server.requests.borrow_mut().push(Request::from_parts(parts.clone(), ()));
        let answer = server.next_answer();
        match answer {
            Http2Answer::Describe => {
                let first = format!("{} {}", parts.method, parts.uri.path_and_query().unwrap());
                spawn_local(describe(name, first, body, respond));
            }
            Http2Answer::Silence => {
                let (mut respond, cancelled) = (respond, std::rc::Rc::clone(&server.was_cancelled));
                spawn_local(async move {
                    let _reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                    cancelled.set(true);
                });
            }
            Http2Answer::Reset(reason) => {
                let mut respond = respond;
                respond.send_reset(reason);
            }
            Http2Answer::Outcome(outcome) => {
                let mut respond = respond;
                let response = Response::builder().header("grpc-status", outcome);
                let response = response.header("content-type", "application/grpc").body(()).unwrap();
                let _gone = respond.send_response(response, true);
            }
            Http2Answer::NoContentAndBytes(bytes) => {
                let mut respond = respond;
                let response = Response::builder().status(204).body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                send.send_data(Bytes::from(bytes), true).unwrap();
            }
            Http2Answer::EmptyAndOutcome(outcome) => {
                let mut respond = respond;
                let response = Response::builder().header("content-length", "0").body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", outcome.parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
            Http2Answer::BreakAfter(bytes) => {
                let mut respond = respond;
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from(vec![b'x'; bytes]), false).unwrap();
                spawn_local(async move {
                    tokio::task::yield_now().await;
                    send.send_reset(Reason::INTERNAL_ERROR);
                });
            }
        }
    }
}

async fn describe(name: &'static str, first: String, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
    let mut read = 0;
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        read += data.len();
        let _more = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.ok().flatten();
    let sum = trailers.as_ref().and_then(|trailers| trailers.get("x-sum")).cloned();
    let text = format!("{name}: {first} body={read} sum={sum:?};");
    let response = Response::builder().header("x-server", name).body(()).unwrap();
    let Ok(mut send) = respond.send_response(response, false) else { return };
    let _gone = send.send_data(Bytes::from(text), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _gone = send.send_trailers(trailers);
}
