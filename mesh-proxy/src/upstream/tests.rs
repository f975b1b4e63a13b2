//! Ways to endpoints over real sockets, and over mutual TLS with certificates of one authority.

use mesh_api::wire::security::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::*;
use crate::fixture::{
    self, Fate, Node, Peer, PlainSockets, Signer, Unanswered, echo, identity, policy, run, sockets, target,
};
use crate::relay::Meter;
use crate::tunnel::{Framing, Refusal};
use crate::worker::NEWS_WAIT;

const BOTH: [Framing; 2] = [Framing::Auto, Framing::Hbone];
const OPTIONS: Options = Options { timeout: Duration::from_secs(20), keepalive: None };

/// What came of an opening.
struct Opened {
    result: Result<Upstream, Error>,
    exposed: bool,
}

async fn open_with(node: &Node, target: &Target, early: Early<'_>, options: Options) -> Opened {
    let origin = Origin {
        worker: &node.worker,
        pod: &node.pod,
        workload: &node.worker.workload_of(&node.pod).await.unwrap(),
        client: ClientAddress::new("10.0.0.1:40000".parse().unwrap()),
        service: None,
        early,
        exposed: Cell::default(),
    };
    let result = open(&origin, target, options).await;
    Opened { result, exposed: origin.exposed.get() }
}

async fn opened(node: &Node, target: &Target) -> Result<Upstream, Error> {
    open_with(node, target, Early::None, OPTIONS).await.result
}

async fn refused(node: &Node, target: &Target) -> Error {
    opened(node, target).await.err().expect("no way")
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
async fn nodes(framing: Framing, name: &str, fates: &[Fate]) -> (Node, Peer, Target, Signer) {
    let signer = Signer::new().await;
    let (certificates, _) = signer.sign("a", framing).await;
    let peer = Peer::on_mesh_port(&signer.sign(name, framing).await.1, fates).await;
    let target = target("b", SocketAddr::new(peer.address.ip(), 80), TunnelProtocol::Hbone);
    (Node::with(PlainSockets::default(), certificates), peer, target, signer)
}

#[test]
fn an_endpoint_outside_of_the_mesh_is_reached_as_it_is() {
    run(async {
        let node = Node::new(PlainSockets::default());
        let upstream = opened(&node, &target("b", echo().await, TunnelProtocol::Plain)).await.unwrap();
        assert!(matches!(upstream, Upstream::Stream(Stream::Socket(_))));
        assert_eq!(echoed(upstream, b"hello").await, "hello<done>");
    });
}

#[test]
fn who_refuses_and_who_is_silent_are_told_apart() {
    run(async {
        let node = Node::new(PlainSockets::default());
        let error = refused(&node, &target("b", closed_port().await, TunnelProtocol::Plain)).await;
        assert!(matches!(error, Error::Connect(_)) && error.is_refusal() && !error.is_final(), "{error}");
        let unanswered = Unanswered::All;
        let node = Node::new(PlainSockets { unanswered, ..PlainSockets::default() });
        let silent = target("b", echo().await, TunnelProtocol::Plain);
        let options = Options { timeout: Duration::from_millis(50), ..OPTIONS };
        let error = open_with(&node, &silent, Early::None, options).await.result.err().unwrap();
        assert!(matches!(error, Error::Timeout(it) if it == options.timeout), "{error}");
        assert!(!error.is_refusal() && !error.is_final());
    });
}

#[test]
fn a_pod_of_this_node_is_reached_without_encryption_if_its_policy_allows_it() {
    run(async {
        let node = Node::new(PlainSockets { unencrypted: true, ..PlainSockets::default() });
        let address = echo().await;
        node.worker.know(&Arc::new(fixture::pod("b", address.ip())));
        let near = target("b", address, TunnelProtocol::Hbone);
        let Ok(Upstream::Local(delivered)) = opened(&node, &near).await else { panic!("of this node") };
        let (mut client, socket) = sockets().await;
        let carrying = async move { delivered.carry(Stream::of_socket(socket), &Meter::default()).await };
        spawn_local(carrying);
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello<done>");
        node.configuration.policy(&policy("no-a", Action::Deny, &["a"]));
        let error = refused(&node, &near).await;
        assert!(matches!(&error, Error::Denied(why) if why.contains("shop/no-a")), "{error}");
        assert!(error.is_final());
    });
}

#[test]
fn an_application_of_this_node_that_does_not_listen_refuses() {
    run(async {
        let node = Node::new(PlainSockets { unencrypted: true, ..PlainSockets::default() });
        let address = closed_port().await;
        node.worker.know(&Arc::new(fixture::pod("b", address.ip())));
        let error = refused(&node, &target("b", address, TunnelProtocol::Hbone)).await;
        assert!(error.is_refusal() && !error.is_final(), "{error}");
    });
}

/// A pod of this node that wants encryption is reached as one of another node is.
#[test]
fn without_a_certificate_there_is_no_way_once_it_was_waited_for() {
    run(async {
        let (node, address) = (Node::new(PlainSockets::default()), echo().await);
        node.worker.know(&Arc::new(fixture::pod("b", address.ip())));
        let began = Instant::now();
        let error = refused(&node, &target("b", address, TunnelProtocol::Hbone)).await;
        assert!(matches!(&error, Error::NoCertificate(id) if *id == identity("a")), "{error}");
        assert!(error.is_final());
        assert!((NEWS_WAIT..NEWS_WAIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    });
}

#[test]
fn a_pod_of_another_node_is_reached_in_either_protocol_and_the_connection_is_kept() {
    run(async {
        for framing in BOTH {
            let (node, peer, target, _signer) = nodes(framing, "b", &[]).await;
            for _ in 0..2 {
                let upstream = opened(&node, &target).await.unwrap();
                let Upstream::Stream(stream) = &upstream else { panic!("of another node") };
                assert_eq!(matches!(stream, Stream::Mesh(_)), framing == Framing::Auto);
                assert_eq!(matches!(stream, Stream::Hbone(_)), framing == Framing::Hbone);
                assert_eq!(echoed(upstream, b"hello").await, "hello");
            }
            assert_eq!((peer.connections(), peer.streams()), (1, 2), "{framing:?}");
        }
    });
}

#[test]
fn a_peer_that_proves_to_be_somebody_else_is_asked_for_nothing() {
    run(async {
        for framing in BOTH {
            let (node, peer, target, _signer) = nodes(framing, "mallory", &[]).await;
            let error = refused(&node, &target).await;
            let Error::WrongPeer { found, expected } = &error else { panic!("{framing:?}: {error}") };
            assert_eq!((found.as_str(), expected), (identity("mallory").as_str(), &identity("b")));
            assert!(!error.is_final() && !error.is_refusal());
            assert_eq!((peer.connections(), peer.streams()), (1, 0), "{framing:?}");
            assert!(node.worker.pool.is_empty());
        }
    });
}

#[test]
fn a_peers_refusal_is_asked_for_once_and_a_policys_is_final() {
    run(async {
        for framing in BOTH {
            for (refusal, is_final) in [(Refusal::Denied, true), (Refusal::Unavailable, false)] {
                let (node, peer, target, _signer) = nodes(framing, "b", &[Fate::Refuse(refusal)]).await;
                let error = refused(&node, &target).await;
                assert_eq!((error.is_final(), error.is_refusal()), (is_final, !is_final), "{error}");
                assert_eq!((peer.connections(), peer.streams()), (1, 1), "{framing:?}, {refusal:?}");
                assert_eq!(node.worker.pool.len(), 1, "the connection is as good as before");
            }
        }
    });
}

#[test]
fn a_stream_that_is_lost_with_its_connection_is_opened_again_on_a_new_one() {
    run(async {
        for framing in BOTH {
            let (node, peer, target, _signer) =
                nodes(framing, "b", &[Fate::HangUp, Fate::Reset, Fate::Garble]).await;
            let upstream = opened(&node, &target).await.unwrap();
            assert_eq!(echoed(upstream, b"hello").await, "hello");
            assert_eq!((peer.connections(), node.worker.pool.len()), (4, 1), "{framing:?}");
        }
    });
}

#[test]
fn a_stream_is_not_opened_again_for_ever() {
    run(async {
        for framing in BOTH {
            let (node, peer, target, _signer) = nodes(framing, "b", &[Fate::Reset; TRIES + 1]).await;
            let error = refused(&node, &target).await;
            assert!(error.is_loss() && !error.is_final(), "{error}");
            assert_eq!(peer.connections(), TRIES, "{framing:?}");
        }
    });
}

/// HBONE has nothing go along. A peer that is gone had not answered, so its application got nothing; of one
/// whose connection broke nobody knows.
#[test]
fn a_stream_is_not_opened_again_if_the_application_may_have_got_bytes() {
    run(async {
        for (framing, fate, again) in [
            (Framing::Auto, Fate::Garble, false),
            (Framing::Auto, Fate::Reset, true),
            (Framing::Hbone, Fate::Garble, true),
        ] {
            let (node, peer, target, _signer) = nodes(framing, "b", &[fate]).await;
            let Opened { result, exposed } = open_with(&node, &target, Early::Bytes(b"early"), OPTIONS).await;
            assert_eq!((result.is_ok(), exposed), (again, !again), "{framing:?}, {fate:?}");
            assert_eq!(peer.connections(), 1 + usize::from(again), "{framing:?}, {fate:?}");
            match result {
                Ok(upstream) => {
                    let Upstream::Stream(stream) = &upstream else { panic!("of another node") };
                    let rest = [&b"early"[stream.sent_early()..], b" and late"].concat();
                    assert_eq!(echoed(upstream, &rest).await, "early and late");
                }
                Err(error) => assert!(error.is_loss() && !error.is_final(), "{error}"),
            }
        }
    });
}
