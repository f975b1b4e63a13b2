//! The requests to the keeper, ordered so that no pod keeps others waiting: a few of each pod at a time, by
//! turns.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::control::{Answered, Call};
use crate::keeper::protocol::KeeperRequest;

/// Most requests without an answer, so that all answers fit into the channel, and most of these for one pod.
const MOST: usize = 64;
const MOST_OF_A_POD: usize = 4;

/// What a request is about; one line of requests each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A pod that may not be in the mesh yet.
    Uid(String),
    /// A pod by its network namespace.
    Netns(u64),
    /// All pods.
    All,
}

/// Requests that wait to be sent, and those that wait for their answers.
#[derive(Default)]
pub(super) struct RequestQueue {
    lines: HashMap<Key, Line>,
    /// Lines with a request that may be sent.
    turns: VecDeque<Key>,
    asked: HashMap<u32, (Key, oneshot::Sender<Answered>)>,
    last: u32,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Call>,
    asked: usize,
    has_turn: bool,
}

impl Key {
    /// Returns what a request is about.
    pub fn of(request: &KeeperRequest) -> Self {
        match request {
            KeeperRequest::Enrol(claim) => Self::Uid(claim.uid().to_owned()),
            KeeperRequest::Dismiss(netns)
            | KeeperRequest::Destroy(netns, _)
            | KeeperRequest::List(netns)
            | KeeperRequest::Settled(netns)
            | KeeperRequest::LetStart(netns)
            | KeeperRequest::Sockets(netns, ..) => Self::Netns(*netns),
            KeeperRequest::DismissUnclaimed
            | KeeperRequest::Ready
            | KeeperRequest::Uninstalled
            | KeeperRequest::WritePluginConfig(_)
            | KeeperRequest::Bequeath(_) => Self::All,
        }
    }
}

impl RequestQueue {
    /// Queues a request.
    pub fn put(&mut self, key: Key, call: Call) {
        let line = self.lines.entry(key.clone()).or_default();
        line.waiting.push_back(call);
        Self::give_turn(&mut self.turns, line, key);
    }

    /// Returns the next request to send, with its ticket and the descriptor beside it, if one may be sent
    /// now.
    pub fn next(&mut self) -> Option<(u32, KeeperRequest, Option<Arc<OwnedFd>>)> {
        if self.asked.len() >= MOST {
            return None;
        }
        let key = self.turns.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        line.has_turn = false;
        let Call { request, beside, answer } = line.waiting.pop_front()?;
        line.asked += 1;
        Self::give_turn(&mut self.turns, line, key.clone());
        self.last = self.last.wrapping_add(1);
        self.asked.insert(self.last, (key, answer));
        Some((self.last, request, beside))
    }

    /// Returns who waits for the answer with a ticket; none if nobody does.
    pub fn done(&mut self, ticket: u32) -> Option<oneshot::Sender<Answered>> {
        let (key, answer) = self.asked.remove(&ticket)?;
        if let Some(line) = self.lines.get_mut(&key) {
            line.asked -= 1;
            Self::give_turn(&mut self.turns, line, key.clone());
            if line.asked == 0 && line.waiting.is_empty() {
                self.lines.remove(&key);
            }
        }
        Some(answer)
    }

    fn give_turn(turns: &mut VecDeque<Key>, line: &mut Line, key: Key) {
        if !line.has_turn && !line.waiting.is_empty() && line.asked < MOST_OF_A_POD {
            line.has_turn = true;
            turns.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(queue: &mut RequestQueue, pod: u64) {
        let (answer, _) = oneshot::channel();
        let call = Call { request: KeeperRequest::List(pod), beside: None, answer };
        queue.put(Key::of(&call.request), call);
    }

    fn sent(queue: &mut RequestQueue) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        while let Some((ticket, KeeperRequest::List(pod), _)) = queue.next() {
            all.push((ticket, pod));
        }
        all
    }

    #[test]
    fn a_pod_with_much_to_ask_keeps_no_other_waiting() {
        let mut queue = RequestQueue::default();
        (0..1000).for_each(|_| put(&mut queue, 7));
        put(&mut queue, 8);
        let first = sent(&mut queue);
        let pods: Vec<_> = first.iter().map(|(_, pod)| *pod).collect();
        assert_eq!(pods, [7, 8, 7, 7, 7], "by turns, and no more than so many");
        assert!(sent(&mut queue).is_empty());
        assert!(queue.done(first[0].0).is_some() && queue.done(first[0].0).is_none(), "one answer each");
        assert_eq!(sent(&mut queue).len(), 1);
        (100..300).for_each(|pod| put(&mut queue, pod));
        assert_eq!(sent(&mut queue).len(), MOST - 5);
    }

    #[test]
    fn nothing_is_left_of_what_is_done() {
        let mut queue = RequestQueue::default();
        for pod in 0..100 {
            (0..9).for_each(|_| put(&mut queue, pod));
        }
        let mut done = 0;
        loop {
            let sent = sent(&mut queue);
            if sent.is_empty() {
                break;
            }
            done += sent.len();
            assert!(sent.iter().all(|(ticket, _)| queue.done(*ticket).is_some()));
        }
        assert_eq!((done, queue.lines.len(), queue.turns.len(), queue.asked.len()), (900, 0, 0, 0));
    }
}
