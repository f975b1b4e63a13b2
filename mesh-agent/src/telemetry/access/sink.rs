//! From the workers to the output: lines are gathered, and a thread of its own writes them.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait to be written. A line is about 400.
const MOST_WAITING: usize = 4 << 20;

/// The writer gathers lines for so long. Waking a thread for each costs a busy node more than the line itself.
const GATHER: Duration = Duration::from_millis(50);

/// How long the end waits for an output that takes no more (a full pipe that nobody reads).
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Where lines go. What waits is written when it is dropped.
pub(super) struct Sink(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: String,
    /// No more lines come.
    closed: bool,
    /// The writer is gone.
    done: bool,
}

impl Sink {
    /// Starts the writer.
    pub(super) fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let taken_from = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&taken_from, output))?;
        Ok(Self(queue))
    }

    /// Takes a line; false if too much waits already, and the line is lost.
    pub(super) fn push(&self, line: &str) -> bool {
        let mut waiting = self.0.lock();
        if waiting.text.len() + line.len() > MOST_WAITING {
            return false;
        }
        let writer_sleeps = waiting.text.is_empty();
        waiting.text.push_str(line);
        waiting.text.push('\n');
        drop(waiting);
        if writer_sleeps {
            self.0.changed.notify_all();
        }
        true
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.changed.notify_all();
        let _in_time = self.0.changed.wait_timeout_while(waiting, LAST_WRITE, |waiting| !waiting.done);
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and swaps them for `batch`, which is empty. False after the last ones.
    fn take(&self, batch: &mut String) -> bool {
        let idle = |waiting: &mut Waiting| waiting.text.is_empty() && !waiting.closed;
        let waiting = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let gathered = self.changed.wait_timeout_while(waiting, GATHER, |waiting| !waiting.closed);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.text, batch);
        !waiting.closed
    }
}

fn write_lines(queue: &Queue, mut output: impl Write) {
    /// After a burst the memory goes back.
    const KEPT: usize = 256 * 1024;
    let mut batch = String::new();
    loop {
        let more = queue.take(&mut batch);
        // An output that is gone (a closed pipe) loses the lines and nothing else.
        let _lost = output.write_all(batch.as_bytes()).and_then(|()| output.flush());
        if !more {
            break;
        }
        batch.clear();
        batch.shrink_to(KEPT);
    }
    queue.lock().done = true;
    queue.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(piece);
            Ok(piece.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// An output that takes nothing until it is let go.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
            let _let_go = self.0.recv();
            Ok(piece.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_all_workers_arrive_whole_and_the_last_ones_too() {
        let written = Written::default();
        let sink = Sink::start(written.clone()).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let sink = &sink;
                scope.spawn(move || {
                    for line in 0..1000 {
                        assert!(sink.push(&format!("{worker}-{line}")));
                    }
                });
            }
        });
        drop(sink);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        for worker in ["0-", "1-"] {
            let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(worker)).collect();
            assert!(lines.iter().enumerate().all(|(at, line)| *line == at.to_string()));
            assert_eq!(lines.len(), 1000);
        }
    }

    #[test]
    fn an_output_that_is_stuck_loses_lines_and_holds_nobody_up() {
        let (let_go, stuck) = std::sync::mpsc::channel();
        let sink = Sink::start(Stuck(stuck)).unwrap();
        let line = "x".repeat(64 * 1024);
        let taken = (0..200).take_while(|_| sink.push(&line)).count();
        assert!((60..=130).contains(&taken), "{taken} lines of 64 KiB were taken");
        drop(let_go);
    }
}
