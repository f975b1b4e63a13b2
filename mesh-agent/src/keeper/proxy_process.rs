//! The proxy's process: starts it, hands it what it needs, and handles its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel;
use super::protocol::StartMessage;

/// A proxy that lived for less is started again after a pause, which doubles each time.
const LIVED: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pause from which several are known to have died.
const MANY_PAUSE: Duration = Duration::from_millis(80);

/// Index of the enroller's channel.
const ENROLLER: usize = 0;

/// A running proxy.
pub(super) struct ProxyChild {
    child: Child,
    handle: OwnedFd,
    /// The enroller's channel, then one for each worker; none where the other end is closed.
    channels: Vec<Option<OwnedFd>>,
    started: Instant,
}

impl ProxyChild {
    /// Starts a proxy with this process's own arguments. Its standard input is the control channel. It gives
    /// up its privileges before anything else. Errors: no process or descriptors.
    pub fn start() -> io::Result<Self> {
        let (control, its_control) = channel::pair()?;
        // The link, not the path behind it: it works even after the file was replaced by a newer version.
        let mut command = Command::new("/proc/self/exe");
        command.arg("proxy").args(std::env::args_os().skip(2)).stdin(Stdio::from(its_control));
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, handle, channels: vec![Some(control)], started: Instant::now() })
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it the start message with the maps and the node's own listeners, and a channel for each worker
    /// after those. Errors: it is gone.
    pub fn send_start_message(&mut self, message: StartMessage, fds: Vec<BorrowedFd<'_>>) -> io::Result<()> {
        let pairs = (0..message.workers).map(|_| channel::pair()).collect::<io::Result<Vec<_>>>()?;
        let (own, its): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut descriptors = fds;
        descriptors.extend(its.iter().map(AsFd::as_fd));
        let control = self.channel_at(ENROLLER).ok_or(io::ErrorKind::NotConnected)?;
        channel::send(control, &message.encode(), &descriptors)?;
        self.channels.extend(own.into_iter().map(Some));
        Ok(())
    }

    /// Returns one of its channels.
    pub fn channel_at(&self, index: usize) -> Option<&OwnedFd> {
        self.channels.get(index)?.as_ref()
    }

    /// Returns the enroller's channel.
    pub fn enroller_channel(&self) -> Option<&OwnedFd> {
        self.channel_at(ENROLLER)
    }

    /// Iterates over its open channels, with their index.
    pub fn channels(&self) -> impl Iterator<Item = (usize, &OwnedFd)> {
        self.channels.iter().enumerate().filter_map(|(index, channel)| Some((index, channel.as_ref()?)))
    }

    /// Closes a channel whose other end is closed. Without the enroller's the proxy is of no use, and killed.
    pub fn handle_closed_channel(&mut self, index: usize) {
        self.channels[index] = None;
        if index == ENROLLER {
            self.signal(Signal::KILL);
        }
    }

    /// Returns a descriptor that is readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Returns how it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Returns how long it has lived.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends it a signal; none if it is gone.
    pub fn signal(&self, signal: Signal) {
        let _gone = pidfd_send_signal(&self.handle, signal);
    }
}

impl Drop for ProxyChild {
    /// Kills it: no proxy is left without a keeper.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ended = self.child.wait();
    }
}

/// Decides whether and when to start the next proxy.
#[derive(Debug, Default)]
pub(super) struct RestartBackOff {
    last: Duration,
    /// Whether a proxy got as far as asking for something.
    pub worked_once: bool,
}

impl RestartBackOff {
    /// Whether several have died soon after each other.
    pub fn is_crash_looping(&self) -> bool {
        self.last >= MANY_PAUSE
    }

    /// Returns the pause after a proxy that lived for `age`; none if another one makes no sense, since none
    /// ever worked and this one ended by itself.
    pub fn next_pause(&mut self, age: Duration, status: ExitStatus) -> Option<Duration> {
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
        let mut back_off = RestartBackOff::default();
        let mut after = |age| back_off.next_pause(age, killed).unwrap();
        assert_eq!(after(Duration::from_mins(1)), Duration::ZERO, "one that lived is started at once");
        let pauses: Vec<_> = (0..9).map(|_| after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(after(LIVED), Duration::ZERO);
    }

    #[test]
    fn one_that_can_not_start_is_not_started_again() {
        let (killed, gave_up) = (ExitStatus::from_raw(9), ExitStatus::from_raw(1 << 8));
        let mut back_off = RestartBackOff::default();
        assert_eq!(back_off.next_pause(Duration::ZERO, gave_up), None);
        assert!(back_off.next_pause(Duration::ZERO, killed).is_some());
        back_off.worked_once = true;
        assert!(back_off.next_pause(Duration::ZERO, gave_up).is_some());
    }
}
