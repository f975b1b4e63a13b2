//! HTTP/1 within bounds.
//!
//! | what | its bound |
//! |---|---|
//! | connections, of all and of one [`Group`](crate::Group) | [`Limits::bounds`]; the oldest without a whole request goes first, then who is silent, then who is being answered |
//! | a request's head | [`Limits::head`], 16 KiB, 64 headers |
//! | its body | [`Limits::body`] |
//! | silence between two requests | [`Limits::idle`]; none is no second request |
//! | making an answer, and reading it | [`Limits::answer`] |
//! | answers that are not read | three of 16 KiB or more of each path: a fourth request gets the last of them again |
//! | the kernel's buffers of a TCP connection | 128 KiB in each direction |
//!
//! A connection ends after any answer but a success.

mod body;
mod copies;
pub mod guard;
mod order;
mod progress;
mod watched;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::Service as _;
use tracing::debug;

pub use self::order::{Said, order};

use self::body::Pieces;
use self::copies::Copies;
use self::progress::Progress;
use self::watched::Watched;
use crate::accept::{self, Accept};
use crate::{Bounds, Gate, Peer, Place};

/// Bytes of a head, and of what else is read ahead; the least that hyper takes is half of it.
const HEAD_BYTES: usize = 16 << 10;
/// Prometheus sends some five headers, a browser twenty.
const HEADERS: usize = 64;

/// What a listener gives to those who connect.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections.
    pub bounds: Bounds,
    /// How long a request's head may take, from when the connection was accepted or from the head's first
    /// byte.
    pub head: Duration,
    /// How long a connection may be silent between two requests; if none, it has one.
    pub idle: Option<Duration>,
    /// How long it may take from a whole head until the peer has taken the answer from us.
    pub answer: Duration,
    /// Bytes of a request's body.
    pub body: usize,
}

impl Default for Limits {
    /// 256 connections, 32 of one group; 5 s for a head, a minute of silence, 15 s for an answer, 4 KiB of a
    /// body.
    fn default() -> Self {
        Self {
            bounds: Bounds { total: 256, each: 32 },
            head: Duration::from_secs(5),
            // Longer than between two scrapes.
            idle: Some(Duration::from_mins(1)),
            answer: Duration::from_secs(15),
            body: 4 << 10,
        }
    }
}

/// Says why a request is not answered, if it is not: a sentence for the peer. Errors are answered 403.
pub type Guard = Box<dyn Fn(&Peer, &Parts) -> Result<(), String> + Send + Sync>;

/// What is served at a listener, to whom, and within which limits.
pub struct Site {
    routes: Router,
    guard: Guard,
    limits: Limits,
    gate: Gate,
    copies: Copies,
}

impl Site {
    /// These routes, to those whom `guard` lets in. A `GET` of a path must not depend on anything but the
    /// path: where answers are not read, one may be given twice.
    pub fn new(routes: Router, limits: Limits, guard: Guard) -> Arc<Self> {
        let gate = Gate::new(limits.bounds);
        Arc::new(Self { routes, guard, limits, gate, copies: Copies::default() })
    }

    /// Who is inside.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        if let Err(reason) = (self.guard)(peer, &parts) {
            debug!(?peer, path = parts.uri.path(), reason, "request refused");
            return text(StatusCode::FORBIDDEN, format!("{reason}\n"));
        }
        let path = (parts.method == Method::GET).then(|| parts.uri.path().to_owned());
        if let Some(last) = path.as_ref().and_then(|path| self.copies.last_of_too_many(path)) {
            return last;
        }
        let request = Request::from_parts(parts, Limited::new(body, self.limits.body));
        let Ok(response) = self.routes.clone().call(request).await;
        let (head, body) = response.into_parts();
        // The routes make their answers in memory, whole.
        let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made\n".to_owned());
        };
        let response = Response::from_parts(head, body);
        match path {
            Some(path) => self.copies.keep(path, response),
            None => response,
        }
    }
}

fn text(status: StatusCode, text: String) -> Response<Bytes> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Serves until `stop` is true or nobody can say so any more, and then until every request that was begun has
/// its answer.
pub async fn serve<L: Accept>(listener: L, site: Arc<Site>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    listener.bound_buffers();
    loop {
        tokio::select! {
            (stream, peer) = accept::next(&listener) => {
                if let Some(place) = site.gate.enter_peer(&peer) {
                    connections.spawn(connection(stream, peer, place, Arc::clone(&site), stop.clone()));
                }
                // Who lost his place is to go before the next one comes.
                tokio::task::yield_now().await;
            }
            Some(_ended) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns when everybody is to stop, or nobody can say so any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _either = stop.wait_for(|stop| *stop).await;
}

async fn connection<S>(stream: S, peer: Peer, place: Place, site: Arc<Site>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let progress = Arc::new(Progress::new(place, &site.limits));
    let stream = TokioIo::new(Watched::new(stream, Arc::clone(&progress)));
    let answering = Arc::clone(&progress);
    let keep_alive = site.limits.idle.is_some();
    let service = service_fn(move |request| {
        answering.head_complete();
        let (progress, site) = (Arc::clone(&answering), Arc::clone(&site));
        async move {
            let mut response = site.answer(&peer, request).await;
            if !response.status().is_success() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|bytes| Pieces::new(bytes, progress)))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // It would count silence between requests as well; `Progress` has a time for each.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(keep_alive)
        .serve_connection(stream, service);
    let mut serving = pin!(serving);
    let mut stopping = false;
    loop {
        tokio::select! {
            // An error is the peer's: it has been told already, or is gone.
            _over = serving.as_mut() => return,
            () = progress.evicted() => return,
            () = progress.overdue() => {
                debug!(?peer, "connection ended: too slow, or silent for too long");
                return;
            }
            () = stopped(&mut stop), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}
