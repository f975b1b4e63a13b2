//! The proxy as a process: started, given what it needs, and seen off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel;
use super::protocol;

/// A proxy that lived for less is started again only after a pause, which doubles each time.
const LIVED: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A proxy that runs.
pub(super) struct Process {
    child: Child,
    handle: OwnedFd,
    /// The enroller's channel.
    pub control: OwnedFd,
    /// A channel for each worker, as long as it has an other end.
    pub workers: Vec<Option<OwnedFd>>,
    started: Instant,
}

/// What a proxy is handed first.
pub(super) struct Greeting<'a> {
    pub words: protocol::Greeting,
    pub maps: Vec<BorrowedFd<'a>>,
    pub doors: Vec<BorrowedFd<'a>>,
}

impl Process {
    /// Starts one with this process's own arguments. Its standard input is the control channel. Privileges are its own
    /// to give up: it does so before anything else.
    pub fn start() -> io::Result<Self> {
        let (control, its_control) = channel::pair()?;
        // The link, not the path behind it: it holds even after the file has been replaced by a newer version.
        let mut command = Command::new("/proc/self/exe");
        command.arg("proxy").args(std::env::args_os().skip(2)).stdin(Stdio::from(its_control));
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, handle, control, workers: Vec::new(), started: Instant::now() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Hands over what it works with: the maps, the node's own listeners, and a channel for each worker, in this order.
    pub fn greet(&mut self, greeting: Greeting<'_>) -> io::Result<()> {
        let pairs = (0..greeting.words.workers).map(|_| channel::pair()).collect::<io::Result<Vec<_>>>()?;
        let (own, its): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut descriptors = greeting.maps;
        descriptors.extend(greeting.doors);
        descriptors.extend(its.iter().map(AsFd::as_fd));
        channel::send(&self.control, &greeting.words.encode(), &descriptors)?;
        self.workers = own.into_iter().map(Some).collect();
        Ok(())
    }

    /// Readable when it has ended.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// How long it has lived.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells it something. One that is gone does not hear it.
    pub fn signal(&self, signal: Signal) {
        let _gone = pidfd_send_signal(&self.handle, signal);
    }
}

impl Drop for Process {
    /// None is left behind without a keeper.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ended = self.child.wait();
    }
}

/// When to start the next proxy.
#[derive(Debug, Default)]
pub(super) struct BackOff(Duration);

impl BackOff {
    /// The pause after one that lived so long.
    pub fn after(&mut self, age: Duration) -> Duration {
        self.0 = match (age >= LIVED, self.0) {
            (true, _) => Duration::ZERO,
            (false, Duration::ZERO) => FIRST_PAUSE,
            (false, last) => (last * 2).min(LONGEST_PAUSE),
        };
        self.0
    }
}

/// How a process ended, for the log.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), _) => format!("exit status {code}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_keeps_dying_is_started_ever_more_seldom() {
        let mut back_off = BackOff::default();
        assert_eq!(
            back_off.after(Duration::from_mins(1)),
            Duration::ZERO,
            "one that lived is started at once"
        );
        let pauses: Vec<_> = (0..9).map(|_| back_off.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(back_off.after(LIVED), Duration::ZERO);
    }
}
