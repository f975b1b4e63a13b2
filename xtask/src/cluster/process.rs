//! Processes that outlive the command that started them.
//!
//! A process is known by its pid and its start time together, so that a pid that the kernel has given to
//! something else meanwhile is never signalled.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// One process of the cluster, and how to start it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is: `etcd`, `node1-kubelet`.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it was started, in clock ticks since this machine was.
    pub start: u64,
    /// Its command line.
    pub command: Vec<String>,
}

impl Process {
    /// A process that was just started with `command`.
    pub fn started(name: &str, pid: u32, command: Vec<String>) -> Result<Self> {
        let pid = i32::try_from(pid).context("a pid is larger than the kernel allows")?;
        let stat = stat(pid)?.with_context(|| format!("{name} ended as soon as it was started"))?;
        Ok(Self { name: name.into(), pid, start: stat.start, command })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        matches!(stat(self.pid), Ok(Some(stat)) if stat.start == self.start && !stat.ended)
    }

    /// Kills it, if it still runs. It may take a moment to be gone.
    pub fn kill(&self) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid).context("0 is no process")?;
        match kill_process(pid, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("can't end {} (pid {})", self.name, self.pid)),
        }
    }
}

/// Reads one record a line; a line that a crash cut off is no record.
pub fn parse(records: &str) -> Vec<Process> {
    records.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// One line that `parse` reads.
pub fn record(process: &Process) -> Result<String> {
    Ok(serde_json::to_string(process)? + "\n")
}

struct Stat {
    ended: bool,
    start: u64,
}

/// What the kernel says of `pid`; none if there is no such process.
fn stat(pid: i32) -> Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    match fs::read_to_string(&path) {
        Ok(text) => parse_stat(&text).with_context(|| format!("{path} is not as proc(5) says")).map(Some),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("can't read {path}")),
    }
}

/// A process that ends while its file is read answers ESRCH.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The program's name stands in parentheses and may itself have parentheses and spaces.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    // Field 22 of the file; the state is the third.
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { ended: matches!(state, "Z" | "X"), start })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_record_survives_its_file_and_a_torn_line_is_none() {
        let process = Process {
            name: "etcd".into(),
            pid: 42,
            start: 7,
            command: vec!["etcd".into(), "--name=a b".into()],
        };
        let text = record(&process).unwrap() + "{\"name\":\"kube-api";
        assert_eq!(parse(&text), [process]);
    }

    #[test]
    fn reads_the_start_behind_a_nasty_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        assert_eq!(parse_stat(text).unwrap().start, 98765);
        assert!(parse_stat("7 (a) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1 1").unwrap().ended);
        assert!(parse_stat("nonsense").is_none());
    }

    #[test]
    fn a_pid_that_means_another_process_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let process = Process::started("sleep", child.id(), Vec::new()).unwrap();
        let other = Process { start: process.start + 1, ..process.clone() };
        other.kill().unwrap();
        assert!(!other.is_alive());
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!process.is_alive());
    }
}
