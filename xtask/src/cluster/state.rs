//! The state directory: what runs, and since when.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::layout::STATE;
use super::process::{self, Process};
use super::wait::until;

/// Closes what this process has inherited and starts `$@`. Whoever started this process may wait for the end
/// of a pipe that a daemon would hold open as long as it lives. Of shells, bash closes descriptors above 9.
const CLOSE_INHERITED: &str = "for file in /proc/self/fd/*; do fd=${file##*/}; [ \"$fd\" -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";

const RECORDS: &str = "processes.jsonl";
const TO_DIE: Duration = Duration::from_secs(10);

/// The state of the one cluster that a machine can have.
pub struct State {
    root: PathBuf,
}

impl State {
    /// The state directory, there or not.
    pub fn new() -> Self {
        Self { root: STATE.into() }
    }

    /// Waits until no other command changes the cluster; the lock goes with the value.
    ///
    /// The file is beside the directory, which comes and goes, and stays.
    pub fn lock(&self) -> Result<File> {
        let path = self.root.with_extension("lock");
        let file = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
        file.lock().with_context(|| format!("can't lock {}", path.display()))?;
        Ok(file)
    }

    /// A file or directory of it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Makes an empty one, for root only: it holds tokens.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.root)
            .and_then(|()| fs::create_dir(self.path("log")))
            .with_context(|| format!("can't make {}", self.root.display()))
    }

    /// Writes a file of it, with the directories above.
    pub fn write(&self, name: impl AsRef<Path>, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let directory = path.parent().context("a file has a directory")?;
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// Starts `command` apart from this terminal and records it; its output goes to `log/NAME.log`.
    pub fn spawn(&self, name: &str, command: &[String]) -> Result<Process> {
        let [program, arguments @ ..] = command else { bail!("{name} has no command") };
        let log = self.log(name);
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("can't write {}", log.display()))?;
        let child = without_inheritance(program, arguments)
            // `cargo run` points this at the Rust toolchain's libraries.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .current_dir("/")
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start {program}"))?;
        let process = Process::started(name, child.id(), command.to_vec())?;
        let mut records = OpenOptions::new().create(true).append(true).open(self.path(RECORDS))?;
        records.write_all(process::record(&process)?.as_bytes())?;
        Ok(process)
    }

    /// Where the output of the process `name` goes.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path("log").join(format!("{name}.log"))
    }

    /// Every process that was started, also those that ended.
    pub fn processes(&self) -> Vec<Process> {
        process::parse(&fs::read_to_string(self.path(RECORDS)).unwrap_or_default())
    }

    /// The last process of this name.
    pub fn process(&self, name: &str) -> Result<Process> {
        let mut all = self.processes();
        let Some(position) = all.iter().rposition(|process| process.name == name) else {
            all.dedup_by(|a, b| a.name == b.name);
            let names: Vec<_> = all.into_iter().map(|process| process.name).collect();
            bail!("the cluster has no {name}; it has: {}", names.join(", "));
        };
        Ok(all.swap_remove(position))
    }

    /// An error, with the end of its log, if a process of the cluster has ended.
    pub fn check(&self, process: &Process) -> Result<()> {
        ensure!(process.is_alive(), "{} ended:\n{}", process.name, self.last_lines(&process.name));
        Ok(())
    }

    fn last_lines(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Kills every process that was recorded, and waits until they are gone.
    pub fn kill_all(&self) -> Result<()> {
        let processes = self.processes();
        processes.iter().try_for_each(Process::kill)?;
        until("the cluster's processes to end", TO_DIE, || {
            Ok(processes.iter().all(|process| !process.is_alive()).then_some(()))
        })
    }
}

/// A command for `program` that gets this process's standard streams, if not told otherwise, and no other
/// descriptor.
fn without_inheritance(program: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", CLOSE_INHERITED, "bash", program]).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use rustix::fs::fstat;

    use super::*;

    #[test]
    fn a_daemon_inherits_no_descriptor_but_its_streams() {
        // Unlike the standard library's, this pipe is not closed when a program is started.
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let pipe = format!("pipe:[{}]", fstat(&read).unwrap().st_ino);
        let list = ["-l".to_owned(), "/proc/self/fd".to_owned()];
        let seen = |mut command: Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
        let mut plain = Command::new("ls");
        plain.args(&list);
        assert!(seen(plain).contains(&pipe), "nothing is inherited, and so nothing is tested");
        let apart = seen(without_inheritance("ls", &list));
        assert!(apart.contains("/proc/") && !apart.contains(&pipe), "{apart}");
    }
}
