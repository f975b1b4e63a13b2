//! The keeper's loop: it waits for whatever comes, does it at once, and waits again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::doors::Doors;
use super::handover::{Predecessor, Successor, Threshold};
use super::pods::Pods;
use super::process::{self, BackOff, Process};
use super::protocol::{Answer, Greeting, Request};
use super::{Failure, channel};
use crate::config::Config;
use crate::sys::ebpf::{self, Lines};
use crate::sys::{self, Signals};

/// The node's own addresses are read again this often, and memory is given back.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// One that was replaced and has nothing to do any more waits so long to be told to stop, so that whoever supervises it
/// does not start it again.
const LINGER: Duration = Duration::from_mins(1);

/// The signal that tells a proxy that another one has taken over: finish, and leave the node's own listeners alone.
pub const RELIEVED: Signal = Signal::USR2;

/// What the keeper is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Keeping a proxy running.
    Serving,
    /// Told to stop: the proxy finishes, and no other is started.
    Stopping,
    /// Another keeper has taken over: the proxy finishes.
    Relieved,
    /// The same, and it has finished: nothing is left to do since then.
    Idle(Instant),
}

/// The keeper.
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(super) struct Keeper {
    config: Config,
    workers: u8,
    signals: Signals,
    doors: Doors,
    pods: Pods,
    lines: Lines,
    state: State,
    process: Option<Process>,
    back_off: BackOff,
    /// When the next proxy is started.
    start_at: Option<Instant>,
    tidy_at: Instant,
    untidy: bool,
    /// A proxy got as far as asking for something.
    worked_once: bool,
    uninstalled: bool,
    /// Told to stop, which waits as long as a successor is taking over.
    told_to_stop: bool,
    /// The programs decide. Not so at first where another agent's still do.
    pub attached: bool,
    pub predecessor: Option<Predecessor>,
    pub threshold: Option<Threshold>,
    successor: Option<Successor>,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Lines,
    End,
    Control,
    Worker(usize),
    Threshold,
    Successor,
}

impl Keeper {
    pub fn new(
        config: Config,
        workers: u8,
        signals: Signals,
        doors: Doors,
        pods: Pods,
        lines: Lines,
    ) -> Self {
        Self {
            config,
            workers,
            signals,
            doors,
            pods,
            lines,
            state: State::Serving,
            process: None,
            back_off: BackOff::default(),
            start_at: None,
            tidy_at: Instant::now(),
            untidy: true,
            worked_once: false,
            uninstalled: false,
            told_to_stop: false,
            attached: false,
            predecessor: None,
            threshold: None,
            successor: None,
        }
    }

    /// Runs until there is nothing left to keep. Errors: no proxy ever started, or the kernel refuses.
    pub fn run(mut self) -> Result<(), Failure> {
        while !self.is_over() {
            self.do_what_is_due()?;
            for source in self.wait()? {
                self.handle(source)?;
            }
        }
        if self.uninstalled {
            tracing::info!("the mesh is uninstalled: cleaning up");
            ebpf::unpin_all(&self.config.bpf_root)?;
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.state {
            State::Serving | State::Relieved => false,
            State::Stopping => self.process.is_none(),
            State::Idle(since) => self.told_to_stop || since.elapsed() >= LINGER,
        }
    }

    fn do_what_is_due(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            let process = Process::start()?;
            self.greet(process)?;
        }
        if self.tidy_at <= now {
            self.tidy_at = now + TIDY_EVERY;
            if self.state == State::Serving
                && let Err(error) = self.pods.learn_node_addresses()
            {
                tracing::error!(%error, "the node's own addresses are not known: its probes are refused");
            }
            if std::mem::take(&mut self.untidy) {
                sys::give_back_unused();
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let sources = self.sources();
        let mut polled: Vec<_> = sources
            .iter()
            .map(|(_, descriptor)| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
            .collect();
        let next = self.start_at.map_or(self.tidy_at, |at| at.min(self.tidy_at));
        let pause = next.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let come = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(sources.iter().zip(come).filter(|(_, come)| *come).map(|((source, _), _)| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut sources = vec![(Source::Signals, self.signals.as_fd()), (Source::Lines, self.lines.as_fd())];
        if let Some(process) = &self.process {
            sources.extend([(Source::Control, process.control.as_fd()), (Source::End, process.end())]);
            let workers = process.workers.iter().enumerate();
            sources.extend(
                workers.filter_map(|(index, it)| Some((Source::Worker(index), it.as_ref()?.as_fd()))),
            );
        }
        sources.extend(self.threshold.iter().filter_map(|it| Some((Source::Threshold, it.descriptor()?))));
        sources.extend(self.successor.iter().map(|it| (Source::Successor, it.as_fd())));
        sources
    }

    fn handle(&mut self, source: Source) -> Result<(), Failure> {
        match source {
            Source::Signals if self.signals.have_come() => {
                self.told_to_stop = true;
                self.stop();
            }
            Source::Signals => {}
            Source::Lines => self.lines.flush(),
            Source::Control => self.answer(None),
            Source::Worker(index) => self.answer(Some(index)),
            Source::End => {
                if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                    return self.bury(status);
                }
            }
            Source::Threshold => self.receive_successor(),
            Source::Successor => self.answer_successor(),
        }
        Ok(())
    }

    /// Hands a proxy what it needs, from when on it is exempt.
    pub fn greet(&mut self, mut process: Process) -> Result<(), Failure> {
        self.pods.unclaim();
        self.pods.exempt(process.id())?;
        let words = Greeting {
            workers: self.workers,
            admin_socket: self.doors.admin_socket.is_some(),
            beside: self.predecessor.is_some(),
        };
        let (maps, doors) = (self.pods.handed_over()?, self.doors.descriptors());
        if let Err(error) = process.greet(process::Greeting { words, maps, doors }) {
            // It has ended already, and will be seen off for that.
            tracing::debug!(%error, "proxy not greeted");
        }
        self.process = Some(process);
        Ok(())
    }

    /// The proxy has ended, on purpose or not.
    fn bury(&mut self, status: ExitStatus) -> Result<(), Failure> {
        let Some(process) = self.process.take() else { return Ok(()) };
        self.pods.forget_proxy(process.id())?;
        let (how, age) = (process::describe(status), process.age());
        match self.state {
            State::Relieved => self.state = State::Idle(Instant::now()),
            State::Serving | State::Stopping | State::Idle(_) => {}
        }
        if self.state != State::Serving {
            tracing::info!(how, "the proxy has finished");
            return Ok(());
        }
        if !self.worked_once && status.code().is_some() {
            return Err(format!("the proxy did not start ({how})").into());
        }
        let pause = self.back_off.after(age);
        tracing::error!(
            how,
            ?age,
            ?pause,
            "the proxy is gone: its connections are reset, new ones wait for the next"
        );
        self.start_at = Some(Instant::now() + pause);
        Ok(())
    }

    /// Told to stop. Pods stay enrolled in the kernel: until an agent is back their mesh traffic is refused and not let
    /// out in plaintext. `mesh-agent cleanup` lets them go.
    fn stop(&mut self) {
        if self.state != State::Serving || self.successor.is_some() {
            // A proxy that was relieved is finishing already.
            return;
        }
        tracing::info!("told to stop: letting connections finish");
        self.pods.close_listeners();
        self.state = State::Stopping;
        self.start_at = None;
        if let Some(process) = &self.process {
            process.signal(Signal::TERM);
        }
    }

    /// Answers one request of the proxy. One that asks for what is no request is not to be trusted with anything: it is
    /// ended, and another one is started.
    fn answer(&mut self, worker: Option<usize>) {
        let Some(process) = &self.process else { return };
        let channel = match worker {
            None => Some(&process.control),
            Some(index) => process.workers.get(index).and_then(Option::as_ref),
        };
        let Some(channel) = channel else { return };
        let request: io::Result<Request> = match channel::receive(channel) {
            Ok(Some((record, _))) => Request::decode(&record).ok_or(io::ErrorKind::InvalidData.into()),
            // It is ending; that is heard of elsewhere.
            Ok(None) => return self.forget_channel(worker),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
        };
        let answered = request.and_then(|request| self.act(&request, worker));
        if let (Err(error), Some(process)) = (answered, &self.process) {
            tracing::error!(%error, "the proxy asks for what is no request, or hears no answers: ending it");
            process.signal(Signal::KILL);
        }
    }

    /// Nothing more is heard on a channel. Without the enroller's a proxy is of no use.
    fn forget_channel(&mut self, worker: Option<usize>) {
        let Some(process) = &mut self.process else { return };
        match worker {
            Some(index) => process.workers[index] = None,
            None => process.signal(Signal::KILL),
        }
    }

    fn act(&mut self, request: &Request, worker: Option<usize>) -> io::Result<()> {
        self.worked_once = true;
        let refused = |error: &dyn std::error::Error| Answer::Refused(error.to_string());
        let answer = match request {
            Request::Sockets(pod, kind, count) => return self.give_sockets(*pod, *kind, *count, worker),
            _ if self.state == State::Relieved => Answer::Refused("another keeper decides now".to_owned()),
            // Nobody would take connections from its listeners.
            Request::Enrol(_) if self.state != State::Serving => Answer::NotYet,
            Request::Enrol(claim) => {
                self.untidy = true;
                self.follow_predecessor();
                // As long as another keeper decides, it is the one that takes pods in.
                match self.pods.enrol(claim, self.predecessor.is_some()) {
                    Err(error) => refused(&error),
                    Ok((answer, listeners)) => {
                        return reply(self.process.as_ref(), worker, &answer, &listeners);
                    }
                }
            }
            Request::Dismiss(pod) => {
                self.pods.dismiss(*pod).map_or_else(|it| refused(&it), |()| Answer::Done)
            }
            Request::Retain => self.pods.retain().map_or_else(|it| refused(&it), |()| Answer::Done),
            Request::Destroy(pod, connection) => match self.pods.destroy(*pod, connection) {
                Ok(true) => Answer::Done,
                Ok(false) => Answer::Gone,
                Err(error) => refused(&error),
            },
            Request::Ready => self.proxy_is_ready(),
            Request::Uninstalled => {
                self.uninstalled = true;
                Answer::Done
            }
        };
        reply(self.process.as_ref(), worker, &answer, &[])
    }

    fn give_sockets(
        &mut self,
        pod: u64,
        kind: sys::SocketKind,
        count: u8,
        worker: Option<usize>,
    ) -> io::Result<()> {
        match self.pods.sockets(pod, kind, count) {
            Err(error) => reply(self.process.as_ref(), worker, &Answer::Refused(error.to_string()), &[]),
            Ok(sockets) => {
                let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                // No more than were asked for.
                let answer = Answer::Sockets(u8::try_from(sockets.len()).unwrap_or(count));
                reply(self.process.as_ref(), worker, &answer, &descriptors)
            }
        }
    }

    /// Gets what the predecessor has enrolled meanwhile. One that has ended has nothing more to say.
    fn follow_predecessor(&mut self) {
        if let Some(predecessor) = &mut self.predecessor
            && let Err(error) = predecessor.hand_over_pods(&mut self.pods)
        {
            tracing::warn!(%error, "the predecessor ended before it was relieved");
            self.predecessor = None;
            self.open_threshold();
        }
    }

    fn proxy_is_ready(&mut self) -> Answer {
        self.untidy = true;
        self.follow_predecessor();
        if !self.attached {
            if let Err(error) = self.pods.attach() {
                return Answer::Refused(error.to_string());
            }
            self.attached = true;
        }
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.relieve();
            self.open_threshold();
            tracing::info!("took over from a predecessor");
        }
        Answer::Done
    }

    /// Lets a successor in from now on.
    pub fn open_threshold(&mut self) {
        if let Some(threshold) = &mut self.threshold
            && let Err(error) = threshold.open()
        {
            let path = threshold.path().display();
            tracing::warn!(%path, %error, "no successor can take over from this agent without a gap");
        }
    }

    fn receive_successor(&mut self) {
        let come = self.threshold.as_ref().and_then(Threshold::accept);
        if self.state == State::Serving && self.successor.is_none() && self.attached {
            self.successor = come.map(Successor::new);
        }
    }

    fn answer_successor(&mut self) {
        let Some(mut successor) = self.successor.take() else { return };
        match successor.answer(&self.pods, &self.doors, self.workers) {
            Ok(false) => self.successor = Some(successor),
            Ok(true) => self.be_relieved(),
            Err(error) => {
                tracing::warn!(%error, "a successor did not take over");
                if self.told_to_stop {
                    self.stop();
                }
            }
        }
    }

    fn be_relieved(&mut self) {
        tracing::info!("another agent has taken over: letting connections finish");
        self.state = State::Relieved;
        self.pods.close_listeners();
        self.start_at = None;
        self.threshold = None;
        match &self.process {
            Some(process) => process.signal(RELIEVED),
            None => self.state = State::Idle(Instant::now()),
        }
    }
}

fn reply(
    process: Option<&Process>,
    worker: Option<usize>,
    answer: &Answer,
    beside: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let process = process.ok_or_else(gone)?;
    let channel: &OwnedFd = match worker {
        None => &process.control,
        Some(index) => process.workers.get(index).and_then(Option::as_ref).ok_or_else(gone)?,
    };
    match channel::send(channel, &answer.encode(), beside) {
        // It has ended; that is heard of elsewhere.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
