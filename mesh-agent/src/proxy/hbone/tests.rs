//! Two ends of an HBONE connection over real sockets, each with a relay to an application.

use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::{Connection, OpenError, Server};
use crate::proxy::fixture::{self, Protocol, configs, run};
use crate::proxy::relay::{Meter, SocketIs, relay_hbone};
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

struct Hbone;

impl Protocol for Hbone {
    type Connection = Connection;

    async fn pair(application: std::net::SocketAddr) -> Connection {
        pair(application, Answer::Relay).await
    }

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
