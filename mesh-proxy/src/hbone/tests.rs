//! Two ends of an HBONE connection over real sockets, each with a relay to an application.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::batched_tls::BatchedTls;
use super::{Connection, OpenError, ServerConnection, Stream};
use crate::fixture::{self, RelayUnderTest, run_as_worker, test_tls_configs};
use crate::relay::{self, ByteMeter, SocketSide, relay_hbone};
use crate::tls;

/// What the server does with a stream that is asked for.
#[derive(Clone, Copy)]
enum Answer {
    Relay,
    /// Takes the stream and sends back what comes, with no socket.
    Echo,
    Refuse(StatusCode),
}

/// An HBONE server in front of `application`, and a connection to it.
async fn pair(application: std::net::SocketAddr, answer: Answer) -> Connection {
    let tcp = TcpStream::connect(serve(application, answer).await).await.unwrap();
    Connection::start(tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap(), || {})
        .await
        .unwrap()
}

/// An HBONE server that takes one connection; where it listens.
async fn serve(application: std::net::SocketAddr, answer: Answer) -> std::net::SocketAddr {
    let (_, server) = test_tls_configs();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let server =
            ServerConnection::start(tls::server_handshake(tcp, server).await.unwrap()).await.unwrap();
        let _end = server
            .serve(std::future::pending(), move |incoming| async move {
                match answer {
                    Answer::Refuse(status) => incoming.refuse(status),
                    Answer::Echo => {
                        echo(incoming.into_accepted_stream(http::HeaderMap::new()).unwrap()).await;
                    }
                    Answer::Relay => {
                        let socket = TcpStream::connect(application).await.unwrap();
                        let mut stream = incoming.into_accepted_stream(http::HeaderMap::new()).unwrap();
                        let _end =
                            relay_hbone(socket, &mut stream, SocketSide::Server, &ByteMeter::default()).await;
                    }
                }
            })
            .await;
    });
    address
}

async fn echo(mut stream: Stream) {
    while let Some(Ok(bytes)) = stream.receive.data().await {
        let _enough = stream.receive.flow_control().release_capacity(bytes.len());
        let _gone = stream.send.send_data(bytes, false);
    }
}

fn request() -> http::Request<()> {
    http::Request::builder().method("CONNECT").uri("10.0.0.1:80").body(()).unwrap()
}

struct Hbone;

impl RelayUnderTest for Hbone {
    type Connection = Connection;

    async fn pair(application: std::net::SocketAddr) -> Connection {
        pair(application, Answer::Relay).await
    }

    async fn carry(connection: Connection, socket: TcpStream, meter: ByteMeter) -> Result<(), relay::Error> {
        let mut stream = connection.open_stream(request()).await.unwrap();
        relay_hbone(socket, &mut stream, SocketSide::Client, &meter).await
    }
}

#[test]
fn half_close_reaches_the_server_and_its_answer_the_client() {
    fixture::half_close_reaches_the_server_and_its_answer_the_client::<Hbone>();
}

#[test]
fn many_megabytes_arrive_unchanged_both_ways_beside_small_ones() {
    fixture::many_megabytes_arrive_unchanged_both_ways_beside_small_ones::<Hbone>();
}

#[test]
fn a_reset_of_either_application_reaches_the_other() {
    fixture::a_reset_of_either_application_reaches_the_other::<Hbone>();
}

#[test]
fn a_reader_that_stops_holds_up_its_writer_and_nobody_else() {
    fixture::a_reader_that_stops_holds_up_its_writer_and_nobody_else::<Hbone>();
}

#[test]
fn refusals_are_told_apart() {
    run_as_worker(async {
        for (status, denied) in [(StatusCode::UNAUTHORIZED, true), (StatusCode::SERVICE_UNAVAILABLE, false)] {
            let connection = pair("127.0.0.1:1".parse().unwrap(), Answer::Refuse(status)).await;
            match connection.open_stream(request()).await.map(drop).unwrap_err() {
                OpenError::Denied => assert!(denied),
                OpenError::Unavailable => assert!(!denied),
                other => panic!("{other}"),
            }
        }
    });
}

/// A peer that opens `count` streams before it has read anything of the server's, as ztunnel does.
async fn hasty_peer(count: usize) -> (SendRequest<Bytes>, Vec<(ResponseFuture, SendStream<Bytes>)>) {
    let tcp = TcpStream::connect(serve("127.0.0.1:1".parse().unwrap(), Answer::Echo).await).await.unwrap();
    let tls =
        BatchedTls::new(tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap());
    let handshake = h2::client::Builder::new().initial_max_send_streams(count).handshake(tls.clone());
    let (mut requests, mut connection) = handshake.await.unwrap();
    let streams = (0..count).map(|_| requests.send_request(request(), false).unwrap()).collect();
    // Only from here on is anything sent or received.
    spawn_local(async move {
        poll_fn(|context| tls.poll_then_send(context, |context| Pin::new(&mut connection).poll(context)))
            .await
    });
    (requests, streams)
}

async fn says_and_hears(send: &mut SendStream<Bytes>, receive: &mut RecvStream) {
    send.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(receive.data().await.unwrap().unwrap(), "x");
}

#[test]
fn a_peer_that_opens_a_hundred_streams_before_it_knows_how_many_it_may_is_served() {
    run_as_worker(async {
        let mut held = Vec::new();
        for _ in 0..3 {
            let (requests, streams) = hasty_peer(100).await;
            for (response, mut send) in streams {
                let mut receive = response.await.unwrap().into_body();
                says_and_hears(&mut send, &mut receive).await;
                held.push((send, receive, requests.clone()));
            }
            assert_eq!(requests.current_max_send_streams(), 200, "as Istio announces");
        }
        assert_eq!(held.len(), 300);
        for (send, receive, _) in &mut held {
            says_and_hears(send, receive).await;
        }
    });
}

#[test]
fn a_connection_whose_time_is_over_ends_in_order() {
    fixture::a_connection_whose_time_is_over_ends_in_order::<Hbone>();
}

#[test]
fn a_server_that_sends_beyond_the_max_duration_is_reset() {
    fixture::a_server_that_sends_beyond_the_max_duration_is_reset::<Hbone>();
}
