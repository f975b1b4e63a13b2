//! Two ends of an HBONE connection over real sockets, each with a relay to an application.

use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::{Connection, OpenError, Server};
use crate::proxy::fixture::{configs, echo, run};
use crate::proxy::relay::{Meter, SocketIs, relay_hbone, reset_on_drop};
use crate::proxy::tls;

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Answer {
    Relay,
    Refuse(StatusCode),
}

/// An HBONE server in front of `application`, and a connection to it.
async fn pair(application: std::net::SocketAddr, answer: Answer) -> Connection {
    let (client, server) = configs();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let server = Server::start(tls::accept(tcp, server).await.unwrap()).await.unwrap();
        let _end = server
            .serve(std::future::pending(), move |request| async move {
                match answer {
                    Answer::Refuse(status) => request.refuse(status),
                    Answer::Relay => {
                        let socket = TcpStream::connect(application).await.unwrap();
                        let mut tunnel = request.accept(http::HeaderMap::new()).unwrap();
                        let _end =
                            relay_hbone(socket, &mut tunnel, SocketIs::Server, &Meter::default()).await;
                    }
                }
            })
            .await;
    });
    let tcp = TcpStream::connect(address).await.unwrap();
    Connection::start(tls::connect(tcp, client).await.unwrap(), || {}).await.unwrap()
}

fn request() -> http::Request<()> {
    http::Request::builder().method("CONNECT").uri("10.0.0.1:80").body(()).unwrap()
}

/// A client application's socket whose bytes go through `connection`.
async fn through(connection: &Connection) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let connection = connection.clone();
    spawn_local(async move {
        let mut tunnel = connection.open(request()).await.unwrap();
        let _end = relay_hbone(accepted, &mut tunnel, SocketIs::Client, &Meter::default()).await;
    });
    application
}

#[test]
fn half_close_reaches_the_server_and_its_answer_the_client() {
    run(async {
        let connection = pair(echo().await, Answer::Relay).await;
        let mut application = through(&connection).await;
        application.write_all(b"hello").await.unwrap();
        application.shutdown().await.unwrap();
        let mut answer = String::new();
        application.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello<done>");
    });
}

#[test]
fn many_megabytes_arrive_unchanged_both_ways_beside_small_ones() {
    const SIZE: usize = 64 * 1024 * 1024;
    #[allow(clippy::cast_possible_truncation)]
    let byte = |index: usize| (index * 7 + index / 251) as u8;
    run(async {
        let connection = pair(echo().await, Answer::Relay).await;
        let (mut from, mut to) = through(&connection).await.into_split();
        let mut small = through(&connection).await;
        let pattern: Vec<u8> = (0..SIZE).map(byte).collect();
        let sent = pattern.clone();
        spawn_local(async move {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        });
        let mut back = Vec::with_capacity(SIZE + 6);
        from.read_to_end(&mut back).await.unwrap();
        assert!(back[..SIZE] == pattern[..] && &back[SIZE..] == b"<done>");
        for _ in 0..100 {
            small.write_all(b"x").await.unwrap();
            assert_eq!(small.read_u8().await.unwrap(), b'x');
        }
    });
}

#[test]
fn a_reset_of_either_application_reaches_the_other() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = pair(listener.local_addr().unwrap(), Answer::Relay).await;
        for client_resets in [true, false] {
            let mut client = through(&connection).await;
            client.write_all(b"x").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.read_u8().await.unwrap();
            let (resets, mut waits) = if client_resets { (client, server) } else { (server, client) };
            reset_on_drop(&resets);
            drop(resets);
            let error = waits.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "client resets: {client_resets}");
        }
    });
}

#[test]
fn a_reader_that_stops_holds_up_its_writer_and_nobody_else() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = pair(listener.local_addr().unwrap(), Answer::Relay).await;
        let mut writer = through(&connection).await;
        writer.write_all(b"x").await.unwrap();
        let (stopped, _) = listener.accept().await.unwrap();
        let chunk = vec![0; 1 << 20];
        let mut taken = 0;
        while let Ok(Ok(written)) =
            tokio::time::timeout(Duration::from_millis(500), writer.write(&chunk)).await
        {
            taken += written;
            assert!(taken < 64 << 20, "the writer was never held up");
        }
        let mut other = through(&connection).await;
        other.write_all(b"y").await.unwrap();
        let (mut lively, _) = listener.accept().await.unwrap();
        assert_eq!(lively.read_u8().await.unwrap(), b'y');
        drop(stopped);
    });
}

#[test]
fn refusals_are_told_apart() {
    run(async {
        for (status, denied) in [(StatusCode::UNAUTHORIZED, true), (StatusCode::SERVICE_UNAVAILABLE, false)] {
            let connection = pair("127.0.0.1:1".parse().unwrap(), Answer::Refuse(status)).await;
            match connection.open(request()).await.map(drop).unwrap_err() {
                OpenError::Denied => assert!(denied),
                OpenError::Unavailable => assert!(!denied),
                other => panic!("{other}"),
            }
        }
    });
}
