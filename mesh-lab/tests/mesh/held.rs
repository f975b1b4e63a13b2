//! A client that opens a connection and keeps it, until it is told how that ended.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};

use crate::world::{PORT, World};

/// A connection that is held open, and what its client prints.
pub struct Held {
    client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Held {
    /// One from a pod of the enrolled namespace to its server, for so many seconds at most. It carried a word
    /// already.
    pub fn open(world: &World, pod: &str, seconds: &str) -> Self {
        Self::with(world, pod, &[seconds])
    }

    /// The same with further arguments.
    pub fn with(world: &World, pod: &str, arguments: &[&str]) -> Self {
        Self::between(world, ("app", pod), ("server.app", PORT), arguments)
    }

    /// One from a pod of a namespace to a host's port, with what `hold` is to be told.
    pub fn between(world: &World, pod: (&str, &str), to: (&str, &str), arguments: &[&str]) -> Self {
        let arguments = [&["hold", to.0, to.1], arguments].concat();
        let mut command = world.client_command(pod.0, pod.1, &arguments);
        let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "held");
        Self { client, lines }
    }

    /// Waits for its end: `kept`, `closed`, `reset` or `data`, and after how many seconds.
    pub fn outcome(mut self) -> String {
        let outcome = self.lines.next().unwrap().unwrap();
        self.client.wait().unwrap();
        outcome
    }
}
