//! Connections to another node, over real sockets and with certificates of one authority.

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::certs::Certificates;
use crate::fixture::{Peer, Signer, budget, identity, run, until};
use crate::stream::Stream;
use crate::tls;
use crate::tunnel::{Early, Framing, Opening};

/// A pod that connects, and the pod `b` of another node.
struct Both {
    signer: Signer,
    certificates: Certificates,
    own: Arc<WorkloadCertificate>,
    peer: Peer,
    pool: Pool,
}

impl Both {
    async fn new() -> Self {
        let signer = Signer::new().await;
        let (certificates, own) = signer.sign("a", Framing::Auto).await;
        let peer = Peer::start(&signer.sign("b", Framing::Auto).await.1).await;
        Self { signer, certificates, own, peer, pool: Pool::default() }
    }

    fn key(&self) -> Key {
        Key { source: "a".into(), destination: self.peer.address, workload: "b".into() }
    }

    async fn open(&self, closed: Closed) -> Result<(Connection, PeerIdentity), String> {
        let tcp = TcpStream::connect(self.peer.address).await.unwrap();
        let tls = tls::connect(tcp, Arc::clone(&self.own.client)).await.unwrap();
        let peer = PeerIdentity::new(&self.certificates, tls.peer_certificates().unwrap()).unwrap();
        Ok((Connection::start(tls, &budget(), || closed.mark()).await.unwrap(), peer))
    }

    async fn of(&self, own: &Arc<WorkloadCertificate>, expected: &[SpiffeId]) -> Rc<Pooled> {
        self.pool.connection(self.key(), own, expected, |closed| self.open(closed)).await.unwrap()
    }

    async fn connection(&self) -> Rc<Pooled> {
        self.of(&self.own, &[identity("b")]).await
    }
}

async fn stream(pooled: &Pooled) -> Stream {
    let opening = Opening {
        client: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        service: None,
        workload: None,
        early: Early::None,
        exposed: &Cell::default(),
    };
    pooled.connection.open(&opening).await.unwrap()
}

async fn assert_alive(stream: &mut Stream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[test]
fn a_burst_of_streams_makes_one_connection() {
    run(async {
        let both = Both::new().await;
        let got = join_all((0..50).map(|_| both.connection())).await;
        assert!(got.iter().all(|one| Rc::ptr_eq(one, &got[0])));
        assert_eq!((both.peer.connections(), both.pool.len()), (1, 1));
    });
}

#[test]
fn a_connection_that_is_full_is_kept_and_not_handed_out() {
    run(async {
        let both = Both::new().await;
        let full = both.connection().await;
        let mut streams = Vec::new();
        while full.connection.has_room() {
            streams.push(stream(&full).await);
        }
        let other = both.connection().await;
        assert!(!Rc::ptr_eq(&full, &other));
        assert_eq!((both.peer.connections(), both.pool.len()), (2, 2));
        assert_alive(&mut streams[0]).await;
        streams.pop();
        assert!(Rc::ptr_eq(&full, &both.connection().await), "there is room again");
    });
}

#[test]
fn a_connection_that_counts_no_more_lives_on_as_long_as_its_streams() {
    run(async {
        let mut both = Both::new().await;
        for why in ["retired", "made with an older certificate"] {
            let before = both.peer.connections();
            let first = both.connection().await;
            let mut stream = stream(&first).await;
            match why {
                "retired" => first.retire(),
                _ => both.own = both.signer.sign("a", Framing::Auto).await.1,
            }
            let second = both.connection().await;
            assert!(!Rc::ptr_eq(&first, &second), "{why}");
            assert_eq!((both.peer.connections(), both.pool.len()), (before + 2, 1), "{why}");
            drop(first);
            assert_alive(&mut stream).await;
            drop(stream);
            until("an end with the last stream", || both.peer.open() == 1).await;
            second.retire();
            drop(second);
            both.pool.sweep(Instant::now());
            until("an end of what nobody uses", || both.peer.open() == 0).await;
        }
    });
}

#[test]
fn a_connection_to_another_than_who_is_expected_is_not_handed_out() {
    run(async {
        let both = Both::new().await;
        let first = both.connection().await;
        let other = both.of(&both.own, &[identity("c")]).await;
        assert!(!Rc::ptr_eq(&first, &other));
        let any = both.of(&both.own, &[identity("c"), identity("b")]).await;
        assert!(Rc::ptr_eq(&first, &any), "one of several is");
    });
}

#[test]
fn a_connection_that_broke_is_not_handed_out() {
    run(async {
        let both = Both::new().await;
        let first = both.connection().await;
        until("served", || both.peer.open() == 1).await;
        both.peer.break_off();
        until("its end is noticed", || first.closed.get()).await;
        assert!(!Rc::ptr_eq(&first, &both.connection().await));
        assert_eq!(both.pool.len(), 1, "nor kept");
    });
}

#[test]
fn a_connection_to_a_peer_whose_certificate_has_ended_is_not_handed_out() {
    run(async {
        let mut both = Both::new().await;
        both.signer.authority.set().lifetime = Duration::from_secs(2);
        both.peer = Peer::start(&both.signer.sign("b", Framing::Auto).await.1).await;
        let first = both.connection().await;
        assert!(Rc::ptr_eq(&first, &both.connection().await));
        until("the end of the certificate", || !first.peer.is_valid()).await;
        let open = |_: Closed| std::future::ready(Err("a handshake"));
        let again = both.pool.connection(both.key(), &both.own, &[identity("b")], open).await;
        assert_eq!(again.err(), Some("a handshake"));
    });
}

#[test]
fn a_sweep_lets_go_of_what_is_idle_and_keeps_what_is_used() {
    run(async {
        let both = Both::new().await;
        let pooled = both.connection().await;
        let mut stream = stream(&pooled).await;
        drop(pooled);
        let later = Instant::now() + IDLE;
        both.pool.sweep(later);
        assert_eq!(both.pool.len(), 1, "a stream is open");
        assert_alive(&mut stream).await;
        drop(stream);
        both.pool.sweep(later + IDLE / 2);
        assert_eq!(both.pool.len(), 1, "not idle for long");
        both.pool.sweep(later + IDLE);
        assert!(both.pool.is_empty() && both.pool.destinations.borrow().is_empty());
        until("its end at the peer", || both.peer.open() == 0).await;
    });
}

/// A sweep while it waits does not take away what a burst waits at.
#[test]
fn a_failed_open_is_not_remembered_and_the_next_caller_tries_anew() {
    run(async {
        let (both, tried) = (&Both::new().await, &Cell::new(0));
        let caller = || {
            let open = async move |closed| {
                tried.set(tried.get() + 1);
                if tried.get() == 1 {
                    tokio::task::yield_now().await;
                    both.pool.sweep(Instant::now());
                    return Err("unreachable".to_owned());
                }
                both.open(closed).await
            };
            async move { both.pool.connection(both.key(), &both.own, &[identity("b")], open).await }
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
    run(async {
        let both = Both::new().await;
        let expected = [identity("b")];
        let never = |_: Closed| std::future::pending::<Result<_, ()>>();
        let mut stuck = Box::pin(both.pool.connection(both.key(), &both.own, &expected, never));
        assert!((&mut stuck).now_or_never().is_none());
        let mut next = Box::pin(both.connection());
        assert!((&mut next).now_or_never().is_none(), "one at a time");
        drop(stuck);
        next.await;
        assert_eq!(both.peer.connections(), 1);
    });
}
