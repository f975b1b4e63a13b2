//! How long a connection may last, where a `DestinationRule` says so: `idleTimeout` and
//! `maxConnectionDuration`.
//!
//! Relaying costs only a mark of when bytes last moved, and that only for connections with such a bound
//! ([`ByteMeter::track_activity`]). A timer reads the mark when it fires, and is set again only then.

use std::future::Future;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use mesh_api::plan::ConnectionPool;
use socket2::Socket;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::relay::{ByteMeter, reset_on_drop};
use crate::telemetry::{ConnectionOutcome, LifetimeExpiry};

/// Silence after which a server that has got its client's FIN is taken to have sent everything.
const QUIET: Duration = Duration::from_millis(250);

/// Time that both ends have to close a connection that is over; then it is reset.
const TIME_TO_END: Duration = Duration::from_secs(5);

/// The timeouts of a connection: at least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifetimeLimits {
    idle: Option<Duration>,
    age: Option<Duration>,
}

impl LifetimeLimits {
    /// Returns a policy's timeouts; none if it has none: then a connection lasts as long as without a mesh.
    pub fn from_policy(pool: &ConnectionPool) -> Option<Self> {
        let (idle, age) = (pool.idle_timeout, pool.max_connection_duration);
        (idle.is_some() || age.is_some()).then_some(Self { idle, age })
    }

    /// Has `carry` move the bytes of a client's connection until it ends by itself or its time is over.
    ///
    /// Then the connection is closed in order, if the ends go along: what the client has sent is delivered,
    /// with a FIN behind it, and so is what the server still answers. If an end goes on for five seconds all
    /// the same, both are reset, so that nobody takes half of what was sent for all of it.
    pub async fn relay_until_timeout<F: Future<Output = ConnectionOutcome>>(
        self,
        client: TcpStream,
        meter: &ByteMeter,
        carry: impl FnOnce(TcpStream) -> F,
    ) -> ConnectionOutcome {
        // `carry` owns the client's connection; this is a second descriptor of it.
        let handle = match client.as_fd().try_clone_to_owned() {
            Ok(handle) => Socket::from(handle),
            Err(error) => {
                reset_on_drop(&client);
                return ConnectionOutcome::Broken(format!("no descriptor to end it by: {error}"));
            }
        };
        meter.track_activity();
        let mut carrying = pin!(carry(client));
        let expiry = tokio::select! {
            biased;
            outcome = &mut carrying => return outcome,
            expiry = self.over(meter) => expiry,
        };
        tokio::select! {
            biased;
            // Whatever the outcome: it ends because its time is over.
            _outcome = &mut carrying => {}
            // Dropping what is left resets it.
            () = wind_down(&handle, meter) => {}
        }
        ConnectionOutcome::Expired(expiry)
    }

    /// Returns when the time is over, and which bound was reached.
    async fn over(self, meter: &ByteMeter) -> LifetimeExpiry {
        tokio::select! {
            () = optional(self.age.map(sleep)) => LifetimeExpiry::Age(self.age.unwrap_or_default()),
            () = optional(self.idle.map(|limit| silence(limit, meter))) => {
                LifetimeExpiry::Idle(self.idle.unwrap_or_default())
            }
        }
    }
}

/// Waits for `future`, or for ever if there is none.
async fn optional(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Returns when no bytes have moved for `limit`.
async fn silence(limit: Duration, meter: &ByteMeter) {
    loop {
        let silent = meter.last_activity_or_now().elapsed();
        match limit.checked_sub(silent) {
            None | Some(Duration::ZERO) => return,
            Some(left) => sleep(left).await,
        }
    }
}

/// Ends a connection as if the client had sent its last byte, and gives both ends time to close.
async fn wind_down(client: &Socket, meter: &ByteMeter) {
    let deadline = Instant::now() + TIME_TO_END;
    // Whoever reads the socket comes to the end of what the client has sent. A client that is gone already
    // needs none of this.
    let _gone = client.shutdown(Shutdown::Read);
    while Instant::now() + QUIET < deadline {
        let answered = meter.bytes_from_and_to_client().1;
        sleep(QUIET).await;
        if meter.bytes_from_and_to_client().1 == answered {
            let _gone = client.shutdown(Shutdown::Write);
            break;
        }
    }
    tokio::time::sleep_until(deadline).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use mesh_api::plan::ConnectionPool;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::LifetimeLimits;
    use crate::fixture::{self, RelayUnderTest, run_as_worker, tcp_pair};
    use crate::relay::{self, ByteMeter, relay_sockets};
    use crate::telemetry::ConnectionOutcome;

    struct Plain;

    impl RelayUnderTest for Plain {
        type Connection = SocketAddr;

        async fn pair(application: SocketAddr) -> SocketAddr {
            application
        }

        async fn carry(to: SocketAddr, socket: TcpStream, meter: ByteMeter) -> Result<(), relay::Error> {
            let server = TcpStream::connect(to).await.unwrap();
            relay::reset_on_drop(&socket);
            relay::reset_on_drop(&server);
            relay_sockets(socket, server, &meter).await
        }
    }

    #[test]
    fn a_connection_whose_time_is_over_ends_in_order() {
        fixture::a_connection_whose_time_is_over_ends_in_order::<Plain>();
    }

    #[test]
    fn a_server_that_sends_beyond_the_max_duration_is_reset() {
        fixture::a_server_that_sends_beyond_the_max_duration_is_reset::<Plain>();
    }

    #[test]
    fn a_client_hears_of_the_end_whatever_its_server_does() {
        run_as_worker(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = listener.local_addr().unwrap();
            let idle_timeout = Some(Duration::from_millis(100));
            let pool = ConnectionPool { idle_timeout, ..ConnectionPool::default() };
            let (mut application, socket) = tcp_pair().await;
            application.write_all(b"x").await.unwrap();
            let meter = ByteMeter::default();
            let carry = |socket| async { Plain::carry(to, socket, meter.clone()).await.into() };
            let bound =
                LifetimeLimits::from_policy(&pool).unwrap().relay_until_timeout(socket, &meter, carry);
            let ends = async {
                // It reads nothing and closes nothing.
                let (mut server, _) = listener.accept().await.unwrap();
                assert_eq!(application.read(&mut [0]).await.unwrap(), 0, "a FIN");
                let mut came = [0; 2];
                assert_eq!(server.read(&mut came).await.unwrap(), 1);
                assert_eq!(server.read(&mut came).await.unwrap(), 0, "a FIN");
                drop(server);
            };
            let (outcome, ()) = tokio::join!(bound, ends);
            assert!(matches!(outcome, ConnectionOutcome::Expired(_)));
        });
    }

    #[test]
    fn where_nothing_is_said_a_connection_has_no_end() {
        assert_eq!(LifetimeLimits::from_policy(&ConnectionPool::default()), None);
    }
}
