//! Limits connections of other nodes to one pod after their handshake: a share for each address and each
//! identity, and an end for those that are of no use.
//!
//! A connection with allowed streams open is never ended for another. One without any goes first, and before
//! all others one that never had a stream which the policy allowed.

use std::cell::Cell;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_api::identity::SpiffeId;
use mesh_listen::{Bounds, Gate, Group, Place, Standing};

/// Time for a connection to have a stream that the policy allows; without one it is ended, however often it
/// asks. A peer connects because it has a stream to open.
const SILENCE: Duration = Duration::from_secs(10);

/// How often [`SILENCE`] is checked.
const LOOK_EVERY: Duration = SILENCE;

/// The limits of connections at one pod's port 15008 on one worker.
#[derive(Clone)]
pub struct SessionLimit {
    by_address: Gate,
    by_identity: Gate,
    hasher: RandomState,
}

/// A connection's place, given back when it is dropped.
pub struct SessionPlace {
    of_address: Place,
    of_identity: Place,
    streams: Cell<usize>,
    authorized: Cell<bool>,
    standing: Cell<Standing>,
    since: Instant,
}

/// A stream of a connection, counted until it is dropped.
pub struct SessionStream(Rc<SessionPlace>);

impl SessionLimit {
    /// Creates limits of `most` connections: a quarter of them for one address, half for one identity.
    pub fn new(most: usize) -> Self {
        let share = |part: usize| Bounds { total: most, each: most.div_ceil(part) };
        Self { by_address: Gate::new(share(4)), by_identity: Gate::new(share(2)), hasher: RandomState::new() }
    }

    /// Takes a place for a peer; another connection may be told to end for it. None if all that could make
    /// room have streams open that the policy allowed, or had in the last ten seconds.
    pub fn take_or_evict(&self, address: IpAddr, identity: &SpiffeId) -> Option<Rc<SessionPlace>> {
        let of_address = self.by_address.enter(Group::of(address))?;
        let of_identity = self.by_identity.enter(Group::Other(self.hasher.hash_one(identity)))?;
        Some(Rc::new(SessionPlace {
            of_address,
            of_identity,
            streams: Cell::default(),
            authorized: Cell::default(),
            standing: Cell::new(Standing::Unproven),
            since: Instant::now(),
        }))
    }
}

impl SessionPlace {
    /// Counts a stream that the peer asks for.
    pub fn count_stream(self: &Rc<Self>) -> SessionStream {
        self.streams.set(self.streams.get() + 1);
        SessionStream(Rc::clone(self))
    }

    /// Returns why the connection is to end, once it is.
    pub async fn wait_for_end_reason(&self) -> &'static str {
        loop {
            tokio::select! {
                () = self.of_address.evicted() => return "a newcomer has its place",
                () = self.of_identity.evicted() => return "a newcomer has its place",
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Some(reason) = self.look(Instant::now()) {
                return reason;
            }
        }
    }

    /// Returns why the connection is to end, if it is.
    fn look(&self, now: Instant) -> Option<&'static str> {
        if self.streams.get() > 0 {
            return None;
        }
        if self.authorized.get() {
            // Not at once when the last stream ends, since the next one may come at once.
            self.stand(Standing::Idle);
            return None;
        }
        (now.duration_since(self.since) >= SILENCE)
            .then_some("nothing was admitted on it, and nothing is open")
    }

    fn stand(&self, standing: Standing) {
        if self.standing.replace(standing) != standing {
            self.of_address.stand(standing);
            self.of_identity.stand(standing);
        }
    }
}

impl SessionStream {
    /// Notes that the policy allowed the stream.
    pub fn mark_authorized(&self) {
        self.0.authorized.set(true);
        self.0.stand(Standing::Proven);
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn identity(name: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/app/sa/{name}").parse().unwrap()
    }

    fn is_over(session: &Rc<SessionPlace>) -> bool {
        session.wait_for_end_reason().now_or_never().is_some()
    }

    #[tokio::test]
    async fn an_address_and_an_identity_have_their_share_and_what_is_used_stays() {
        let sessions = SessionLimit::new(16);
        let used = sessions.take_or_evict([10, 0, 0, 1].into(), &identity("a")).unwrap();
        let stream = used.count_stream();
        stream.mark_authorized();
        let idle: Vec<_> =
            (0..20).map(|_| sessions.take_or_evict([10, 0, 0, 1].into(), &identity("a")).unwrap()).collect();
        assert!(!is_over(&used));
        assert_eq!(idle.iter().filter(|idle| !is_over(idle)).count(), 3, "a quarter of one address");
        let of_one: Vec<_> = (2..20)
            .map(|last| sessions.take_or_evict([10, 0, 0, last].into(), &identity("a")).unwrap())
            .collect();
        let alive = of_one.iter().chain(&idle).filter(|session| !is_over(session)).count();
        assert_eq!(alive + 1, 8, "half of one identity");
        assert!(!is_over(&used));
    }

    #[tokio::test]
    async fn where_all_is_in_use_the_newcomer_is_refused() {
        let sessions = SessionLimit::new(4);
        let held: Vec<_> = (1..=2)
            .map(|last| sessions.take_or_evict([10, 0, 0, last].into(), &identity("a")).unwrap())
            .map(|session| session.count_stream())
            .collect();
        held.iter().for_each(SessionStream::mark_authorized);
        assert!(sessions.take_or_evict([10, 0, 0, 3].into(), &identity("a")).is_none());
        assert!(sessions.take_or_evict([10, 0, 0, 3].into(), &identity("b")).is_some(), "others have theirs");
    }

    #[test]
    fn what_is_silent_or_denied_ends_and_what_was_admitted_stays() {
        let sessions = SessionLimit::new(100);
        let enter = || sessions.take_or_evict([10, 0, 0, 1].into(), &identity("a")).unwrap();
        let (silent, denied, used) = (enter(), enter(), enter());
        assert_eq!(silent.look(Instant::now()), None, "not at once");
        let asking = denied.count_stream();
        used.count_stream().mark_authorized();
        let later = Instant::now() + SILENCE;
        assert!(silent.look(later).is_some());
        assert_eq!([denied.look(later), used.look(later)], [None, None]);
        assert_eq!(used.standing.get(), Standing::Idle);
        drop(asking);
        assert!(denied.look(later).is_some(), "however lately it asked");
    }
}
