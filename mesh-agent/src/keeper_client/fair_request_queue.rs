//! The requests to the keeper, ordered so that no pod keeps others waiting: a few of each pod at a time, by
//! turns.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::client::{AnswerWithFds, QueuedRequest};
use crate::keeper::protocol::KeeperRequest;

/// Most requests without an answer, so that all answers fit into the channel, and most of these for one pod.
const MOST: usize = 64;
const MOST_OF_A_POD: usize = 4;

/// What a request is about; one line of requests each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum QueueKey {
    /// A pod that may not be in the mesh yet.
    Uid(String),
    /// A pod by its network namespace.
    Netns(u64),
    /// All pods.
    All,
}

/// Requests that wait to be sent, and those that wait for their answers.
#[derive(Default)]
pub(super) struct FairRequestQueue {
    lines: HashMap<QueueKey, Line>,
    /// Lines with a request that may be sent.
    turns: VecDeque<QueueKey>,
    asked: HashMap<u32, (QueueKey, oneshot::Sender<AnswerWithFds>)>,
    last: u32,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<QueuedRequest>,
    asked: usize,
    has_turn: bool,
}

impl QueueKey {
    /// Returns what a request is about.
    pub fn of_request(request: &KeeperRequest) -> Self {
        match request {
            KeeperRequest::Enrol(claim) => Self::Uid(claim.uid().to_owned()),
            KeeperRequest::Unenrol(netns)
            | KeeperRequest::Destroy(netns, _)
            | KeeperRequest::List(netns)
            | KeeperRequest::PreexistingJudged(netns)
            | KeeperRequest::LetStart(netns)
            | KeeperRequest::Sockets(netns, ..) => Self::Netns(*netns),
            KeeperRequest::UnenrolUnclaimed
            | KeeperRequest::Ready
            | KeeperRequest::Uninstalled
            | KeeperRequest::WritePluginState(_)
            | KeeperRequest::Bequeath(_) => Self::All,
        }
    }
}

impl FairRequestQueue {
    /// Queues a request.
    pub fn push(&mut self, key: QueueKey, call: QueuedRequest) {
        let line = self.lines.entry(key.clone()).or_default();
        line.waiting.push_back(call);
        Self::give_turn(&mut self.turns, line, key);
    }

    /// Returns the next request to send, with its id and the descriptor beside it, if one may be sent
    /// now.
    pub fn take_next_to_send(&mut self) -> Option<(u32, KeeperRequest, Option<Arc<OwnedFd>>)> {
        if self.asked.len() >= MOST {
            return None;
        }
        let key = self.turns.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        line.has_turn = false;
        let QueuedRequest { request, beside, answer } = line.waiting.pop_front()?;
        line.asked += 1;
        Self::give_turn(&mut self.turns, line, key.clone());
        self.last = self.last.wrapping_add(1);
        self.asked.insert(self.last, (key, answer));
        Some((self.last, request, beside))
    }

    /// Returns who waits for the answer with this id; none if nobody does.
    pub fn take_waiter(&mut self, request_id: u32) -> Option<oneshot::Sender<AnswerWithFds>> {
        let (key, answer) = self.asked.remove(&request_id)?;
        if let Some(line) = self.lines.get_mut(&key) {
            line.asked -= 1;
            Self::give_turn(&mut self.turns, line, key.clone());
            if line.asked == 0 && line.waiting.is_empty() {
                self.lines.remove(&key);
            }
        }
        Some(answer)
    }

    fn give_turn(turns: &mut VecDeque<QueueKey>, line: &mut Line, key: QueueKey) {
        if !line.has_turn && !line.waiting.is_empty() && line.asked < MOST_OF_A_POD {
            line.has_turn = true;
            turns.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(queue: &mut FairRequestQueue, pod: u64) {
        let (answer, _) = oneshot::channel();
        let call = QueuedRequest { request: KeeperRequest::List(pod), beside: None, answer };
        queue.push(QueueKey::of_request(&call.request), call);
    }

    fn sent(queue: &mut FairRequestQueue) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        while let Some((request_id, KeeperRequest::List(pod), _)) = queue.take_next_to_send() {
            all.push((request_id, pod));
        }
        all
    }

    #[test]
    fn a_pod_with_much_to_ask_keeps_no_other_waiting() {
        let mut queue = FairRequestQueue::default();
        (0..1000).for_each(|_| put(&mut queue, 7));
        put(&mut queue, 8);
        let first = sent(&mut queue);
        let pods: Vec<_> = first.iter().map(|(_, pod)| *pod).collect();
        assert_eq!(pods, [7, 8, 7, 7, 7], "by turns, and no more than so many");
        assert!(sent(&mut queue).is_empty());
        assert!(
            queue.take_waiter(first[0].0).is_some() && queue.take_waiter(first[0].0).is_none(),
            "one answer each"
        );
        assert_eq!(sent(&mut queue).len(), 1);
        (100..300).for_each(|pod| put(&mut queue, pod));
        assert_eq!(sent(&mut queue).len(), MOST - 5);
    }

    #[test]
    fn nothing_is_left_of_what_is_done() {
        let mut queue = FairRequestQueue::default();
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
            assert!(sent.iter().all(|(request_id, _)| queue.take_waiter(*request_id).is_some()));
        }
        assert_eq!((done, queue.lines.len(), queue.turns.len(), queue.asked.len()), (900, 0, 0, 0));
    }
}
