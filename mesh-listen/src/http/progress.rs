//! How far a connection is, and until when it may stay there.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Limits;
use crate::{Place, Standing};

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A head is being read.
    Head,
    /// The answer is being made or sent.
    Answer,
    /// All of it is with hyper, which has yet to write the rest.
    Rest,
    /// Nothing of a next request has come.
    Idle,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    since: Instant,
}

/// A connection's progress: told by what reads and writes it, and watched by the one who ends it.
pub(super) struct Progress {
    place: Place,
    state: watch::Sender<State>,
    head: Duration,
    answer: Duration,
    idle: Duration,
}

impl Progress {
    pub fn new(place: Place, limits: &Limits) -> Self {
        let state = watch::Sender::new(State { phase: Phase::Head, since: Instant::now() });
        let idle = limits.idle.unwrap_or(limits.head);
        Self { place, state, head: limits.head, answer: limits.answer, idle }
    }

    /// Bytes have come.
    pub fn read(&self) {
        self.step(&[Phase::Idle], Phase::Head);
    }

    /// A request has come.
    pub fn head_complete(&self) {
        self.step(&[Phase::Head, Phase::Rest, Phase::Idle], Phase::Answer);
    }

    /// Nothing of the answer is left to hand over.
    pub fn body_over(&self) {
        self.step(&[Phase::Answer], Phase::Rest);
    }

    /// All that was handed over is with the kernel.
    pub fn flushed(&self) {
        self.step(&[Phase::Rest], Phase::Idle);
    }

    /// Returns when the place went to another.
    pub async fn evicted(&self) {
        self.place.evicted().await;
    }

    /// Returns when the connection has been where it is for longer than it may.
    pub async fn overdue(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let State { phase, since } = *changes.borrow_and_update();
            let may_last = match phase {
                Phase::Head => self.head,
                Phase::Answer | Phase::Rest => self.answer,
                Phase::Idle => self.idle,
            };
            // There is no error: the sender is our own.
            if timeout_at(since + may_last, changes.changed()).await.is_err() {
                return;
            }
        }
    }

    fn step(&self, from: &[Phase], to: Phase) {
        let stepped = self.state.send_if_modified(|state| {
            let steps = from.contains(&state.phase);
            if steps {
                // An answer's time goes on while the rest of it is written.
                let since = if to == Phase::Rest { state.since } else { Instant::now() };
                *state = State { phase: to, since };
            }
            steps
        });
        if stepped && to != Phase::Rest {
            self.place.stand(match to {
                Phase::Head => Standing::Unproven,
                Phase::Answer | Phase::Rest => Standing::Busy,
                Phase::Idle => Standing::Idle,
            });
        }
    }
}
