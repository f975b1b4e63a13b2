//! The proxy as a process: started, given what it needs, and seen off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel;
use super::protocol::Greeting;

/// A proxy that lived for less is started again only after a pause, which doubles each time.
const LIVED: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After this pause several have died.
const MANY_PAUSE: Duration = Duration::from_millis(80);

/// Index of the enroller's channel.
const ENROLLER: usize = 0;

/// A proxy that runs.
pub(super) struct Process {
    child: Child,
    handle: OwnedFd,
    /// The enroller's channel, then one for each worker, as long as it has an other end.
    channels: Vec<Option<OwnedFd>>,
    started: Instant,
}

impl Process {
    /// Starts one with this process's own arguments. Its standard input is the control channel. Privileges
    /// are its own to give up: it does so before anything else.
    pub fn start() -> io::Result<Self> {
        let (control, its_control) = channel::pair()?;
        // The link, not the path behind it: it holds even after the file has been replaced by a newer
        // version.
        let mut command = Command::new("/proc/self/exe");
        command.arg("proxy").args(std::env::args_os().skip(2)).stdin(Stdio::from(its_control));
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, handle, channels: vec![Some(control)], started: Instant::now() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Hands over what it works with (the maps, the node's own listeners), and a channel for each worker
    /// behind it.
    pub fn greet(&mut self, words: Greeting, handed_over: Vec<BorrowedFd<'_>>) -> io::Result<()> {
        let pairs = (0..words.workers).map(|_| channel::pair()).collect::<io::Result<Vec<_>>>()?;
        let (own, its): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut descriptors = handed_over;
        descriptors.extend(its.iter().map(AsFd::as_fd));
        let control = self.channel(ENROLLER).ok_or(io::ErrorKind::NotConnected)?;
        channel::send(control, &words.encode(), &descriptors)?;
        self.channels.extend(own.into_iter().map(Some));
        Ok(())
    }

    /// One of its channels.
    pub fn channel(&self, index: usize) -> Option<&OwnedFd> {
        self.channels.get(index)?.as_ref()
    }

    /// The enroller's.
    pub fn enroller(&self) -> Option<&OwnedFd> {
        self.channel(ENROLLER)
    }

    /// All of its channels that have another end, by their index.
    pub fn channels(&self) -> impl Iterator<Item = (usize, &OwnedFd)> {
        self.channels.iter().enumerate().filter_map(|(index, channel)| Some((index, channel.as_ref()?)))
    }

    /// Nothing more is heard on a channel. Without the enroller's a proxy is of no use.
    pub fn forget_channel(&mut self, index: usize) {
        self.channels[index] = None;
        if index == ENROLLER {
            self.signal(Signal::KILL);
        }
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

/// Whether and when to start the next proxy.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    last: Duration,
    /// A proxy got as far as asking for something.
    pub worked_once: bool,
}

impl BackOff {
    /// Whether several have died soon after each other.
    pub fn keep_dying(&self) -> bool {
        self.last >= MANY_PAUSE
    }

    /// The pause after one that lived so long and ended so; none if there is no point in another: none ever
    /// worked, and this one ended by itself.
    pub fn after(&mut self, age: Duration, status: ExitStatus) -> Option<Duration> {
        self.last = match (age >= LIVED, self.last) {
            (true, _) => Duration::ZERO,
            (false, Duration::ZERO) => FIRST_PAUSE,
            (false, last) => (last * 2).min(LONGEST_PAUSE),
        };
        (self.worked_once || status.code().is_none()).then_some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_proxy_that_keeps_dying_is_started_ever_more_seldom() {
        let killed = ExitStatus::from_raw(9);
        let mut back_off = BackOff::default();
        let mut after = |age| back_off.after(age, killed).unwrap();
        assert_eq!(after(Duration::from_mins(1)), Duration::ZERO, "one that lived is started at once");
        let pauses: Vec<_> = (0..9).map(|_| after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(after(LIVED), Duration::ZERO);
    }

    #[test]
    fn one_that_can_not_start_is_not_started_again() {
        let (killed, gave_up) = (ExitStatus::from_raw(9), ExitStatus::from_raw(1 << 8));
        let mut back_off = BackOff::default();
        assert_eq!(back_off.after(Duration::ZERO, gave_up), None);
        assert!(back_off.after(Duration::ZERO, killed).is_some());
        back_off.worked_once = true;
        assert!(back_off.after(Duration::ZERO, gave_up).is_some());
    }
}
