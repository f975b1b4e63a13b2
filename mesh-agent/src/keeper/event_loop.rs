//! The keeper's loop: it waits for an event, handles it at once, and waits again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::admin_listeners::AdminListeners;
use super::inherited_files::InheritedFiles;
use super::keeper_takeover::{HandoverSocket, Predecessor, Successor};
use super::pod_task_pool::PodTaskPool;
use super::pods::Pods;
use super::protocol::{KeeperAnswer, StartMessage};
use super::proxy_process::{ProxyChild, RestartBackOff};
use super::request_handler::FinishedTask;
use super::veth_connection_reset::reset_flows_and_unpin_all;
use super::{Failure, channel};
use crate::cni::plugin_server::PluginServer;
use crate::cni::{self, ConflistRepair};
use crate::config::Config;
use crate::sys::ebpf::{self, EbpfLogReader, Programs};
use crate::sys::{self, Netns, StopSignals};

/// How often the node's own addresses are read again, and memory is given back.
const TIDY_EVERY: Duration = Duration::from_secs(10);

const START_AGAIN: Duration = Duration::from_millis(200);

/// How long a relieved keeper without anything to do waits to be told to stop, so that its supervisor does
/// not start it again.
const LINGER: Duration = Duration::from_mins(1);

/// Signal that tells a proxy that another one has taken over: it finishes, and leaves the node's own
/// listeners alone.
pub const RELIEVED_SIGNAL: Signal = Signal::USR2;

/// The phase that the keeper is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A proxy is kept running.
    Serving,
    /// The keeper was told to stop: the proxy finishes, and no other is started.
    Stopping,
    /// Another keeper has taken over: the proxy finishes.
    Relieved,
    /// Another keeper has taken over, and the proxy has finished, at this time.
    Idle(Instant),
}

/// The keeper.
pub(super) struct Keeper {
    pub(super) config: Config,
    signals: StopSignals,
    /// The node's own listeners; none once relieved, so that a successor that starts again finds the
    /// addresses free.
    admin_listeners: Option<AdminListeners>,
    pub(super) pods: Pods,
    pub(super) tasks: PodTaskPool<FinishedTask>,
    lines: EbpfLogReader,
    pub(super) inherited: InheritedFiles,
    pub(super) phase: Phase,
    pub(super) process: Option<ProxyChild>,
    pub(super) back_off: RestartBackOff,
    /// When to start the next proxy.
    start_at: Option<Instant>,
    tidy_at: Instant,
    pub(super) untidy: bool,
    pub(super) uninstalled: bool,
    /// Whether the keeper was told to stop, which waits while a successor is taking over.
    told_to_stop: bool,
    pub(super) predecessor: Option<Predecessor>,
    handover: Option<HandoverSocket>,
    successor: Option<Successor>,
    pub(super) plugin_server: PluginServer,
    /// Keeps the CNI plugin in its place, if there is one on this node.
    plugin: Option<ConflistRepair>,
}

/// Sources of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Lines,
    End,
    Channel(usize),
    Tasks,
    Handover,
    Successor,
    PluginServer,
    Plugin,
}

impl Keeper {
    /// Loads the programs, takes over from an agent that runs here, and starts a proxy. Errors: something of
    /// this failed.
    pub fn start(config: Config, signals: StopSignals) -> Result<Self, Failure> {
        sys::raise_open_file_limit();
        let handover = HandoverSocket::from_config(&config);
        let mut predecessor = handover.as_ref().and_then(Predecessor::connect);
        let workers = match &predecessor {
            // Connections in a listener's queue would be lost if no worker served it.
            Some(predecessor) => predecessor.workers,
            None => u8::try_from(config.workers)?,
        };
        let listeners = predecessor.as_mut().map(|it| std::mem::take(&mut it.listeners)).unwrap_or_default();
        let admin_listeners = AdminListeners::open(&config, listeners)?;
        let inherited = predecessor.as_mut().map(|it| std::mem::take(&mut it.inherited)).unwrap_or_default();
        // The proxy starts up while the programs are loaded.
        let process = ProxyChild::start()?;
        let (root, cgroup, log) = (&config.bpf_root, &config.cgroup_root, ebpf::ebpf_log_level());
        let home = Netns::of_process(std::process::id())?.cookie();
        let (count_untouched, wanted) = (config.count_untouched, config.same_node.to_kernel_mode());
        let settings = ebpf::LoadSettings { home, workers, log, count_untouched, wanted };
        let mut programs = Programs::load(root, cgroup, &settings)?;
        let lines = programs.log_reader()?;
        programs.end_dead_proxy_exemptions()?;
        let wait_for_proxy = predecessor.is_some() || programs.has_other_layouts();
        let mut pods = Pods::new(programs, cgroup.clone(), workers)?;
        if let Some(predecessor) = &mut predecessor {
            predecessor.take_over_pods(&mut pods)?;
        }
        if !wait_for_proxy {
            pods.ensure_programs_attached()?;
        }
        let plugin_server = PluginServer::new(&config);
        let plugin = config.cni_state_dir.as_deref().map(ConflistRepair::new);
        let mut keeper = Self {
            config,
            signals,
            admin_listeners: Some(admin_listeners),
            pods,
            tasks: PodTaskPool::start()?,
            lines,
            inherited,
            phase: Phase::Serving,
            process: None,
            back_off: RestartBackOff::default(),
            start_at: None,
            tidy_at: Instant::now(),
            untidy: true,
            uninstalled: false,
            told_to_stop: false,
            predecessor,
            handover,
            successor: None,
            plugin_server,
            plugin,
        };
        if keeper.predecessor.is_none() {
            keeper.open_to_others();
        }
        keeper.equip_proxy(process)?;
        Ok(keeper)
    }

    /// Runs until nothing is left to keep. Errors: no proxy ever started, or the kernel refuses something.
    pub fn run(mut self) -> Result<(), Failure> {
        while !self.is_over() {
            self.do_what_is_due();
            for source in self.wait()? {
                self.handle(source)?;
            }
        }
        self.pods.wait_for_teardowns();
        if self.uninstalled {
            tracing::info!("the mesh is uninstalled: cleaning up");
            let removed = self.config.cni_state_dir.as_deref().map_or(Ok(()), cni::remove_plugin);
            reset_flows_and_unpin_all(&self.config.bpf_root)?;
            removed?;
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Serving | Phase::Relieved => false,
            Phase::Stopping => self.process.is_none(),
            Phase::Idle(since) => self.told_to_stop || since.elapsed() >= LINGER,
        }
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if self.start_at.is_some_and(|at| at <= now) {
            // Connections go on waiting in the queues: a proxy that died for want of memory or process ids
            // may have left none for the next one yet.
            let started =
                ProxyChild::start().map_err(Failure::from).and_then(|proxy| self.equip_proxy(proxy));
            self.start_at = started.is_err().then(|| now + START_AGAIN);
            if let Err(error) = started {
                tracing::error!(%error, "the next proxy could not be started; trying again");
            }
        }
        if self.tidy_at <= now {
            self.tidy_at = now + TIDY_EVERY;
            self.plugin.iter_mut().for_each(ConflistRepair::ensure_plugin_in_conflist);
            if self.phase == Phase::Serving
                && let Err(error) = self.pods.refresh_non_pod_cgroups()
            {
                tracing::error!(%error, "the node's own cgroups are not known: its probes are refused");
            }
            if let Err(error) = self.pods.unenrol_expired_doubts() {
                tracing::error!(%error, "pods that nobody asks for could not be let go");
            }
            if let Err(error) = self.pods.recheck_next_veths() {
                tracing::error!(%error, "how pods are connected is not told");
            }
            if std::mem::take(&mut self.untidy) {
                sys::release_code_pages_and_heap();
            } else {
                sys::release_code_pages();
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let sources = self.sources();
        let mut polled: Vec<_> =
            sources.iter().map(|(_, descriptor)| PollFd::new(descriptor, PollFlags::IN)).collect();
        let next = self.start_at.map_or(self.tidy_at, |at| at.min(self.tidy_at));
        channel::wait_readable(&mut polled, next.saturating_duration_since(Instant::now()))?;
        let come = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(sources.iter().zip(come).filter(|(_, come)| *come).map(|((source, _), _)| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut sources = vec![
            (Source::Signals, self.signals.as_fd()),
            (Source::Lines, self.lines.as_fd()),
            (Source::Tasks, self.tasks.as_fd()),
        ];
        if let Some(process) = &self.process {
            // Before its end: its last requests count.
            sources.extend(process.channels().map(|(index, it)| (Source::Channel(index), it.as_fd())));
            sources.push((Source::End, process.pidfd()));
        }
        sources.extend(self.handover.iter().filter_map(|it| Some((Source::Handover, it.descriptor()?))));
        sources.extend(self.successor.iter().map(|it| (Source::Successor, it.as_fd())));
        sources.extend(self.plugin_server.descriptors_to_poll().map(|it| (Source::PluginServer, it)));
        sources.extend(self.plugin.iter().filter_map(|it| Some((Source::Plugin, it.inotify_fd()?))));
        sources
    }

    fn handle(&mut self, source: Source) -> Result<(), Failure> {
        match source {
            Source::Signals => {
                self.told_to_stop |= self.signals.take_received();
                self.stop();
            }
            Source::Lines => self.lines.flush(),
            Source::Channel(index) => self.answer_proxy(index),
            Source::Tasks => self.answer_finished_tasks(),
            Source::End => {
                if let Some(status) = self.process.as_mut().and_then(ProxyChild::exit_status) {
                    return self.handle_proxy_exit(status);
                }
            }
            Source::Handover => self.receive_successor(),
            Source::Successor => self.answer_successor(),
            Source::PluginServer => self.receive_plugin_requests(),
            Source::Plugin => self.plugin.iter_mut().for_each(ConflistRepair::ensure_plugin_in_conflist),
        }
        Ok(())
    }

    /// Exempts a proxy from redirection and hands it what it needs.
    fn equip_proxy(&mut self, mut process: ProxyChild) -> Result<(), Failure> {
        let Some(listeners) = &self.admin_listeners else { return Ok(()) };
        self.pods.unclaim_all();
        self.pods.set_proxy_exempt(process.pid(), true)?;
        let inherited = self.inherited.descriptors();
        let message = StartMessage {
            workers: self.pods.workers,
            admin_socket: listeners.admin_socket.is_some(),
            beside: self.predecessor.is_some(),
            inherited: inherited.map(|file| file.is_some()),
        };
        let mut handed_over = self.pods.programs.proxy_map_fds()?;
        handed_over.extend(listeners.descriptors());
        handed_over.extend(inherited.into_iter().flatten());
        if let Err(error) = process.send_start_message(message, handed_over) {
            // It has ended already, which is handled elsewhere.
            tracing::debug!(%error, "proxy not greeted");
        }
        self.process = Some(process);
        Ok(())
    }

    /// Handles the end of a proxy, on purpose or not.
    fn handle_proxy_exit(&mut self, status: ExitStatus) -> Result<(), Failure> {
        let Some(process) = self.process.take() else { return Ok(()) };
        self.pods.set_proxy_exempt(process.pid(), false)?;
        if self.phase == Phase::Relieved {
            self.phase = Phase::Idle(Instant::now());
        }
        if self.phase != Phase::Serving {
            tracing::info!(%status, "the proxy has finished");
            return Ok(());
        }
        let age = process.age();
        if self.back_off.is_crash_looping() {
            // The files that they inherit may be the cause.
            self.inherited = InheritedFiles::default();
        }
        let Some(pause) = self.back_off.next_pause(age, status) else {
            return Err(format!("the proxy did not start ({status})").into());
        };
        tracing::error!(
            %status,
            ?age,
            ?pause,
            "the proxy is gone: its connections are reset, new ones wait for the next"
        );
        self.start_at = Some(Instant::now() + pause);
        Ok(())
    }

    /// Stops, if told to. Pods stay enrolled in the kernel: until an agent is back their connections are
    /// refused and not let out in plaintext. `mesh-agent cleanup` lets them go.
    fn stop(&mut self) {
        if !self.told_to_stop || self.phase != Phase::Serving || self.successor.is_some() {
            // A proxy that was relieved is finishing already.
            return;
        }
        tracing::info!("told to stop: letting connections finish");
        self.pods.close_all_listeners();
        self.plugin_server.stop_listening();
        self.plugin = None;
        self.phase = Phase::Stopping;
        self.start_at = None;
        if let Some(process) = &self.process {
            process.signal(Signal::TERM);
        }
    }

    /// Answers the CNI plugins whose pods are enrolled.
    pub(super) fn answer_waiting_plugins(&mut self) {
        self.plugin_server.answer_enrolled(|uid, cookie| self.pods.may_start(uid, cookie));
    }

    /// Handles CNI plugins' questions about pods that are about to start. The proxy asks for such a pod
    /// itself; only if a new namespace takes another's place it is told.
    fn receive_plugin_requests(&mut self) {
        for (uid, cookie) in self.plugin_server.receive_requests() {
            let channel = self.process.as_ref().and_then(ProxyChild::enroller_channel);
            if let Some(channel) = channel.filter(|_| self.pods.is_enrolled_in_other_netns(&uid, cookie)) {
                // A proxy that does not read is killed when it asks for something.
                let _unheard = channel::send(channel, &KeeperAnswer::Moved(uid).encode(), &[]);
            }
        }
        self.answer_waiting_plugins();
    }

    /// Accepts CNI plugins and successors: from here on this keeper decides.
    fn open_to_others(&mut self) {
        self.handover.iter_mut().for_each(HandoverSocket::listen);
        if self.config.cni_state_dir.is_some() {
            self.plugin_server.listen();
        }
    }

    /// Takes over pods that the predecessor has enrolled meanwhile, until that has ended.
    pub(super) fn take_over_new_pods(&mut self) {
        if let Some(predecessor) = &mut self.predecessor
            && let Err(error) = predecessor.take_over_pods(&mut self.pods)
        {
            tracing::warn!(%error, "the predecessor ended before it was relieved");
            self.predecessor = None;
            self.open_to_others();
        }
    }

    pub(super) fn handle_proxy_ready(&mut self) -> Result<(), Failure> {
        self.untidy = true;
        self.take_over_new_pods();
        self.pods.ensure_programs_attached()?;
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.send_relieved();
            self.open_to_others();
            tracing::info!("took over from a predecessor");
        }
        self.answer_waiting_plugins();
        Ok(())
    }

    fn receive_successor(&mut self) {
        let come = self.handover.as_ref().and_then(HandoverSocket::accept_successor);
        if self.phase == Phase::Serving && self.successor.is_none() && self.pods.programs.are_attached() {
            self.successor = come.map(Successor::new);
        }
    }

    fn answer_successor(&mut self) {
        let (Some(mut successor), Some(own)) = (self.successor.take(), &self.admin_listeners) else { return };
        match successor.answer_next_request(&self.pods, own, &self.inherited) {
            Ok(false) => self.successor = Some(successor),
            Ok(true) => self.be_relieved(),
            Err(error) => {
                tracing::warn!(%error, "a successor did not take over");
                self.stop();
            }
        }
    }

    fn be_relieved(&mut self) {
        tracing::info!("another agent has taken over: letting connections finish");
        self.phase = Phase::Relieved;
        self.pods.close_all_listeners();
        self.plugin_server.stop_listening();
        (self.plugin, self.start_at) = (None, None);
        self.handover = None;
        self.admin_listeners = None;
        match &self.process {
            Some(process) => process.signal(RELIEVED_SIGNAL),
            None => self.phase = Phase::Idle(Instant::now()),
        }
    }
}
