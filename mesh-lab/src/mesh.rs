//! The mesh's own programs: one control plane in the fabric, one agent on each node.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use mesh_api::admin::AgentStatus;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    sync::Mutex,
    time::{sleep, timeout},
};

use crate::{
    api::{Action, ProgramStatus},
    enter::Place,
    host::{During, HostError, cgroup, files},
    launch::MeshOptions,
    layout::{FABRIC, FABRIC_ADDRESSES, Layout, NodeNumber},
    node, random,
};

/// How long a program may take to end when asked: its own drain time and some.
const STOP: Duration = Duration::from_secs(15);
/// How long a fresh lab waits for its control plane and then for its agents.
const READY: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// What an agent logs when it has taken over from another.
const TOOK_OVER: &str = "took over from a predecessor";
/// Lines of a log that an error shows.
const SHOWN: usize = 15;

/// A program of the mesh, under the lab's care. It is not started again by itself: tests decide.
#[derive(Debug)]
pub struct Program {
    command: Vec<OsString>,
    place: Place,
    log: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    /// Agents that another one has taken over from and that let their connections finish.
    replaced: Vec<Child>,
    ended: Option<String>,
    starts: u32,
}

/// Why a fresh lab's mesh is not up.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// It could not be started.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It was started but does not work.
    #[error("{program} {problem}; the end of its log, {}:\n{}", log.display(), files::tail(log, SHOWN))]
    NotReady {
        /// Which.
        program: String,
        /// What is wrong with it.
        problem: String,
        /// Its log.
        log: PathBuf,
    },
}

impl Program {
    /// The control plane.
    pub fn control(layout: &Layout, options: &MeshOptions) -> Self {
        let paths = layout.control();
        let mut command = vec![options.control_binary.clone().into(), "run".into()];
        let source = prefixed("directory:", &paths.config());
        flag(&mut command, "--source", source);
        flag(&mut command, "--state-dir", paths.state());
        flag(&mut command, "--listen", "[::]:15012");
        flag(&mut command, "--metrics", "[::]:15014");
        flag(&mut command, "--trust-domain", "cluster.local");
        flag(&mut command, "--node-tokens", paths.tokens());
        flag(&mut command, "--admin-socket", paths.admin());
        if let Some(ttl) = &options.workload_cert_ttl {
            flag(&mut command, "--workload-cert-ttl", ttl);
        }
        command.extend(options.control_arguments.iter().map(Into::into));
        Self::new(command, layout.cgroup().join("control"), layout.netns(FABRIC), paths.log())
    }

    /// A node's agent.
    pub fn agent(layout: &Layout, node: &str, options: &MeshOptions) -> Self {
        let paths = layout.node(node);
        let mut command = vec![options.agent_binary.clone().into(), "run".into()];
        flag(&mut command, "--node-name", node);
        flag(&mut command, "--cgroup-root", paths.cgroup());
        flag(&mut command, "--bpf-root", paths.bpf());
        flag(&mut command, "--run-dir", paths.run());
        flag(&mut command, "--pod-source", prefixed("directory:", &paths.pods()));
        flag(&mut command, "--control", format!("https://{}:15012", FABRIC_ADDRESSES[0]));
        flag(&mut command, "--control-name", "mesh-control");
        flag(&mut command, "--control-root-cert", layout.control().root_cert());
        flag(&mut command, "--token-file", paths.token());
        flag(&mut command, "--trust-domain", "cluster.local");
        flag(&mut command, "--admin-socket", paths.admin());
        command.extend(options.agent_arguments.iter().map(Into::into));
        Self::new(command, paths.agent_cgroup(), paths.netns().to_owned(), paths.agent_log())
    }

    fn new(command: Vec<OsString>, cgroup: PathBuf, netns: PathBuf, log: PathBuf) -> Self {
        let place = Place { cgroup: Some(cgroup), netns: Some(netns), like: None, workdir: None };
        Self { command, place, log, state: Mutex::default() }
    }

    /// Does what was asked, and tells how the program is after that.
    pub async fn act(&self, action: Action) -> Result<ProgramStatus, HostError> {
        let mut state = self.state.lock().await;
        match action {
            Action::Start => self.start(&mut state)?,
            Action::Stop => stop(&mut state).await?,
            Action::Kill => kill(&mut state).await?,
            Action::Restart => {
                stop(&mut state).await?;
                self.start(&mut state)?;
            }
            Action::KillProxy => kill_children(&state)?,
            Action::Upgrade => self.upgrade(&mut state).await?,
        }
        self.describe(&mut state)
    }

    /// How the program is.
    pub async fn status(&self) -> Result<ProgramStatus, HostError> {
        self.describe(&mut *self.state.lock().await)
    }

    /// Starts another beside the one that runs, which tells it to finish; it ends by itself or when it is
    /// asked.
    async fn upgrade(&self, state: &mut State) -> Result<(), HostError> {
        reap(state)?;
        let Some(mut old) = state.child.take() else { return self.start(state) };
        let log_length = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        self.start(state)?;
        let deadline = Instant::now() + READY;
        while !files::says_since(&self.log, log_length, TOOK_OVER) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        terminate(&old);
        state.replaced.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        if !matches!(old.try_wait(), Ok(Some(_))) {
            state.replaced.push(old);
        }
        Ok(())
    }

    fn start(&self, state: &mut State) -> Result<(), HostError> {
        reap(state)?;
        if state.child.is_some() {
            return Ok(());
        }
        if let Some(cgroup) = &self.place.cgroup {
            cgroup::create(cgroup)?;
        }
        let log = files::log(&self.log)?;
        let copy = log.try_clone().during(|| "share the log".to_owned())?;
        let mut command = tokio::process::Command::from(self.place.command(&self.command));
        command.stdin(Stdio::null()).stdout(log).stderr(copy).process_group(0);
        state.child = Some(command.spawn().during(|| format!("start {}", self.command[0].display()))?);
        state.ended = None;
        state.starts += 1;
        Ok(())
    }

    fn describe(&self, state: &mut State) -> Result<ProgramStatus, HostError> {
        reap(state)?;
        let pid = state.child.as_ref().and_then(Child::id);
        let children = pid.map(children_of).unwrap_or_default();
        let (ended, starts, log) = (state.ended.clone(), state.starts, self.log.clone());
        Ok(ProgramStatus { pid, children, ended, starts, log })
    }

    /// Waits until `check` is content, which tells what is missing otherwise.
    async fn wait_until<F>(&self, program: &str, mut check: impl FnMut() -> F) -> Result<(), MeshError>
    where
        F: Future<Output = Result<(), String>>,
    {
        let deadline = Instant::now() + READY;
        let not_ready =
            |problem| MeshError::NotReady { program: program.to_owned(), problem, log: self.log.clone() };
        loop {
            let Err(missing) = check().await else { return Ok(()) };
            let status = self.status().await?;
            if let Some(ended) = status.ended {
                return Err(not_ready(format!("ended ({ended})")));
            }
            if Instant::now() > deadline {
                return Err(not_ready(format!("is not ready after {} s: {missing}", READY.as_secs())));
            }
            sleep(LOOK).await;
        }
    }
}

/// Gives each node a token, by which the control plane knows its agent.
pub fn write_tokens(layout: &Layout, nodes: &[NodeNumber]) -> Result<(), HostError> {
    let tokens = layout.control().tokens();
    files::directory(&tokens)?;
    for node in nodes.iter().map(|node| node.name()) {
        let token = random::token();
        files::secret(&tokens.join(&node), &token)?;
        files::secret(&layout.node(&node).token(), &token)?;
    }
    Ok(())
}

/// Starts the control plane; returns once its trust bundle is there for the agents to read.
pub async fn start_control(control: &Program, layout: &Layout) -> Result<(), MeshError> {
    control.act(Action::Start).await?;
    let bundle = layout.control().root_cert();
    let check =
        || async { if bundle.exists() { Ok(()) } else { Err(format!("{} is missing", bundle.display())) } };
    control.wait_until("mesh-control", check).await
}

/// Starts an agent; returns once it says that it is ready.
pub async fn start_agent(agent: &Program, node: &str, layout: &Layout) -> Result<(), MeshError> {
    agent.act(Action::Start).await?;
    let admin = layout.node(node).admin();
    let check = || async {
        let status: AgentStatus = node::get_json(&admin, "/status").await?;
        if status.ready {
            Ok(())
        } else {
            Err(status.control.error.unwrap_or_else(|| "it says so".to_owned()))
        }
    };
    agent.wait_until(&format!("mesh-agent on {node}"), check).await
}

fn reap(state: &mut State) -> Result<(), HostError> {
    let Some(child) = &mut state.child else { return Ok(()) };
    if let Some(status) = child.try_wait().during(|| "look after a program".to_owned())? {
        state.ended = Some(status.to_string());
        state.child = None;
    }
    Ok(())
}

async fn stop(state: &mut State) -> Result<(), HostError> {
    let Some(child) = &mut state.child else { return Ok(()) };
    terminate(child);
    match timeout(STOP, child.wait()).await {
        Err(_) => kill(state).await,
        Ok(status) => {
            state.ended = Some(status.during(|| "wait for a program".to_owned())?.to_string());
            state.child = None;
            Ok(())
        }
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id() {
        signal(pid, Signal::TERM);
    }
}

/// One that has ended does not hear it.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ended = kill_process(pid, signal);
    }
}

/// The processes that a process started and that run (proc(5)).
fn children_of(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process is there and has not ended (proc(5)).
fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn kill_children(state: &State) -> Result<(), HostError> {
    let children = state.child.as_ref().and_then(Child::id).map(children_of).unwrap_or_default();
    if children.is_empty() {
        let nothing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(nothing).during(|| "kill a proxy: none runs".to_owned());
    }
    children.into_iter().for_each(|child| signal(child, Signal::KILL));
    Ok(())
}

async fn kill(state: &mut State) -> Result<(), HostError> {
    let Some(child) = &mut state.child else { return Ok(()) };
    let children = child.id().map(children_of).unwrap_or_default();
    child.kill().await.during(|| "kill a program".to_owned())?;
    // What it started ends with it, a moment later.
    let deadline = Instant::now() + STOP;
    while children.iter().any(|pid| runs(*pid)) && Instant::now() < deadline {
        sleep(Duration::from_millis(1)).await;
    }
    reap(state)
}

fn flag(command: &mut Vec<OsString>, name: &str, value: impl Into<OsString>) {
    command.extend([name.into(), value.into()]);
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
