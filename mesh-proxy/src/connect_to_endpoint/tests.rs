//! Ways to endpoints over real sockets, and over mutual TLS with certificates of one authority.

use mesh_api::wire::security::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::*;
use crate::fixture::{
    self, CertificateIssuer, PlainSurroundings, RemoteBehaviour, RemoteNode, UnansweredConnects,
    WorkerWithPod, run_as_worker, shop_endpoint, shop_identity, shop_policy, spawn_echo_server, tcp_pair,
};
use crate::relay::ByteMeter;
use crate::tunnel::{AllowedFraming, Refusal};
use crate::worker::NEW_POD_WAIT;

const BOTH: [AllowedFraming; 2] = [AllowedFraming::Auto, AllowedFraming::Hbone];
const OPTIONS: ConnectOptions = ConnectOptions { timeout: Duration::from_secs(20), keepalive: None };

/// What came of an opening.
struct Opened {
    result: Result<Upstream, UpstreamError>,
    exposed: bool,
}

async fn open_with(
    node: &WorkerWithPod,
    endpoint: &Endpoint,
    early: EarlyData<'_>,
    options: ConnectOptions,
) -> Opened {
    let origin = ClientContext {
        worker: &node.worker,
        pod: &node.pod,
        workload: &node.worker.wait_for_workload(&node.pod).await.unwrap(),
        client: ClientAddress::new("10.0.0.1:40000".parse().unwrap()),
        service: None,
        early,
        exposed: Cell::default(),
    };
    let result = connect_to_endpoint(&origin, endpoint, options).await;
    Opened { result, exposed: origin.exposed.get() }
}

async fn opened(node: &WorkerWithPod, endpoint: &Endpoint) -> Result<Upstream, UpstreamError> {
    open_with(node, endpoint, EarlyData::None, OPTIONS).await.result
}

async fn refused(node: &WorkerWithPod, endpoint: &Endpoint) -> UpstreamError {
    opened(node, endpoint).await.err().expect("no way")
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// What comes back of `rest`, and of what went along before it.
async fn echoed(upstream: Upstream, rest: &[u8]) -> String {
    let Upstream::Stream(mut stream) = upstream else { panic!("not of this node") };
    stream.write_all(rest).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The node of pod `a`, and another with a pod that proves to be `name`; connections to it have these fates.
async fn nodes(
    framing: AllowedFraming,
    name: &str,
    fates: &[RemoteBehaviour],
) -> (WorkerWithPod, RemoteNode, Endpoint, CertificateIssuer) {
    let signer = CertificateIssuer::new().await;
    let (certificates, _) = signer.issue_for_pod("a", framing).await;
    let peer = RemoteNode::start_on_mesh_port(&signer.issue_for_pod(name, framing).await.1, fates).await;
    let endpoint = shop_endpoint("b", SocketAddr::new(peer.address.ip(), 80), TunnelProtocol::Hbone);
    (WorkerWithPod::with_certificates(PlainSurroundings::default(), certificates), peer, endpoint, signer)
}

#[test]
fn an_endpoint_outside_of_the_mesh_is_reached_as_it_is() {
    run_as_worker(async {
        let node = WorkerWithPod::new(PlainSurroundings::default());
        let upstream = opened(&node, &shop_endpoint("b", spawn_echo_server().await, TunnelProtocol::Plain))
            .await
            .unwrap();
        assert!(matches!(upstream, Upstream::Stream(Stream::Socket(_))));
        assert_eq!(echoed(upstream, b"hello").await, "hello<done>");
    });
}

#[test]
fn who_refuses_and_who_is_silent_are_told_apart() {
    run_as_worker(async {
        let node = WorkerWithPod::new(PlainSurroundings::default());
        let error = refused(&node, &shop_endpoint("b", closed_port().await, TunnelProtocol::Plain)).await;
        assert!(
            matches!(error, UpstreamError::Connect(_))
                && error.is_connection_refused()
                && !error.stops_retries(),
            "{error}"
        );
        let unanswered = UnansweredConnects::All;
        let node = WorkerWithPod::new(PlainSurroundings { unanswered, ..PlainSurroundings::default() });
        let silent = shop_endpoint("b", spawn_echo_server().await, TunnelProtocol::Plain);
        let options = ConnectOptions { timeout: Duration::from_millis(50), ..OPTIONS };
        let error = open_with(&node, &silent, EarlyData::None, options).await.result.err().unwrap();
        assert!(matches!(error, UpstreamError::Timeout(it) if it == options.timeout), "{error}");
        assert!(!error.is_connection_refused() && !error.stops_retries());
    });
}

#[test]
fn a_pod_of_this_node_is_reached_without_encryption_if_its_policy_allows_it() {
    run_as_worker(async {
        let node =
            WorkerWithPod::new(PlainSurroundings { unencrypted: true, ..PlainSurroundings::default() });
        let address = spawn_echo_server().await;
        node.worker.add_pod(&Arc::new(fixture::shop_pod("b", address.ip())));
        let near = shop_endpoint("b", address, TunnelProtocol::Hbone);
        let Ok(Upstream::Local(delivered)) = opened(&node, &near).await else { panic!("of this node") };
        let (mut client, socket) = tcp_pair().await;
        let carrying = async move {
            delivered.relay_until_revoked(Stream::from_socket(socket), &ByteMeter::default()).await
        };
        spawn_local(carrying);
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello<done>");
        node.configuration.set_policy(&shop_policy("no-a", Action::Deny, &["a"]));
        let error = refused(&node, &near).await;
        assert!(matches!(&error, UpstreamError::Denied(why) if why.contains("shop/no-a")), "{error}");
        assert!(error.stops_retries());
    });
}

#[test]
fn an_application_of_this_node_that_does_not_listen_refuses() {
    run_as_worker(async {
        let node =
            WorkerWithPod::new(PlainSurroundings { unencrypted: true, ..PlainSurroundings::default() });
        let address = closed_port().await;
        node.worker.add_pod(&Arc::new(fixture::shop_pod("b", address.ip())));
        let error = refused(&node, &shop_endpoint("b", address, TunnelProtocol::Hbone)).await;
        assert!(error.is_connection_refused() && !error.stops_retries(), "{error}");
    });
}

/// A pod of this node that wants encryption is reached as one of another node is.
#[test]
fn without_a_certificate_there_is_no_way_once_it_was_waited_for() {
    run_as_worker(async {
        let (node, address) = (WorkerWithPod::new(PlainSurroundings::default()), spawn_echo_server().await);
        node.worker.add_pod(&Arc::new(fixture::shop_pod("b", address.ip())));
        let began = Instant::now();
        let error = refused(&node, &shop_endpoint("b", address, TunnelProtocol::Hbone)).await;
        assert!(matches!(&error, UpstreamError::NoCertificate(id) if *id == shop_identity("a")), "{error}");
        assert!(error.stops_retries());
        assert!((NEW_POD_WAIT..NEW_POD_WAIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    });
}

#[test]
fn a_pod_of_another_node_is_reached_in_either_protocol_and_the_connection_is_kept() {
    run_as_worker(async {
        for framing in BOTH {
            let (node, peer, endpoint, _signer) = nodes(framing, "b", &[]).await;
            for _ in 0..2 {
                let upstream = opened(&node, &endpoint).await.unwrap();
                let Upstream::Stream(stream) = &upstream else { panic!("of another node") };
                assert_eq!(matches!(stream, Stream::Mesh(_)), framing == AllowedFraming::Auto);
                assert_eq!(matches!(stream, Stream::Hbone(_)), framing == AllowedFraming::Hbone);
                assert_eq!(echoed(upstream, b"hello").await, "hello");
            }
            assert_eq!(
                (peer.accepted_connection_count(), peer.requested_stream_count()),
                (1, 2),
                "{framing:?}"
            );
        }
    });
}

#[test]
fn a_peer_that_proves_to_be_somebody_else_is_asked_for_nothing() {
    run_as_worker(async {
        for framing in BOTH {
            let (node, peer, endpoint, _signer) = nodes(framing, "mallory", &[]).await;
            let error = refused(&node, &endpoint).await;
            let UpstreamError::WrongPeer { found, expected } = &error else { panic!("{framing:?}: {error}") };
            assert_eq!((found.as_str(), expected), (shop_identity("mallory").as_str(), &shop_identity("b")));
            assert!(!error.stops_retries() && !error.is_connection_refused());
            assert_eq!(
                (peer.accepted_connection_count(), peer.requested_stream_count()),
                (1, 0),
                "{framing:?}"
            );
            assert!(node.worker.pool.is_empty());
        }
    });
}

#[test]
fn a_peers_refusal_is_asked_for_once_and_a_policys_is_final() {
    run_as_worker(async {
        for framing in BOTH {
            for (refusal, is_final) in [(Refusal::Denied, true), (Refusal::Unavailable, false)] {
                let (node, peer, endpoint, _signer) =
                    nodes(framing, "b", &[RemoteBehaviour::Refuse(refusal)]).await;
                let error = refused(&node, &endpoint).await;
                assert_eq!(
                    (error.stops_retries(), error.is_connection_refused()),
                    (is_final, !is_final),
                    "{error}"
                );
                assert_eq!(
                    (peer.accepted_connection_count(), peer.requested_stream_count()),
                    (1, 1),
                    "{framing:?}, {refusal:?}"
                );
                assert_eq!(node.worker.pool.len(), 1, "the connection is as good as before");
            }
        }
    });
}

#[test]
fn a_stream_that_is_lost_with_its_connection_is_opened_again_on_a_new_one() {
    run_as_worker(async {
        for framing in BOTH {
            let (node, peer, endpoint, _signer) = nodes(
                framing,
                "b",
                &[RemoteBehaviour::HangUp, RemoteBehaviour::Reset, RemoteBehaviour::Garble],
            )
            .await;
            let upstream = opened(&node, &endpoint).await.unwrap();
            assert_eq!(echoed(upstream, b"hello").await, "hello");
            assert_eq!((peer.accepted_connection_count(), node.worker.pool.len()), (4, 1), "{framing:?}");
        }
    });
}

#[test]
fn a_stream_is_not_opened_again_for_ever() {
    run_as_worker(async {
        for framing in BOTH {
            let (node, peer, endpoint, _signer) =
                nodes(framing, "b", &[RemoteBehaviour::Reset; TRIES + 1]).await;
            let error = refused(&node, &endpoint).await;
            assert!(error.is_loss() && !error.stops_retries(), "{error}");
            assert_eq!(peer.accepted_connection_count(), TRIES, "{framing:?}");
        }
    });
}

/// HBONE has nothing go along. A peer that is gone had not answered, so its application got nothing; of one
/// whose connection broke nobody knows.
#[test]
fn a_stream_is_not_opened_again_if_the_application_may_have_got_bytes() {
    run_as_worker(async {
        for (framing, fate, again) in [
            (AllowedFraming::Auto, RemoteBehaviour::Garble, false),
            (AllowedFraming::Auto, RemoteBehaviour::Reset, true),
            (AllowedFraming::Hbone, RemoteBehaviour::Garble, true),
        ] {
            let (node, peer, endpoint, _signer) = nodes(framing, "b", &[fate]).await;
            let Opened { result, exposed } =
                open_with(&node, &endpoint, EarlyData::Bytes(b"early"), OPTIONS).await;
            assert_eq!((result.is_ok(), exposed), (again, !again), "{framing:?}, {fate:?}");
            assert_eq!(peer.accepted_connection_count(), 1 + usize::from(again), "{framing:?}, {fate:?}");
            match result {
                Ok(upstream) => {
                    let Upstream::Stream(stream) = &upstream else { panic!("of another node") };
                    let rest = [&b"early"[stream.early_bytes_sent()..], b" and late"].concat();
                    assert_eq!(echoed(upstream, &rest).await, "early and late");
                }
                Err(error) => assert!(error.is_loss() && !error.stops_retries(), "{error}"),
            }
        }
    });
}
