//! Probes: startup, then liveness and readiness side by side, as a kubelet does.

use std::{
    future::pending,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use mesh_api::resource::{
    Pod,
    pod::{Container, ExecCommand, HttpGet, PortRef, Probe, ProbeAction, TcpSocket},
};
use tokio::time::{sleep, timeout};

use super::{
    prober::{self, Prober},
    status::Board,
};
use crate::enter::Place;

/// A container that has never been ready is asked this often, however long the probe's period: a lab should
/// be up when its programs are.
const IMPATIENT: Duration = Duration::from_millis(200);

/// What is probed.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    /// A process in the pod's namespaces.
    pub pid: u32,
    /// The container's cgroup.
    pub cgroup: &'a Path,
    /// What opens the node's connections to it.
    pub prober: &'a Prober,
}

/// Probes a running container and keeps its readiness on the board. Returns only when the container is to be
/// started again, with the reason.
pub async fn supervise(target: &Target<'_>, board: &Board) -> String {
    let container = target.container;
    if let Some(probe) = &container.startup_probe
        && let Err(reason) = until_started(probe, target).await
    {
        return format!("startup probe failed: {reason}");
    }
    board.update(|state| state.container(&container.name).started(container.readiness_probe.is_none()));
    tokio::select! {
        reason = liveness(container.liveness_probe.as_deref(), target) => format!("liveness probe failed: {reason}"),
        never = readiness(container.readiness_probe.as_deref(), target, board) => match never {},
    }
}

async fn until_started(probe: &Probe, target: &Target<'_>) -> Result<(), String> {
    let mut failures = 0;
    sleep(seconds(probe.initial_delay_seconds)).await;
    loop {
        match attempt(probe, target).await {
            Ok(()) => return Ok(()),
            Err(reason) => {
                failures += 1;
                if failures >= probe.failure_threshold.max(1) {
                    return Err(reason);
                }
            }
        }
        sleep(period(probe)).await;
    }
}

async fn liveness(probe: Option<&Probe>, target: &Target<'_>) -> String {
    let Some(probe) = probe else { return pending().await };
    let mut failures = 0;
    sleep(seconds(probe.initial_delay_seconds)).await;
    loop {
        match attempt(probe, target).await {
            Ok(()) => failures = 0,
            Err(reason) => {
                failures += 1;
                if failures >= probe.failure_threshold.max(1) {
                    return reason;
                }
            }
        }
        sleep(period(probe)).await;
    }
}

async fn readiness(probe: Option<&Probe>, target: &Target<'_>, board: &Board) -> std::convert::Infallible {
    let Some(probe) = probe else { return pending().await };
    let (mut successes, mut failures, mut ever) = (0, 0, false);
    sleep(seconds(probe.initial_delay_seconds)).await;
    loop {
        let result = attempt(probe, target).await;
        (successes, failures) = if result.is_ok() { (successes + 1, 0) } else { (0, failures + 1) };
        let settled = match &result {
            Ok(()) => successes >= probe.success_threshold.max(1),
            // A container starts out as not ready, so its first failures change nothing but the reason.
            Err(_) => !ever || failures >= probe.failure_threshold.max(1),
        };
        if settled {
            ever |= result.is_ok();
            let ready = result.map_err(|reason| format!("readiness probe failed: {reason}"));
            board.update(|state| state.container(&target.container.name).set_ready(ready));
        }
        sleep(if ever { period(probe) } else { period(probe).min(IMPATIENT) }).await;
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds.max(1))
}

async fn attempt(probe: &Probe, target: &Target<'_>) -> Result<(), String> {
    let limit = seconds(probe.timeout_seconds.max(1));
    let attempt = async {
        match &probe.action {
            ProbeAction::HttpGet(get) => http_get(get, target, limit).await,
            ProbeAction::TcpSocket(socket) => tcp(socket, target, limit).await,
            ProbeAction::Exec(exec) => run(exec, target).await,
            ProbeAction::Grpc(_) => {
                Err("the lab has no gRPC probes; use httpGet, tcpSocket or exec".to_owned())
            }
        }
    };
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

async fn http_get(get: &HttpGet, target: &Target<'_>, limit: Duration) -> Result<(), String> {
    if get.scheme.eq_ignore_ascii_case("https") {
        return Err("the lab has no HTTPS probes; use tcpSocket or exec".to_owned());
    }
    let address = address(&get.host, &get.port, target)?;
    target.prober.ask(prober::get(address, &get.path, &get.http_headers), limit).await
}

async fn tcp(socket: &TcpSocket, target: &Target<'_>, limit: Duration) -> Result<(), String> {
    let address = address(&socket.host, &socket.port, target)?;
    target.prober.ask(prober::Probe::Connect(address), limit).await
}

async fn run(exec: &ExecCommand, target: &Target<'_>) -> Result<(), String> {
    let place =
        Place { cgroup: Some(target.cgroup.to_owned()), like: Some(target.pid), netns: None, workdir: None };
    let mut command = tokio::process::Command::from(place.command(&exec.command));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text: String = String::from_utf8_lossy(&text).trim().chars().take(200).collect();
    Err(format!("{}: {text}", output.status))
}

fn address(host: &str, port: &PortRef, target: &Target<'_>) -> Result<SocketAddr, String> {
    let port = target.container.resolve_port(port).ok_or("the container declares no port of that name")?;
    let own = || target.pod.addresses().first().copied().ok_or_else(|| "the pod has no address".to_owned());
    let host = match host {
        "" => own()?,
        host => host.parse::<IpAddr>().map_err(|_| format!("{host:?} is not an IP address"))?,
    };
    Ok(SocketAddr::new(host, port))
}
