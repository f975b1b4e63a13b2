//! Room two: taking connections, with caps and without spinning.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::pause::Pause;

/// Connections that may be open at one time.
pub struct Cap {
    free: Cell<usize>,
    returned: Notify,
}

/// The caps that count for one pod's connections on one worker. The worker's lets connections wait in the listeners'
/// queues; the pod's own refuses, so that one pod can't use up what there is for all.
#[derive(Clone)]
pub struct Caps {
    /// All pods' connections together.
    pub worker: Rc<Cap>,
    /// This pod's.
    pub pod: Rc<Cap>,
}

/// A place below both caps, given back when it is dropped.
pub struct Place {
    _worker: Held,
    _pod: Held,
}

/// A place below one cap.
struct Held(Rc<Cap>);

impl Cap {
    /// A cap of so many connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(most), returned: Notify::new() })
    }

    async fn place(self: &Rc<Self>) -> Held {
        loop {
            match self.try_place() {
                Some(place) => return place,
                None => self.returned.notified().await,
            }
        }
    }

    fn try_place(self: &Rc<Self>) -> Option<Held> {
        self.free.set(self.free.get().checked_sub(1)?);
        Some(Held(Rc::clone(self)))
    }

    /// Waits until all of `most` places are free.
    pub async fn all_returned(&self, most: usize) {
        while self.free.get() < most {
            self.returned.notified().await;
        }
    }
}

impl Caps {
    /// A place; none if there are as many as may be.
    pub fn try_place(&self) -> Option<Place> {
        Some(Place { _worker: self.worker.try_place()?, _pod: self.pod.try_place()? })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.returned.notify_one();
    }
}

/// What comes of a listener.
pub enum Accepted {
    /// A connection, and its place.
    Connection(TcpStream, SocketAddr, Place),
    /// A connection that the pod has no place for.
    Crowded(TcpStream),
    /// Nothing, for a reason that is the node's and not one connection's.
    Failed(io::Error),
}

/// Accepts for ever.
pub async fn accept_loop(listener: TcpListener, caps: Caps, mut handle: impl FnMut(Accepted)) {
    let mut pause = Pause::default();
    loop {
        let worker = caps.worker.place().await;
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = Pause::default();
                handle(match caps.pod.try_place() {
                    Some(pod) => Accepted::Connection(socket, peer, Place { _worker: worker, _pod: pod }),
                    None => Accepted::Crowded(socket),
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                handle(Accepted::Failed(error));
                pause.pass().await;
            }
        }
    }
}

/// Errors that `accept` passes on from a connection that broke before it was taken (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_cap_holds_back_and_lets_on() {
        let cap = Cap::new(1);
        let first = cap.place().await;
        let waits = tokio::time::timeout(Duration::from_millis(20), cap.place()).await;
        assert!(waits.is_err(), "a second place below a cap of one");
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), cap.place())
            .await
            .expect("a place after one was returned");
    }

    #[tokio::test]
    async fn a_pod_that_has_its_connections_is_refused_and_others_are_not() {
        let worker = Cap::new(100);
        let heard = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut clients = Vec::new();
        let pods = [2, 2].map(|most| Caps { worker: Rc::clone(&worker), pod: Cap::new(most) });
        tokio::task::LocalSet::new()
            .run_until(async {
                for (pod, caps) in pods.iter().enumerate() {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    let address = listener.local_addr().unwrap();
                    let handled = Rc::clone(&heard);
                    let accepting = accept_loop(listener, caps.clone(), move |accepted| {
                        handled.borrow_mut().push((pod, accepted));
                    });
                    let _runs = tokio::task::spawn_local(accepting);
                    for _ in 0..3 {
                        clients.push(TcpStream::connect(address).await.unwrap());
                    }
                }
                let all_came = async {
                    while heard.borrow().len() < 6 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), all_came).await.unwrap();
            })
            .await;
        for pod in [0, 1] {
            let crowded = |(of, it): &&(usize, Accepted)| *of == pod && matches!(it, Accepted::Crowded(_));
            assert_eq!(heard.borrow().iter().filter(crowded).count(), 1, "pod {pod}");
        }
        assert!(pods[0].try_place().is_none(), "a stream needs a place as well");
        heard.borrow_mut().clear();
        assert!(pods[0].try_place().is_some(), "places are given back");
    }
}
