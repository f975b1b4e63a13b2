//! Background tasks: work whose size a pod chooses, done outside of the keeper's loop, such as looking for
//! its namespace, reading its addresses, listing and closing its connections. A few threads do it, at most
//! one task per pod at a time, so that a pod that makes its own slow keeps no thread from the others.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::abort;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Threads, and bytes of stack for each.
const THREADS: usize = 4;
const STACK: usize = 256 * 1024;
/// Most tasks that wait: in all, and of one pod.
const MOST: usize = 1024;
const MOST_OF_A_POD: usize = 64;

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// A queue of tasks, each with a result of type `T`.
pub(super) struct PodTaskPool<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    come: Condvar,
    /// Readable when a task is done.
    done: OwnedFd,
}

struct State<T> {
    waiting: VecDeque<(String, Work<T>)>,
    /// The pods that a thread works for now.
    busy: Vec<String>,
    done: Vec<T>,
}

impl<T: Send + 'static> PodTaskPool<T> {
    /// Starts the threads. Errors: a thread can't be started.
    pub fn start() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let state = State { waiting: VecDeque::new(), busy: Vec::new(), done: Vec::new() };
        let (state, come) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { state, come, done: eventfd(0, flags)? });
        for _ in 0..THREADS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("errands".to_owned()).stack_size(STACK).spawn(move || {
                loop {
                    shared.do_next();
                }
            })?;
        }
        Ok(Self(shared))
    }

    /// Queues a task for a pod, by its uid. Errors: too many are queued.
    pub fn queue(&self, pod: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<(), QueueFull> {
        let mut state = self.0.state();
        let of_the_pod = state.waiting.iter().filter(|(of, _)| of == pod).count();
        if state.waiting.len() >= MOST || of_the_pod >= MOST_OF_A_POD {
            return Err(QueueFull);
        }
        state.waiting.push_back((pod.to_owned(), Box::new(work)));
        self.0.come.notify_one();
        Ok(())
    }

    /// Takes the results of finished tasks.
    pub fn take_finished(&self) -> Vec<T> {
        // Later results make it readable again.
        let _none = rustix::io::read(&self.0.done, &mut [0; 8]);
        std::mem::take(&mut self.0.state().done)
    }
}

impl<T> AsFd for PodTaskPool<T> {
    /// Readable when a task is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.done.as_fd()
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a task of a pod that no other thread works for, and runs it.
    fn do_next(&self) {
        let mut state = self.state();
        let (pod, work) = loop {
            let State { waiting, busy, .. } = &mut *state;
            let next = waiting.iter().position(|(pod, _)| !busy.contains(pod));
            if let Some(task) = next.and_then(|at| waiting.remove(at)) {
                break task;
            }
            state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.busy.push(pod.clone());
        drop(state);
        // The keeper can't do without this thread.
        let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| abort());
        let mut state = self.state();
        state.busy.retain(|busy| *busy != pod);
        state.done.push(done);
        // Another thread may have left the pod's next task to this one.
        self.come.notify_one();
        drop(state);
        let _full_is_readable = rustix::io::write(&self.done, &1_u64.to_ne_bytes());
    }
}

/// Too many tasks are queued.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too much is to be done for this pod, or for all, already")]
pub(super) struct QueueFull;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::keeper::channel::wait_readable;

    fn next(tasks: &PodTaskPool<u32>) -> Vec<u32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            wait_readable(&mut [PollFd::new(tasks, PollFlags::IN)], Duration::from_secs(1)).unwrap();
            let done = tasks.take_finished();
            if !done.is_empty() {
                return done;
            }
            assert!(Instant::now() < deadline, "nothing is done");
        }
    }

    #[test]
    fn a_slow_pod_keeps_no_other_waiting() {
        let tasks = PodTaskPool::start().unwrap();
        let (go_on, held) = mpsc::channel::<()>();
        tasks.queue("slow", move || held.recv().map_or(1, |()| 1)).unwrap();
        let put = (0..2 * MOST_OF_A_POD).take_while(|_| tasks.queue("slow", || 2).is_ok()).count();
        // Whether or not the first one has begun.
        assert!((MOST_OF_A_POD - 1..=MOST_OF_A_POD).contains(&put), "{put}");
        for number in 10..20 {
            tasks.queue("other", move || number).unwrap();
            assert_eq!(next(&tasks), [number]);
        }
        go_on.send(()).unwrap();
        let mut done = Vec::new();
        while done.len() < put + 1 {
            done.extend(next(&tasks));
        }
        assert_eq!((done[0], done.len()), (1, put + 1), "one after the other");
    }

    #[test]
    fn what_waits_is_bounded() {
        let tasks = PodTaskPool::start().unwrap();
        let (go_on, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let wait = |held: &Arc<Mutex<mpsc::Receiver<()>>>| {
            let held = Arc::clone(held);
            move || held.lock().unwrap().recv().map_or(0, |()| 0)
        };
        let put = (0..2 * MOST).take_while(|pod| tasks.queue(&pod.to_string(), wait(&held)).is_ok()).count();
        assert!((MOST..=MOST + THREADS).contains(&put), "{put}");
        drop(go_on);
    }
}
