//! The log of nodemesh's programs.
//!
//! Three promises, each kept in one place, so that no caller can forget it:
//! - Nobody waits for a log. Lines go into a bounded queue ([`Sink`]), and a thread of its own writes them.
//!   What does not fit is lost and counted.
//! - Nothing that a peer says can look like a line or a field of ours ([`Line`]).
//! - What a peer can cause at will is one line for each peer, pod, port and second, with a count
//!   ([`Source`]).
//!
//! Reading order: `line`, `repeats`, `sink`, `events` (from `tracing` to lines), `program` (the log of a
//! whole program); `answer` is what programs say beside their log, to who started them.
#![forbid(unsafe_code)]

mod answer;
mod events;
mod line;
mod program;
mod repeats;
mod sink;

pub use answer::{remark, write};
pub use line::{Format, Line, escaped};
pub use program::{Error, Log, call_out, flush, log_panics, lost, start};
pub use repeats::Source;
pub use sink::Sink;
