//! From whoever has something to say to the output: lines are gathered, and a thread of its own writes them.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::line::{LONGEST_LINE, Line};
use crate::repeats::{Fate, Repeats, Source};

/// What may wait to be written. As much again is being written. A line of the access log is about 400 bytes.
const MOST_BYTES: usize = 2 << 20;
const MOST_LINES: u64 = 16 * 1024;

/// How long the end waits for an output that takes no more (a full pipe that nobody reads).
const LAST_WRITE: Duration = Duration::from_secs(1);

/// How often it is looked for lines whose second is over, as long as there may be some.
const LOOK: Duration = Duration::from_millis(200);

/// Until an output that somebody else has made non-blocking is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A line that says how many were lost.
type Loss = Box<dyn Fn(u64) -> Line + Send>;

/// Where lines go. Nobody waits for the output: what it does not take in time is lost and counted. What waits
/// is written when the sink is dropped.
pub struct Sink(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    come: Condvar,
    /// Something was written.
    gone: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: String,
    lines: u64,
    repeats: Repeats,
    /// All that were ever lost.
    lost: u64,
    /// Those of them that no line has told of.
    untold: u64,
    writer: State,
    /// What is counted is to be told at once.
    flushing: bool,
    /// No more lines come.
    closed: bool,
}

/// What the writer is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It looks what there is to write, or was told to.
    #[default]
    Looking,
    /// It waits for a line, and has to be woken for it.
    Idle,
    /// It writes what it has taken.
    Writing,
    /// It is gone.
    Gone,
}

impl Sink {
    /// Starts the writer, which gathers lines for so long before it writes: waking a thread for each costs a
    /// busy node more than the line itself. After a loss there is a line of `loss`. Errors: no thread can be
    /// started.
    pub fn start(
        name: &str,
        output: impl Write + Send + 'static,
        gather: Duration,
        loss: impl Fn(u64) -> Line + Send + 'static,
    ) -> io::Result<Self> {
        /// It has a few small frames.
        const STACK: usize = 128 * 1024;
        let queue = Arc::new(Queue::default());
        let writer =
            Writer { queue: Arc::clone(&queue), output: Box::new(output), gather, loss: Box::new(loss) };
        std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || writer.run())?;
        Ok(Self(queue))
    }

    /// Takes a line.
    pub fn push(&self, line: Line) {
        self.0.lock_and_push(&line.finish());
    }

    /// Takes a line that a peer can cause at will: one for each source and second, of the rest how many there
    /// were. `line` is called only if it is written.
    pub fn push_of(&self, source: Source, line: impl FnOnce() -> Line) {
        let fate = self.0.lock().repeats.admit(source, Instant::now());
        // Made outside of the lock: the text of what is shown comes from everywhere.
        match fate {
            Fate::Written => self.push(line()),
            Fate::Kept(ticket) => {
                let line = line();
                self.0.lock().repeats.keep(&ticket, line);
            }
            Fate::Counted => {}
        }
    }

    /// Lines lost because they were not written fast enough.
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }

    /// Waits until all is written, for so long at most. False if it was not.
    pub fn flush(&self, within: Duration) -> bool {
        let mut waiting = self.0.lock();
        waiting.flushing = true;
        self.0.come.notify_one();
        let unwritten = |it: &mut Waiting| match it.writer {
            State::Gone => false,
            State::Writing => true,
            State::Looking | State::Idle => it.flushing || it.lines > 0,
        };
        let left = self.0.gone.wait_timeout_while(waiting, within, unwritten);
        !left.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.come.notify_one();
        let _in_time =
            self.0.gone.wait_timeout_while(waiting, LAST_WRITE, |waiting| waiting.writer != State::Gone);
    }
}

impl Queue {
    /// Held for no longer than it takes to copy a line. Nothing in there can panic with half of a change
    /// made.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_and_push(&self, line: &str) {
        let mut waiting = self.lock();
        waiting.push(line, 1);
        let is_idle = waiting.writer == State::Idle;
        if is_idle {
            waiting.writer = State::Looking;
        }
        drop(waiting);
        if is_idle {
            self.come.notify_one();
        }
    }

    /// Waits for something to write.
    fn wait(&self, gather: Duration) -> MutexGuard<'_, Waiting> {
        let mut waiting = self.lock();
        while waiting.has_nothing() {
            waiting.writer = State::Idle;
            waiting = if waiting.repeats.is_empty() {
                self.come.wait(waiting).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.come.wait_timeout(waiting, LOOK).unwrap_or_else(PoisonError::into_inner).0
            };
            waiting.writer = State::Looking;
            waiting.collect_counted();
        }
        if gather.is_zero() {
            return waiting;
        }
        let hurries = |waiting: &mut Waiting| !waiting.closed && !waiting.flushing;
        self.come.wait_timeout_while(waiting, gather, hurries).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Waiting {
    fn has_nothing(&self) -> bool {
        self.lines == 0 && !self.closed && !self.flushing
    }

    /// Takes a line that stands for so many.
    fn push(&mut self, line: &str, stands_for: u64) {
        if self.text.len() + line.len() > MOST_BYTES || self.lines >= MOST_LINES {
            self.lose(stands_for);
        } else {
            self.text.push_str(line);
            self.lines += 1;
        }
    }

    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.untold += lines;
    }

    fn collect_counted(&mut self) {
        let all = self.closed || self.flushing;
        for (line, count) in self.repeats.due(Instant::now(), all) {
            self.push(&line.finish(), count);
        }
    }
}

struct Writer {
    queue: Arc<Queue>,
    output: Box<dyn Write + Send>,
    gather: Duration,
    loss: Loss,
}

impl Writer {
    fn run(mut self) {
        /// After a burst the memory goes back.
        const KEPT: usize = 64 * 1024;
        let mut batch = String::new();
        while let Some(untold) = self.take(&mut batch) {
            let failed = self.write(&batch);
            // Behind what waited when there was no more room.
            let told = untold == 0 || self.write(&(self.loss)(untold).finish()) == 0;
            let mut waiting = self.queue.lock();
            waiting.lose(failed);
            waiting.untold += if told { 0 } else { untold };
            waiting.writer = State::Looking;
            drop(waiting);
            self.queue.gone.notify_all();
            batch.clear();
            batch.shrink_to(KEPT);
        }
        self.queue.lock().writer = State::Gone;
        self.queue.gone.notify_all();
    }

    /// Swaps what waits for `batch`, which is empty. Returns how many losses are to be told; none when
    /// nothing comes any more.
    fn take(&self, batch: &mut String) -> Option<u64> {
        let mut waiting = self.queue.wait(self.gather);
        waiting.collect_counted();
        if waiting.closed && waiting.lines == 0 {
            return None;
        }
        std::mem::swap(&mut waiting.text, batch);
        (waiting.lines, waiting.writer, waiting.flushing) = (0, State::Writing, false);
        Some(std::mem::take(&mut waiting.untold))
    }

    /// Writes whole lines, as many at a time as a pipe takes at once (pipe(7)). Returns how many the output
    /// did not take: it is gone, or full as a disk is.
    fn write(&mut self, text: &str) -> u64 {
        let mut rest = text;
        let mut failed = 0;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(whole_lines(rest));
            if write_all(&mut self.output, piece.as_bytes()).and_then(|()| self.output.flush()).is_err() {
                failed += piece.lines().count() as u64;
            }
            rest = after;
        }
        failed
    }
}

/// Length of the lines that fit into one write; at least one, and all lines do.
fn whole_lines(text: &str) -> usize {
    let first = &text.as_bytes()[..text.len().min(LONGEST_LINE)];
    first.iter().rposition(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1)
}

/// Like the library's, but patient with an output that somebody else who has it made non-blocking.
fn write_all(output: &mut impl Write, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        match output.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => piece = &piece[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TRY_AGAIN),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "sink/tests.rs"]
mod tests;
