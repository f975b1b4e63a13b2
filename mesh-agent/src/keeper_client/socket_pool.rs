//! Sockets inside pods, opened ahead of need: only a pod's first connection waits for the keeper, and a batch
//! shares the cost of entering the namespace.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use mesh_listen::ExhaustionBackoff;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;

use super::asynchronous;
use super::client::{receive_message, send_request};
use crate::keeper::protocol::{KeeperAnswer, KeeperRequest, MOST_SOCKETS};
use crate::sys::SocketKind;

/// Sockets of the first batch.
const FIRST: u8 = 2;

/// One worker's sockets in pods. Cheap to clone.
#[derive(Clone)]
pub struct SocketPool(Rc<Inner>);

struct Inner {
    stocks: RefCell<HashMap<Key, Stock>>,
    /// Batches to ask for, with their sizes.
    asks: RefCell<VecDeque<(Key, u8)>>,
    asking: Notify,
}

/// A pod, by the cookie of its network namespace, and a kind of socket.
type Key = (u64, SocketKind);

/// The sockets of one kind in one pod.
#[derive(Default)]
struct Stock {
    ready: Vec<OwnedFd>,
    waiting: VecDeque<oneshot::Sender<io::Result<OwnedFd>>>,
    /// Number of sockets that were asked for and have not come.
    coming: usize,
    /// Size of a batch: doubles while batches are used up, halves while nothing is used.
    batch: u8,
    used: bool,
}

impl SocketPool {
    /// Creates a pool that gets sockets through a channel, which it follows on the current runtime, the
    /// worker's. Errors: the channel can't be polled.
    pub fn start(channel: OwnedFd) -> io::Result<Self> {
        let channel = asynchronous(channel)?;
        let inner =
            Rc::new(Inner { stocks: RefCell::default(), asks: RefCell::default(), asking: Notify::new() });
        spawn_local(follow(channel, Rc::clone(&inner)));
        Ok(Self(inner))
    }

    /// Takes a socket in a pod, at once if one is ready. Errors: the keeper can't open one, or does not have
    /// the pod.
    pub async fn take_socket(&self, pod: u64, kind: SocketKind) -> io::Result<OwnedFd> {
        let key = (pod, kind);
        let wait = {
            let mut stocks = self.0.stocks.borrow_mut();
            let stock = stocks.entry(key).or_default();
            stock.used = true;
            match stock.ready.pop() {
                Some(socket) => {
                    if stock.ready.len() + stock.coming < usize::from(stock.batch) / 2 {
                        stock.batch = (stock.batch * 2).clamp(FIRST, MOST_SOCKETS);
                        self.ask(key, stock);
                    }
                    return Ok(socket);
                }
                None => {
                    let (sender, wait) = oneshot::channel();
                    stock.waiting.push_back(sender);
                    if stock.coming < stock.waiting.len() {
                        stock.batch = (stock.batch * 2).clamp(FIRST, MOST_SOCKETS);
                        self.ask(key, stock);
                    }
                    wait
                }
            }
        };
        wait.await.unwrap_or_else(|_| Err(io::ErrorKind::NotConnected.into()))
    }

    /// Gives back a socket that can be used again. It is closed if the pod is gone, or has `MOST_SOCKETS`
    /// ready.
    pub fn put_back(&self, pod: u64, kind: SocketKind, socket: OwnedFd) {
        if let Some(stock) = self.0.stocks.borrow_mut().get_mut(&(pod, kind))
            && stock.ready.len() < MOST_SOCKETS.into()
        {
            stock.ready.push(socket);
        }
    }

    fn ask(&self, key: Key, stock: &mut Stock) {
        stock.coming += usize::from(stock.batch);
        self.0.asks.borrow_mut().push_back((key, stock.batch));
        self.0.asking.notify_one();
    }

    /// Closes sockets that are not used.
    pub fn trim_unused(&self) {
        self.0.stocks.borrow_mut().retain(|_, stock| {
            if !std::mem::take(&mut stock.used) {
                stock.batch /= 2;
                stock.ready.truncate(stock.batch.into());
                stock.ready.shrink_to_fit();
            }
            stock.batch > 0 || stock.coming > 0 || !stock.waiting.is_empty()
        });
    }

    /// Closes the sockets of a pod that is gone.
    pub fn close_pod_sockets(&self, pod: u64) {
        self.0.stocks.borrow_mut().retain(|(of, _), _| *of != pod);
    }
}

/// Asks for one batch after another.
async fn follow(channel: UnixDatagram, inner: Rc<Inner>) {
    let mut backoff = ExhaustionBackoff::default();
    loop {
        let next = inner.asks.borrow_mut().pop_front();
        let Some((key, count)) = next else {
            inner.asking.notified().await;
            continue;
        };
        let answer = ask(&channel, key, count).await;
        let none = answer.as_ref().is_ok_and(Vec::is_empty);
        inner.deliver(key, count, answer);
        // For instance, this process has as many files open as it may.
        if none {
            tracing::warn!("no room for the sockets that the keeper opened; trying again after a pause");
            backoff.sleep_and_double().await;
        } else {
            backoff = ExhaustionBackoff::default();
        }
    }
}

async fn ask(channel: &UnixDatagram, (pod, kind): Key, count: u8) -> io::Result<Vec<OwnedFd>> {
    send_request(channel, &KeeperRequest::Sockets(pod, kind, count)).await?;
    let (record, sockets) = receive_message(channel).await?;
    match KeeperAnswer::decode(&record) {
        Some(KeeperAnswer::Done) => Ok(sockets),
        Some(KeeperAnswer::Refused(reason)) => Err(io::Error::other(reason)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Inner {
    fn deliver(&self, key: Key, count: u8, answer: io::Result<Vec<OwnedFd>>) {
        let mut stocks = self.stocks.borrow_mut();
        let Some(stock) = stocks.get_mut(&key) else { return };
        stock.coming = stock.coming.saturating_sub(count.into());
        match answer {
            Ok(sockets) => stock.ready.extend(sockets),
            Err(error) => {
                let again = || Err(io::Error::new(error.kind(), error.to_string()));
                stock.waiting.drain(..).for_each(|one| drop(one.send(again())));
            }
        }
        // Nothing is asked for again for callers that no longer wait.
        stock.waiting.retain(|one| !one.is_closed());
        while !stock.waiting.is_empty() && !stock.ready.is_empty() {
            if let (Some(one), Some(socket)) = (stock.waiting.pop_front(), stock.ready.pop()) {
                // All that are left still wait.
                drop(one.send(Ok(socket)));
            }
        }
        // Fewer came than were asked for.
        if stock.coming < stock.waiting.len() {
            stock.coming += usize::from(stock.batch);
            self.asks.borrow_mut().push_back((key, stock.batch));
            self.asking.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use tokio::task::LocalSet;

    use super::*;
    use crate::keeper::channel;

    /// A keeper that gives pipes for sockets, at most so many at a time, none in pod 404, and in pod 503 none
    /// to the first [`WITHOUT`] that ask.
    async fn keep(channel: OwnedFd, most: u8, batches: Rc<RefCell<Vec<u8>>>) {
        let channel = asynchronous(channel).unwrap();
        while let Ok((record, _)) = receive_message(&channel).await {
            let Some(KeeperRequest::Sockets(pod, _, count)) = KeeperRequest::decode(&record) else {
                panic!("not asked")
            };
            let (pipe, _) = io::pipe().unwrap();
            let most = if pod == 503 && batches.borrow().len() < WITHOUT { 0 } else { most };
            let given = vec![pipe.as_fd(); count.min(most).into()];
            let answer = match pod {
                404 => KeeperAnswer::Refused("no such pod is in the mesh".to_owned()),
                _ => KeeperAnswer::Done,
            };
            let beside = if pod == 404 { &[][..] } else { &given };
            channel::send(&channel, &answer.encode(), beside).unwrap();
            batches.borrow_mut().push(count);
        }
    }

    const WITHOUT: usize = 5;

    fn with_keeper<F: Future<Output = ()>>(
        most: u8,
        test: impl FnOnce(SocketPool, Rc<RefCell<Vec<u8>>>) -> F,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (own, its) = channel::pair().unwrap();
            let batches = Rc::default();
            spawn_local(keep(its, most, Rc::clone(&batches)));
            let test = test(SocketPool::start(own).unwrap(), batches);
            tokio::time::timeout(Duration::from_secs(10), test).await.expect("in time");
        });
    }

    #[test]
    fn batches_grow_with_use_and_go_without() {
        with_keeper(MOST_SOCKETS, async |sockets, batches| {
            for _ in 0..200 {
                sockets.take_socket(7, SocketKind::OutboundV4).await.unwrap();
            }
            assert_eq!(batches.borrow()[0], FIRST, "the first one waits for few");
            assert!(batches.borrow().len() < 40, "{batches:?}");
            let left = || sockets.0.stocks.borrow().values().map(|stock| stock.ready.len()).sum::<usize>();
            for _ in 0..8 {
                sockets.trim_unused();
            }
            assert_eq!((left(), sockets.0.stocks.borrow().len()), (0, 0));
        });
    }

    #[test]
    fn many_at_once_all_get_one_though_few_come_at_a_time() {
        with_keeper(1, async |sockets, _| {
            let takes = (0..50).map(|_| sockets.take_socket(7, SocketKind::DeliveryV6));
            let taken = futures_util::future::join_all(takes).await;
            assert!(taken.iter().all(Result::is_ok));
        });
    }

    #[test]
    fn many_that_are_given_back_are_not_all_kept() {
        with_keeper(MOST_SOCKETS, async |sockets, _| {
            let kind = SocketKind::LoopbackPacketsV4;
            let takes = (0..200).map(|_| sockets.take_socket(7, kind));
            for taken in futures_util::future::join_all(takes).await {
                sockets.put_back(7, kind, taken.unwrap());
            }
            assert!(sockets.0.stocks.borrow()[&(7, kind)].ready.len() <= MOST_SOCKETS.into());
        });
    }

    #[test]
    fn a_refusal_reaches_everybody_who_waits() {
        with_keeper(1, async |sockets, _| {
            let (one, other) = tokio::join!(
                sockets.take_socket(404, SocketKind::OutboundV4),
                sockets.take_socket(404, SocketKind::OutboundV4)
            );
            assert!(one.unwrap_err().to_string().contains("no such pod") && other.is_err());
            assert!(sockets.take_socket(7, SocketKind::OutboundV4).await.is_ok(), "others are served");
        });
    }

    #[test]
    fn where_there_is_no_room_it_is_not_asked_over_and_over() {
        with_keeper(1, async |sockets, batches| {
            let began = std::time::Instant::now();
            assert!(
                sockets.take_socket(503, SocketKind::OutboundV4).await.is_ok(),
                "served once there is room"
            );
            assert_eq!(batches.borrow().len(), WITHOUT + 1);
            assert!(began.elapsed() >= ExhaustionBackoff::FIRST * 31, "each pause is twice the one before");
        });
    }

    #[test]
    fn for_one_that_waits_no_longer_it_is_not_asked_again() {
        with_keeper(1, async |sockets, batches| {
            let taking = sockets.take_socket(503, SocketKind::OutboundV4);
            assert!(tokio::time::timeout(Duration::from_millis(1), taking).await.is_err(), "there is none");
            let waits = || sockets.0.stocks.borrow().values().any(|stock| !stock.waiting.is_empty());
            while waits() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(batches.borrow().len() < WITHOUT, "{batches:?}");
        });
    }
}
