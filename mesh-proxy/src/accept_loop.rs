//! Step 2 of a connection (see [the crate page](crate)): accepts connections as soon as there is a
//! [slot](crate::worker_and_pod_connection_limits) for them, and pauses when the kernel can't.

use std::io;
use std::net::SocketAddr;

use mesh_listen::{ExhaustionBackoff, is_of_one_connection};
use tokio::net::{TcpListener, TcpStream};

use crate::worker_and_pod_connection_limits::{ConnectionSlot, PodConnectionLimits};

/// Result of an `accept`.
pub enum AcceptResult {
    /// A connection, the peer's address, and its slot.
    Connection(TcpStream, SocketAddr, ConnectionSlot),
    /// A connection that is over the pod's limit.
    Crowded(TcpStream),
    /// Nothing: the kernel can't accept now, for a reason that is not one connection's.
    Failed(io::Error),
}

/// Accepts connections for ever, as soon as the worker has a slot, and hands each to `handle`.
pub async fn accept_loop(
    listener: TcpListener,
    limits: PodConnectionLimits,
    mut handle: impl FnMut(AcceptResult),
) {
    let mut backoff = ExhaustionBackoff::default();
    loop {
        let worker = limits.wait_for_worker_slot().await;
        match listener.accept().await {
            Ok((socket, peer)) => {
                backoff = ExhaustionBackoff::default();
                handle(match limits.try_take_pod_slot(worker) {
                    Some(slot) => AcceptResult::Connection(socket, peer, slot),
                    None => AcceptResult::Crowded(socket),
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                handle(AcceptResult::Failed(error));
                backoff.sleep_and_double().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::worker_and_pod_connection_limits::{ConnectionLimit, LimitReached};

    #[tokio::test]
    async fn a_pod_that_has_its_connections_is_refused_and_others_are_not() {
        let worker = ConnectionLimit::new(100);
        let heard = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut clients = Vec::new();
        let pods = [2, 2].map(|most| PodConnectionLimits {
            worker: Rc::clone(&worker),
            pod: ConnectionLimit::new(most),
            from_elsewhere: None,
        });
        tokio::task::LocalSet::new()
            .run_until(async {
                for (pod, limits) in pods.iter().enumerate() {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    let address = listener.local_addr().unwrap();
                    let handled = Rc::clone(&heard);
                    let accepting = accept_loop(listener, limits.clone(), move |accepted| {
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
            let crowded =
                |(of, it): &&(usize, AcceptResult)| *of == pod && matches!(it, AcceptResult::Crowded(_));
            assert_eq!(heard.borrow().iter().filter(crowded).count(), 1, "pod {pod}");
        }
        assert!(
            pods[0].try_take_slot().is_err_and(|full| full == LimitReached::Pod),
            "a stream needs a slot as well"
        );
        heard.borrow_mut().clear();
        assert!(pods[0].try_take_slot().is_ok(), "slots are given back");
    }
}
