//! With real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::routing::{get, put};
use tokio::net::{TcpListener, UnixListener};

use super::guard::{everybody, owner, readers_only};
use super::*;
use crate::apart;

/// More than anything here takes.
const SOON: Duration = Duration::from_secs(10);
const LARGE: usize = 8 << 20;

/// A server in a thread of its own. It ends when this is dropped.
struct Server {
    address: SocketAddr,
    made: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
}

fn routes(made: &Arc<AtomicUsize>) -> Router {
    let made = Arc::clone(made);
    let large = move || {
        made.fetch_add(1, Ordering::Relaxed);
        async { vec![b'x'; LARGE] }
    };
    Router::new()
        .route("/small", get(|| async { "small\n" }))
        .route("/echo", put(|text: String| async { text }))
        .route("/large", get(large))
}

fn server(limits: Limits, guard: Guard) -> Server {
    let made = Arc::new(AtomicUsize::new(0));
    let site = Site::new(routes(&made), limits, guard);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    apart("http", 0, move || Ok(serve(TcpListener::from_std(listener)?, site, stopping))).unwrap();
    Server { address, made, stop }
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Sends this on a connection of its own, and reads until it is closed.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        rest(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }
}

/// All that comes until the end; a reset is one.
fn rest(stream: &mut impl Read) -> String {
    let (mut text, mut part) = (Vec::new(), [0; 8192]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => text.extend(&part[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8(text).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn quick() -> Limits {
    let short = Duration::from_millis(300);
    Limits { head: short, idle: Some(short), answer: short, ..Limits::default() }
}

#[test]
fn answers_what_is_asked_and_ends_what_is_no_request() {
    let server = server(Limits::default(), everybody());
    assert!(server.get("/small").ends_with("\r\n\r\nsmall\n"));
    assert!(server.ask("GET /small HTTP/1.0\r\n\r\n").ends_with("small\n"), "an older client");
    let head = server.ask("HEAD /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {LARGE}")), "{head}");
    let (long, many) = ("a".repeat(70_000), "X: y\r\n".repeat(100));
    for (request, status) in [
        ("\r\nnonsense\r\n\r\n".to_owned(), "400"),
        ("GET /small HTTP/3.7\r\n\r\n".to_owned(), "400"),
        ("GET /small HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), "400"),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), "4"),
        (format!("GET /small HTTP/1.1\r\n{many}\r\n"), "431"),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("DELETE /small HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405"),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "40"),
        (format!("PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{}", "a".repeat(5000)), "413"),
    ] {
        let answer = server.ask(&request);
        // A client that is still writing may see no more of it than that it is closed.
        let said = answer.is_empty() && status == "4" || answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(said, "{:?}: {answer}", &request[..request.len().min(40)]);
    }
    assert_eq!(server.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "", "HTTP/2");
}

#[test]
fn requests_that_come_together_are_answered_one_by_one() {
    let server = server(Limits::default(), everybody());
    let one = "GET /small HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = server.ask(&format!("{}{last}", one.repeat(200)));
    assert_eq!(answers.matches("small\n").count(), 201);
}

#[test]
fn half_requests_take_no_place_of_others_and_are_ended() {
    let server = server(Limits { head: seconds(2), ..Limits::default() }, everybody());
    let half = || {
        let mut stream = server.connect();
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\nX: aaaa").unwrap();
        stream
    };
    // Of one address, since nothing else is to be had here: the newcomer takes the oldest one's place.
    let mut held: Vec<_> = (0..200).map(|_| half()).collect();
    for _ in 0..20 {
        assert!(server.get("/small").ends_with("small\n"));
        held.push(half());
    }
    let begun = Instant::now();
    for mut stream in held {
        assert_eq!(rest(&mut stream), "");
    }
    assert!(begun.elapsed() < seconds(5), "each has its two seconds");
}

#[test]
fn who_is_silent_or_slow_is_ended() {
    let server = server(quick(), everybody());
    let ended_in_time = |stream: &mut TcpStream| {
        let begun = Instant::now();
        rest(stream);
        assert!(begun.elapsed() < seconds(3));
    };
    ended_in_time(&mut server.connect());
    // A byte at a time is no head in time either.
    let mut slow = server.connect();
    let begun = Instant::now();
    while slow.write_all(b"G").is_ok() && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() < seconds(3));
    // Between two requests, before and after the second one's first bytes.
    for further in ["", "GET /sm"] {
        let mut stream = server.connect();
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut part = [0; 4096];
        assert!(stream.read(&mut part).unwrap() > 0);
        stream.write_all(further.as_bytes()).unwrap();
        ended_in_time(&mut stream);
    }
    // A body that does not come.
    let mut stream = server.connect();
    stream.write_all(b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab").unwrap();
    ended_in_time(&mut stream);
}

#[test]
fn who_does_not_read_is_ended_and_holds_a_copy_that_all_share() {
    let limits = Limits { answer: seconds(2), ..Limits::default() };
    let server = server(limits, everybody());
    let begun = Instant::now();
    let held: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // In their midst one who reads has all of it.
    assert!(server.get("/large").len() > LARGE);
    if begun.elapsed() < seconds(1) {
        assert!(server.made.load(Ordering::Relaxed) <= 3, "three copies, and those who come later share");
    }
    std::thread::sleep(seconds(3).saturating_sub(begun.elapsed()));
    for mut stream in held {
        assert!(rest(&mut stream).len() < LARGE, "the rest of it was never written");
    }
    let before = server.made.load(Ordering::Relaxed);
    server.get("/large");
    assert_eq!(server.made.load(Ordering::Relaxed), before + 1, "they are gone, and answers are fresh again");
}

#[test]
fn a_guard_says_who_and_why_not() {
    let guard: Guard = Box::new(|peer, parts| {
        assert!(peer.is_this_host());
        if parts.uri.path() == "/small" { Err("small is not for you".to_owned()) } else { Ok(()) }
    });
    let server = server(Limits::default(), guard);
    let answer = server.ask("GET /small HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("small is not for you\n"), "{answer}");
    let put = "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    assert!(server.ask(put).ends_with("abc"));
}

#[test]
fn who_may_read_changes_nothing_and_the_owner_comes_by_unix_socket() {
    let put = "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    let reading = server(Limits::default(), readers_only());
    assert!(reading.ask(put).starts_with("HTTP/1.1 403") && reading.get("/small").ends_with("small\n"));
    let owned = server(Limits::default(), owner());
    assert!(owned.ask(put).starts_with("HTTP/1.1 403") && owned.get("/small").starts_with("HTTP/1.1 403"));
    let head = Request::new(()).into_parts().0;
    let (own, stranger) = (rustix::process::geteuid().as_raw(), 12345);
    assert!(
        owner()(&Peer::User { uid: own }, &head).is_ok() && owner()(&Peer::User { uid: 0 }, &head).is_ok()
    );
    assert!(owner()(&Peer::User { uid: stranger }, &head).is_err());
}

#[test]
fn without_a_second_request_a_connection_ends_with_its_answer() {
    let server = server(Limits { idle: None, ..Limits::default() }, everybody());
    let begun = Instant::now();
    assert!(server.ask("GET /small HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("small\n"));
    assert!(begun.elapsed() < seconds(2));
}

#[test]
fn a_stop_ends_what_is_silent_and_finishes_what_is_not() {
    let server = server(Limits::default(), everybody());
    let mut reading = server.connect();
    reading.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut part = [0; 100];
    reading.read_exact(&mut part).unwrap();
    let mut silent = server.connect();
    silent.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    silent.read_exact(&mut part).unwrap();
    server.stop.send_replace(true);
    rest(&mut silent);
    assert!(rest(&mut reading).len() >= LARGE);
}

#[test]
fn a_unix_socket_names_its_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let site = Site::new(routes(&Arc::default()), Limits::default(), owner());
    let (_stop, stopping) = watch::channel(false);
    apart("http", 1, move || Ok(serve(UnixListener::from_std(listener)?, site, stopping))).unwrap();
    let said = |status, text: &str| Said { status, text: text.to_owned() };
    assert_eq!(order(&path, "GET", "/small", "").unwrap(), said(200, "small\n"));
    assert_eq!(order(&path, "PUT", "/echo", "what").unwrap(), said(200, "what"));
    assert!(!order(&path, "GET", "/nothing", "").unwrap().is_success());
}
