//! For tests of both protocols between nodes.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::ConnectionPool;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

use crate::lifetime::Lifetime;
use crate::relay::{self, Meter, reset_on_drop};
use crate::telemetry::{Ended, Expiry};

/// TLS for both sides. Anybody's certificate is as good as another's.
pub fn configs() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    static CONFIGS: std::sync::OnceLock<(Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>)> =
        std::sync::OnceLock::new();
    CONFIGS.get_or_init(new_configs).clone()
}

fn new_configs() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["0.0.0.0".to_owned()]).unwrap().self_signed(&key).unwrap();
    let der: CertificateDer<'static> = certificate.der().clone();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der], private)
        .unwrap();
    (Arc::new(client), Arc::new(server))
}

/// Runs a test as a worker would, for a minute at most.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let limited = async { tokio::time::timeout(Duration::from_mins(1), test).await.expect("in time") };
    local.block_on(&runtime, limited);
}

/// A server that echoes until its client is done, and then says so.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut from, mut to) = socket.split();
                let _end = tokio::io::copy(&mut from, &mut to).await;
                let _end = to.write_all(b"<done>").await;
                let _end = to.shutdown().await;
            });
        }
    });
    address
}

/// A protocol between nodes, for the tests that both must pass.
pub trait Protocol {
    /// A client's end of a connection.
    type Connection: Clone + 'static;

    /// A server in front of `application`, and a connection to it.
    fn pair(application: SocketAddr) -> impl Future<Output = Self::Connection>;

    /// Carries the bytes of a client application through `connection`, from and to the proxy's end of its
    /// socket.
    fn carry(
        connection: Self::Connection,
        socket: TcpStream,
        meter: Meter,
    ) -> impl Future<Output = Result<(), relay::Error>>;

    /// A client application's socket whose bytes go through `connection`.
    fn through(connection: &Self::Connection) -> impl Future<Output = TcpStream> {
        let connection = connection.clone();
        async {
            let (application, socket) = sockets().await;
            spawn_local(async move { Self::carry(connection, socket, Meter::default()).await });
            application
        }
    }
}

/// Two ends of a TCP connection.
pub async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (one, listener.accept().await.unwrap().0)
}

/// A FIN goes through, and what comes back after it.
pub fn half_close_reaches_the_server_and_its_answer_the_client<P: Protocol>() {
    run(async {
        let connection = P::pair(echo().await).await;
        let mut application = P::through(&connection).await;
        application.write_all(b"hello").await.unwrap();
        application.shutdown().await.unwrap();
        let mut answer = String::new();
        application.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello<done>");
    });
}

/// Bulk data in both directions on one stream, and a request at a time on another.
pub fn many_megabytes_arrive_unchanged_both_ways_beside_small_ones<P: Protocol>() {
    const SIZE: usize = 64 * 1024 * 1024;
    #[allow(clippy::cast_possible_truncation)]
    let byte = |index: usize| (index * 7 + index / 251) as u8;
    run(async {
        let connection = P::pair(echo().await).await;
        let (mut from, mut to) = P::through(&connection).await.into_split();
        let mut small = P::through(&connection).await;
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

/// A RST goes through.
pub fn a_reset_of_either_application_reaches_the_other<P: Protocol>() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = P::pair(listener.local_addr().unwrap()).await;
        for client_resets in [true, false] {
            let mut client = P::through(&connection).await;
            client.write_all(b"x").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.read_u8().await.unwrap();
            let (resets, mut waits) = if client_resets { (client, server) } else { (server, client) };
            reset_on_drop(&resets);
            drop(resets);
            let error = waits.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "client resets: {client_resets}");
        }
    });
}

/// What a reader does not take fills buffers up to their limits, and no other stream waits for it.
pub fn a_reader_that_stops_holds_up_its_writer_and_nobody_else<P: Protocol>() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = P::pair(listener.local_addr().unwrap()).await;
        let mut writer = P::through(&connection).await;
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
        let mut other = P::through(&connection).await;
        other.write_all(b"y").await.unwrap();
        let (mut lively, _) = listener.accept().await.unwrap();
        assert_eq!(lively.read_u8().await.unwrap(), b'y');
        drop(stopped);
    });
}

/// A connection that has a `lifetime`: the client application's socket, and how it ended.
async fn bound<P: Protocol>(
    connection: &P::Connection,
    pool: ConnectionPool,
) -> (TcpStream, JoinHandle<Ended>) {
    let (application, socket) = sockets().await;
    let (lifetime, meter) = (Lifetime::of(&pool).unwrap(), Meter::default());
    let connection = connection.clone();
    let ended = spawn_local(async move {
        let carry = |socket| async { P::carry(connection, socket, meter.clone()).await.into() };
        lifetime.bound(socket, &meter, carry).await
    });
    (application, ended)
}

/// Silence and age end a connection, as the FIN of either end would: nothing that was said is lost.
pub fn a_connection_whose_time_is_over_ends_in_order<P: Protocol>() {
    const TIME: Duration = Duration::from_millis(1500);
    run(async {
        let connection = P::pair(echo().await).await;
        let idle = ConnectionPool { idle_timeout: Some(TIME), ..ConnectionPool::default() };
        let aged = ConnectionPool { max_connection_duration: Some(TIME), ..ConnectionPool::default() };
        for (pool, expiry) in [(idle, Expiry::Idle(TIME)), (aged, Expiry::Age(TIME))] {
            let (mut application, ended) = bound::<P>(&connection, pool).await;
            let began = Instant::now();
            let mut last = began;
            // For longer than the time itself, where it is silence that ends it.
            while let Expiry::Idle(_) = expiry
                && began.elapsed() < TIME * 2
            {
                application.write_all(b"x").await.unwrap();
                assert_eq!(application.read_u8().await.unwrap(), b'x');
                last = Instant::now();
                tokio::time::sleep(TIME / 10).await;
            }
            let mut rest = String::new();
            application.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "<done>", "the server has heard a FIN, and its last words arrive");
            assert!(last.elapsed() + Duration::from_millis(50) >= TIME, "{:?}", last.elapsed());
            drop(application);
            assert!(matches!(ended.await.unwrap(), Ended::Expired(it) if it == expiry));
        }
    });
}

/// A server that neither ends nor falls silent does not get its client to take half of an answer for all of
/// it.
pub fn a_server_that_goes_on_beyond_the_time_is_reset<P: Protocol>() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = P::pair(listener.local_addr().unwrap()).await;
        let pool = ConnectionPool {
            max_connection_duration: Some(Duration::from_millis(100)),
            ..ConnectionPool::default()
        };
        let (mut application, ended) = bound::<P>(&connection, pool).await;
        application.write_all(b"x").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let writing = spawn_local(async move {
            let mut wrote = Ok(());
            while wrote.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                wrote = server.write_all(b"y").await;
            }
            wrote.unwrap_err().kind()
        });
        let mut answer = Vec::new();
        let error = application.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(matches!(ended.await.unwrap(), Ended::Expired(Expiry::Age(_))));
        assert!(matches!(writing.await.unwrap(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
    });
}
