//! What is read and written is what a relay would have carried, in either framing.

use std::cell::Cell;
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::Stream;
use crate::fixture::{self, RelayUnderTest, run_as_worker, spawn_echo_server, test_tls_configs};
use crate::hbone;
use crate::mux::{self, EarlyData, PodReceiveBudget};
use crate::relay::{self, ByteMeter, reset_on_drop};
use crate::tls;

/// Both ends of a stream of the mesh's own protocol read and write.
struct Mesh;

impl RelayUnderTest for Mesh {
    type Connection = mux::Connection;

    async fn pair(application: SocketAddr) -> mux::Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = tls::server_handshake(tcp, test_tls_configs().1).await.unwrap();
            let serve = |incoming: mux::IncomingStream| async move {
                let socket = TcpStream::connect(application).await.unwrap();
                copy(socket, Stream::Mesh(incoming.into_accepted_stream().unwrap())).await;
            };
            let _end = mux::ServerConnection::new(tls, &budget()).serve(pending(), serve, || {}).await;
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        mux::Connection::start(
            tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap(),
            &budget(),
            || {},
        )
    }

    async fn carry(connection: mux::Connection, socket: TcpStream, _: ByteMeter) -> Result<(), relay::Error> {
        copy(socket, Stream::Mesh(open(&connection, EarlyData::None).await)).await;
        Ok(())
    }
}

/// Both ends of an HBONE stream read and write.
struct Hbone;

impl RelayUnderTest for Hbone {
    type Connection = hbone::Connection;

    async fn pair(application: SocketAddr) -> hbone::Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = tls::server_handshake(tcp, test_tls_configs().1).await.unwrap();
            let serve = |incoming: hbone::IncomingStream| async move {
                let socket = TcpStream::connect(application).await.unwrap();
                copy(socket, Stream::Hbone(incoming.into_accepted_stream(http::HeaderMap::new()).unwrap()))
                    .await;
            };
            let _end = hbone::ServerConnection::start(tls).await.unwrap().serve(pending(), serve).await;
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        hbone::Connection::start(
            tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap(),
            || {},
        )
        .await
        .unwrap()
    }

    async fn carry(
        connection: hbone::Connection,
        socket: TcpStream,
        _: ByteMeter,
    ) -> Result<(), relay::Error> {
        let request = http::Request::builder().method("CONNECT").uri("10.0.0.1:80").body(()).unwrap();
        copy(socket, Stream::Hbone(connection.open_stream(request).await.unwrap())).await;
        Ok(())
    }
}

fn budget() -> Rc<PodReceiveBudget> {
    PodReceiveBudget::new(usize::MAX / 2, None)
}

async fn open(connection: &mux::Connection, early: EarlyData<'_>) -> mux::Stream {
    let frame =
        mux::traced_open_frame("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), None);
    connection.open_stream(frame, early, &Cell::default()).await.unwrap()
}

async fn copy(mut socket: TcpStream, mut stream: Stream) {
    if copy_bidirectional(&mut socket, &mut stream).await.is_err() {
        reset_on_drop(&socket);
    }
}

#[test]
fn half_close_reaches_the_server_and_its_answer_the_client() {
    fixture::half_close_reaches_the_server_and_its_answer_the_client::<Mesh>();
    fixture::half_close_reaches_the_server_and_its_answer_the_client::<Hbone>();
}

#[test]
fn many_megabytes_arrive_unchanged_both_ways_beside_small_ones() {
    fixture::many_megabytes_arrive_unchanged_both_ways_beside_small_ones::<Mesh>();
    fixture::many_megabytes_arrive_unchanged_both_ways_beside_small_ones::<Hbone>();
}

#[test]
fn a_reset_of_either_application_reaches_the_other() {
    fixture::a_reset_of_either_application_reaches_the_other::<Mesh>();
    fixture::a_reset_of_either_application_reaches_the_other::<Hbone>();
}

#[test]
fn a_reader_that_stops_holds_up_its_writer_and_nobody_else() {
    fixture::a_reader_that_stops_holds_up_its_writer_and_nobody_else::<Mesh>();
    fixture::a_reader_that_stops_holds_up_its_writer_and_nobody_else::<Hbone>();
}

/// More than what may go along with OPEN, read from the client before the stream is opened.
#[test]
fn early_bytes_go_along_and_the_rest_is_written_behind_them() {
    run_as_worker(async {
        let text: Vec<u8> = (0..100_000_u32).map(|index| b'a' + u8::try_from(index % 23).unwrap()).collect();
        let connection = Mesh::pair(spawn_echo_server().await).await;
        let mut stream = Stream::Mesh(open(&connection, EarlyData::Bytes(&text)).await);
        assert!((1..text.len()).contains(&stream.early_bytes_sent()), "{}", stream.early_bytes_sent());
        let rest = text[stream.early_bytes_sent()..].to_vec();
        stream.write_all(&rest).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert!(back.strip_suffix(b"<done>") == Some(&text), "{} bytes came back", back.len());
    });
}

/// As after a protocol's upgrade: the first bytes are read, and all that follows is relayed.
#[test]
fn what_was_read_in_part_can_be_relayed_on() {
    run_as_worker(async {
        let (text, connection) = (vec![b'x'; 50_000], Mesh::pair(spawn_echo_server().await).await);
        let mut stream = Stream::Mesh(open(&connection, EarlyData::Bytes(b"first")).await);
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
        let (mut application, socket) = fixture::tcp_pair().await;
        stream.write_all(b"held").await.unwrap();
        spawn_local(async move {
            stream.relay(socket, relay::SocketSide::Client, &ByteMeter::default()).await.unwrap();
        });
        application.write_all(&text).await.unwrap();
        application.shutdown().await.unwrap();
        let mut back = Vec::new();
        application.read_to_end(&mut back).await.unwrap();
        assert!(back == [&b"held"[..], &text, b"<done>"].concat(), "{} bytes came back", back.len());
    });
}
