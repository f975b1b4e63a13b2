//! Connections to another node, over real sockets and with certificates of one authority.

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::certs::Certificates;
use crate::fixture::{
    CertificateIssuer, RemoteNode, run_as_worker, shop_identity, unlimited_budget, wait_until,
};
use crate::stream::Stream;
use crate::tls;
use crate::tunnel::{AllowedFraming, EarlyData, StreamRequest};

/// A pod that connects, and the pod `b` of another node.
struct Both {
    signer: CertificateIssuer,
    certificates: Certificates,
    own: Arc<WorkloadCertificate>,
    peer: RemoteNode,
    pool: TunnelPool,
}

impl Both {
    async fn new() -> Self {
        let signer = CertificateIssuer::new().await;
        let (certificates, own) = signer.issue_for_pod("a", AllowedFraming::Auto).await;
        let peer = RemoteNode::start(&signer.issue_for_pod("b", AllowedFraming::Auto).await.1).await;
        Self { signer, certificates, own, peer, pool: TunnelPool::default() }
    }

    fn key(&self) -> TunnelKey {
        TunnelKey { source: "a".into(), destination: self.peer.address, workload: "b".into() }
    }

    async fn open(&self, closed: ClosedFlag) -> Result<(Tunnel, VerifiedPeer), String> {
        let tcp = TcpStream::connect(self.peer.address).await.unwrap();
        let tls = tls::client_handshake_unverified_name(tcp, Arc::clone(&self.own.client)).await.unwrap();
        let peer = VerifiedPeer::new(&self.certificates, tls.peer_certificates().unwrap()).unwrap();
        Ok((Tunnel::start(tls, &unlimited_budget(), || closed.mark_closed()).await.unwrap(), peer))
    }

    async fn of(&self, own: &Arc<WorkloadCertificate>, expected: &[SpiffeId]) -> Rc<PooledTunnel> {
        self.pool.get_or_open(self.key(), own, expected, |closed| self.open(closed)).await.unwrap()
    }

    async fn connection(&self) -> Rc<PooledTunnel> {
        self.of(&self.own, &[shop_identity("b")]).await
    }
}

async fn stream(pooled: &PooledTunnel) -> Stream {
    let opening = StreamRequest {
        client: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        service: None,
        workload: None,
        early: EarlyData::None,
        exposed: &Cell::default(),
    };
    pooled.connection.open_stream(&opening).await.unwrap()
}

async fn assert_alive(stream: &mut Stream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[test]
fn a_burst_of_streams_makes_one_connection() {
    run_as_worker(async {
        let both = Both::new().await;
        let got = join_all((0..50).map(|_| both.connection())).await;
        assert!(got.iter().all(|one| Rc::ptr_eq(one, &got[0])));
        assert_eq!((both.peer.accepted_connection_count(), both.pool.len()), (1, 1));
    });
}

#[test]
fn a_connection_that_is_full_is_kept_and_not_handed_out() {
    run_as_worker(async {
        let both = Both::new().await;
        let full = both.connection().await;
        let mut streams = Vec::new();
        while full.connection.has_room() {
            streams.push(stream(&full).await);
        }
        let other = both.connection().await;
        assert!(!Rc::ptr_eq(&full, &other));
        assert_eq!((both.peer.accepted_connection_count(), both.pool.len()), (2, 2));
        assert_alive(&mut streams[0]).await;
        streams.pop();
        assert!(Rc::ptr_eq(&full, &both.connection().await), "there is room again");
    });
}

#[test]
fn a_connection_that_counts_no_more_lives_on_as_long_as_its_streams() {
    run_as_worker(async {
        let mut both = Both::new().await;
        for why in ["retired", "made with an older certificate"] {
            let before = both.peer.accepted_connection_count();
            let first = both.connection().await;
            let mut stream = stream(&first).await;
            match why {
                "retired" => first.retire(),
                _ => both.own = both.signer.issue_for_pod("a", AllowedFraming::Auto).await.1,
            }
            let second = both.connection().await;
            assert!(!Rc::ptr_eq(&first, &second), "{why}");
            assert_eq!((both.peer.accepted_connection_count(), both.pool.len()), (before + 2, 1), "{why}");
            drop(first);
            assert_alive(&mut stream).await;
            drop(stream);
            wait_until("an end with the last stream", || both.peer.open_connection_count() == 1).await;
            second.retire();
            drop(second);
            both.pool.drop_closed_and_idle(Instant::now());
            wait_until("an end of what nobody uses", || both.peer.open_connection_count() == 0).await;
        }
    });
}

#[test]
fn a_connection_to_another_than_who_is_expected_is_not_handed_out() {
    run_as_worker(async {
        let both = Both::new().await;
        let first = both.connection().await;
        let other = both.of(&both.own, &[shop_identity("c")]).await;
        assert!(!Rc::ptr_eq(&first, &other));
        let any = both.of(&both.own, &[shop_identity("c"), shop_identity("b")]).await;
        assert!(Rc::ptr_eq(&first, &any), "one of several is");
    });
}

#[test]
fn a_connection_that_broke_is_not_handed_out() {
    run_as_worker(async {
        let both = Both::new().await;
        let first = both.connection().await;
        wait_until("served", || both.peer.open_connection_count() == 1).await;
        both.peer.break_connections();
        wait_until("its end is noticed", || first.closed.get()).await;
        assert!(!Rc::ptr_eq(&first, &both.connection().await));
        assert_eq!(both.pool.len(), 1, "nor kept");
    });
}

#[test]
fn a_connection_to_a_peer_whose_certificate_has_ended_is_not_handed_out() {
    run_as_worker(async {
        let mut both = Both::new().await;
        both.signer.authority.lock_state().lifetime = Duration::from_secs(2);
        both.peer = RemoteNode::start(&both.signer.issue_for_pod("b", AllowedFraming::Auto).await.1).await;
        let first = both.connection().await;
        assert!(Rc::ptr_eq(&first, &both.connection().await));
        wait_until("the end of the certificate", || !first.peer.is_valid()).await;
        let open = |_: ClosedFlag| std::future::ready(Err("a handshake"));
        let again = both.pool.get_or_open(both.key(), &both.own, &[shop_identity("b")], open).await;
        assert_eq!(again.err(), Some("a handshake"));
    });
}

#[test]
fn a_sweep_lets_go_of_what_is_idle_and_keeps_what_is_used() {
    run_as_worker(async {
        let both = Both::new().await;
        let pooled = both.connection().await;
        let mut stream = stream(&pooled).await;
        drop(pooled);
        let later = Instant::now() + IDLE;
        both.pool.drop_closed_and_idle(later);
        assert_eq!(both.pool.len(), 1, "a stream is open");
        assert_alive(&mut stream).await;
        drop(stream);
        both.pool.drop_closed_and_idle(later + IDLE / 2);
        assert_eq!(both.pool.len(), 1, "not idle for long");
        both.pool.drop_closed_and_idle(later + IDLE);
        assert!(both.pool.is_empty() && both.pool.destinations.borrow().is_empty());
        wait_until("its end at the peer", || both.peer.open_connection_count() == 0).await;
    });
}

/// A sweep while it waits does not take away what a burst waits at.
#[test]
fn a_failed_open_is_not_remembered_and_the_next_caller_tries_anew() {
    run_as_worker(async {
        let (both, tried) = (&Both::new().await, &Cell::new(0));
        let caller = || {
            let open = async move |closed| {
                tried.set(tried.get() + 1);
                if tried.get() == 1 {
                    tokio::task::yield_now().await;
                    both.pool.drop_closed_and_idle(Instant::now());
                    return Err("unreachable".to_owned());
                }
                both.open(closed).await
            };
            async move { both.pool.get_or_open(both.key(), &both.own, &[shop_identity("b")], open).await }
        };
        let got = join_all((0..3).map(|_| caller())).await;
        let [Err(error), Ok(second), Ok(third)] = &got[..] else { panic!("the first alone fails") };
        assert_eq!(error, "unreachable");
        assert!(Rc::ptr_eq(second, third));
        assert_eq!((tried.get(), both.pool.len()), (2, 1));
    });
}

#[test]
fn a_caller_that_gives_up_leaves_its_turn_to_the_next() {
    run_as_worker(async {
        let both = Both::new().await;
        let expected = [shop_identity("b")];
        let never = |_: ClosedFlag| std::future::pending::<Result<_, ()>>();
        let mut stuck = Box::pin(both.pool.get_or_open(both.key(), &both.own, &expected, never));
        assert!((&mut stuck).now_or_never().is_none());
        let mut next = Box::pin(both.connection());
        assert!((&mut next).now_or_never().is_none(), "one at a time");
        drop(stuck);
        next.await;
        assert_eq!(both.peer.accepted_connection_count(), 1);
    });
}
