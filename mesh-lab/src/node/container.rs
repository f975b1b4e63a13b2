//! One container: its program, started again as the pod's restart policy says, probed while it runs.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use mesh_api::resource::{Pod, pod::Container};
use tokio::{
    process::Child,
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Node, asked_to_stop, environment, probe,
    sandbox::Sandbox,
    status::{Board, Ended},
};
use crate::{
    cluster::now,
    enter::Place,
    host::{During, HostError, cgroup, files},
};

/// Between a request to stop and the kill, for pods that name no time. Kubernetes' 30 s are long for a lab.
const GRACE: Duration = Duration::from_secs(5);
/// Back-off between restarts: doubled each time, forgotten once a run has lasted for [`STEADY`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_mins(1);

/// A container and all that is around it.
#[derive(Debug)]
pub struct Supervised<'a> {
    pub node: &'a Node,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub sandbox: &'a Sandbox,
    pub board: &'a Board,
    pub stopped: watch::Receiver<bool>,
}

/// Runs a container until it has ended for good.
pub async fn run(supervised: Supervised<'_>) {
    let policy = match supervised.pod.spec.restart_policy.as_str() {
        "Never" => Policy::Never,
        "OnFailure" => Policy::OnFailure,
        _ => Policy::Always,
    };
    supervised.until(policy).await;
}

/// Runs an init container until it succeeds. `false` if it never will.
pub async fn run_to_success(supervised: Supervised<'_>) -> bool {
    let never = supervised.pod.spec.restart_policy == "Never";
    supervised.until(if never { Policy::Never } else { Policy::OnFailure }).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    fn restarts(self, ended: &Ended) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !ended.is_success(),
            Self::Never => false,
        }
    }
}

impl Supervised<'_> {
    /// Whether the last run was a success.
    async fn until(&self, policy: Policy) -> bool {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let started = Instant::now();
            let ended = self.once().await;
            let success = ended.is_success();
            if *self.stopped.borrow() || !policy.restarts(&ended) {
                self.board.update(|state| state.container(&self.container.name).ended(ended));
                return success && !*self.stopped.borrow();
            }
            if started.elapsed() > STEADY {
                backoff = FIRST_BACKOFF;
            }
            let wait = format!("back-off {} s before the next start", backoff.as_secs());
            self.board.update(|state| state.container(&self.container.name).restarting(ended, wait));
            let _ = timeout(backoff, asked_to_stop(&self.stopped)).await;
            if *self.stopped.borrow() {
                return false;
            }
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// One run, from start to end. Leaves no process of it.
    async fn once(&self) -> Ended {
        let started = now();
        let cgroup = self.sandbox.container_cgroup(&self.container.name);
        let mut child = match self.start() {
            Ok(child) => child,
            Err(error) => return Ended::not_started(started, error.to_string()),
        };
        self.board.update(|state| state.container(&self.container.name).running(started.clone()));
        let target = probe::Target {
            pod: self.pod,
            container: self.container,
            pid: self.sandbox.pid(),
            cgroup: &cgroup,
            prober: &self.node.prober,
        };
        let (status, why) = tokio::select! {
            status = child.wait() => (status.ok(), None),
            why = probe::supervise(&target, self.board) => (self.terminate(&mut child).await, Some(why)),
            () = asked_to_stop(&self.stopped) => (self.terminate(&mut child).await, None),
        };
        if let Err(error) = cgroup::destroy_async(&cgroup).await {
            tracing::error!(container = self.container.name, %error, "a container left something behind");
        }
        ended(started, status, why)
    }

    fn start(&self) -> Result<Child, HostError> {
        let environment = environment::of(self.pod, self.container, self.node);
        let program = environment::command_line(self.container, &environment);
        if program.is_empty() {
            let missing = std::io::Error::other("it has no `command`, and the lab runs no images");
            return Err(missing).during(|| format!("start the container {}", self.container.name));
        }
        let cgroup = self.sandbox.container_cgroup(&self.container.name);
        cgroup::create(&cgroup)?;
        let (namespace, pod) = (&self.pod.metadata.namespace, &self.pod.metadata.name);
        let log = files::log(
            &self.node.pod_directory(namespace, pod).join(format!("{}.log", self.container.name)),
        )?;
        let copy = log.try_clone().during(|| "share the log".to_owned())?;
        let place = Place {
            cgroup: Some(cgroup),
            like: Some(self.sandbox.pid()),
            netns: None,
            workdir: Some(environment::workdir(self.container)),
        };
        let mut command = tokio::process::Command::from(place.command(program));
        command.env_clear().envs(environment).stdin(Stdio::null()).stdout(log).stderr(copy).process_group(0);
        command.spawn().during(|| format!("start the container {}", self.container.name))
    }

    /// Asks the program to end, and leaves what has not to the kill of its cgroup.
    async fn terminate(&self, child: &mut Child) -> Option<ExitStatus> {
        let grace = self.pod.spec.termination_grace_period_seconds.map_or(GRACE, Duration::from_secs);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended on its own just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        tokio::select! {
            status = child.wait() => return status.ok(),
            () = sleep(grace) => {}
        }
        let _ = child.start_kill();
        child.wait().await.ok()
    }
}

fn ended(started: String, status: Option<ExitStatus>, why: Option<String>) -> Ended {
    let signal = status.and_then(|status| status.signal());
    // A shell's rule for programs that a signal ended, which Kubernetes follows.
    let code = status.and_then(|status| status.code()).or(signal.map(|signal| 128 + signal)).unwrap_or(255);
    Ended { code, signal, message: why, started, finished: now() }
}
