//! Liveness of the proxy's threads: each notes once a second that its event loop turns, and the health probe
//! asks when it last did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a loop notes that it turns.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Time without a turn after which a loop counts as stuck. A healthy loop's longest turn takes milliseconds;
/// a node that gives a thread no time for ten seconds is as good as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Tells of all loops whether they turn, without waiting for any of them.
#[derive(Clone)]
pub struct Liveness {
    since: Instant,
    stuck_after: Duration,
    loops: Arc<Mutex<Vec<Arc<Loop>>>>,
}

/// One loop's handle. Dropped without [`Heartbeat::end_in_order`], the loop counts as broken off.
pub struct Heartbeat {
    since: Instant,
    of: Arc<Loop>,
}

/// The state of a loop.
struct Loop {
    name: String,
    /// Milliseconds from the start to its last turn, or [`LEFT`] or [`BROKEN_OFF`].
    turned: AtomicU64,
}

/// The loop has ended as it should.
const LEFT: u64 = u64::MAX;

/// The loop has ended without [`Heartbeat::end_in_order`].
const BROKEN_OFF: u64 = u64::MAX - 1;

impl Default for Liveness {
    fn default() -> Self {
        Self::new(STUCK_AFTER)
    }
}

impl Liveness {
    fn new(stuck_after: Duration) -> Self {
        Self { since: Instant::now(), stuck_after, loops: Arc::default() }
    }

    /// Adds a loop, which counts as turning from now on.
    pub fn add_loop(&self, name: &str) -> Heartbeat {
        let of = Arc::new(Loop { name: name.to_owned(), turned: AtomicU64::new(0) });
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&of));
        let beat = Heartbeat { since: self.since, of };
        beat.turn();
        beat
    }

    /// Checks all loops. Errors: which loop does not turn, in words.
    pub fn check(&self) -> Result<(), String> {
        let now = milliseconds(self.since);
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let problems: Vec<_> = loops.iter().filter_map(|it| it.problem(now, self.stuck_after)).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join(", ")) }
    }
}

impl Loop {
    fn problem(&self, now: u64, stuck_after: Duration) -> Option<String> {
        match self.turned.load(Ordering::Relaxed) {
            LEFT => None,
            BROKEN_OFF => Some(format!("{} has ended", self.name)),
            turned => {
                let silent = Duration::from_millis(now.saturating_sub(turned));
                (silent > stuck_after)
                    .then(|| format!("{} has not turned its loop for {} s", self.name, silent.as_secs()))
            }
        }
    }
}

impl Heartbeat {
    /// Notes the turns of the runtime that it is called on, for ever.
    pub async fn beat_forever(&self) {
        loop {
            self.turn();
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }

    /// Notes that the loop ends as it should.
    pub fn end_in_order(self) {
        self.of.turned.store(LEFT, Ordering::Relaxed);
    }

    fn turn(&self) {
        self.of.turned.store(milliseconds(self.since), Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let broken_off = |turned| (turned != LEFT).then_some(BROKEN_OFF);
        let _left = self.of.turned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, broken_off);
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(BROKEN_OFF - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// A worker whose tasks are told what to do.
    fn worker(beat: Heartbeat, tasks: mpsc::Receiver<Box<dyn FnOnce() + Send>>) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let work = async {
                    loop {
                        match tasks.try_recv() {
                            Ok(task) => task(),
                            Err(mpsc::TryRecvError::Empty) => tokio::time::sleep(BEAT_EVERY / 100).await,
                            Err(mpsc::TryRecvError::Disconnected) => break,
                        }
                    }
                };
                tokio::select! {
                    () = beat.beat_forever() => {}
                    () = work => {}
                }
            });
            beat.end_in_order();
        })
    }

    fn wait_for(what: &str, check: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !check() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_worker_that_is_stuck_is_told_by_its_name_until_it_goes_on() {
        let liveness = Liveness::new(3 * BEAT_EVERY);
        let ((do_one, one), (do_other, other)) = (mpsc::channel(), mpsc::channel());
        let threads =
            [worker(liveness.add_loop("worker-0"), one), worker(liveness.add_loop("worker-1"), other)];
        assert_eq!(liveness.check(), Ok(()));
        let (let_go, stuck) = mpsc::channel::<()>();
        // As a write to a full pipe would, or a lock that is never given back.
        do_other.send(Box::new(move || assert!(stuck.recv().is_err()))).unwrap();
        wait_for("worker-1 is told", || liveness.check().is_err());
        let told = liveness.check().unwrap_err();
        assert!(
            told.starts_with("worker-1 has not turned its loop for ") && !told.contains("worker-0"),
            "{told}"
        );
        drop(let_go);
        wait_for("it goes on", || liveness.check().is_ok());
        drop((do_one, do_other));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(liveness.check(), Ok(()), "those that finished are missed by nobody");
    }

    #[test]
    fn a_worker_that_broke_off_is_not_alive() {
        let liveness = Liveness::default();
        drop(liveness.add_loop("worker-0"));
        assert_eq!(liveness.check(), Err("worker-0 has ended".to_owned()));
    }
}
