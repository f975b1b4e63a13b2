//! `mesh-agent run`: puts the rooms together.

use std::error::Error;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use mesh_common::maps::AgentProcess;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::admin::{self, SetLogFilter};
use crate::certs::{self, Certificates};
use crate::config::{AccessLogFormat, Config, LogFormat, PodSource};
use crate::direct::{self, Direct};
use crate::enrol::{Enroller, Report, Setup, Statuses};
use crate::pods::NodePods;
use crate::proxy::balance::{Health, Limits};
use crate::proxy::core::Shared;
use crate::proxy::worker::{self, Command};
use crate::sys::ebpf::{self, DirectKernel, EventLog, Programs};
use crate::telemetry::{AccessLog, AgentMetrics, Format, WorkerMetrics};
use crate::xds::{self, Xds, XdsConfig};
use crate::{cluster, pods, sys};

/// Descriptors that are not for connections: listeners, maps, logs, the control plane.
const SPARE_DESCRIPTORS: u64 = 1000;

/// Why the agent did not start or had to stop.
pub type Failure = Box<dyn Error>;

/// The workers: their threads, and how to talk to them.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    commands: Vec<mpsc::UnboundedSender<Command>>,
}

/// Runs the agent until it is told to stop.
pub fn run(config: Config) -> Result<(), Failure> {
    let set_log_filter = start_log(&config)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.node_name, "starting");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, set_log_filter))
}

async fn serve(config: Config, set_log_filter: SetLogFilter) -> Result<(), Failure> {
    let started = Instant::now();
    let open_files = sys::raise_open_file_limit();
    let (level, count_untouched) = (ebpf::ebpf_log_level(), config.count_untouched);
    let mut programs = Programs::load(&config.bpf_root, &config.cgroup_root, level, count_untouched)?;
    let certificates = Certificates::new(ca_client(&config), &config.trust_domain, config.tunnel);
    let xds = xds::start(xds_config(&config), certificates.clone());
    certs::warm_up().await;

    let access_log = access_log(config.access_log)?;
    let worker_metrics: Vec<_> =
        (0..config.workers).map(|_| WorkerMetrics::new(access_log.clone())).collect();
    let direct_metrics = WorkerMetrics::new(access_log.clone());
    let mut all_metrics = worker_metrics.clone();
    all_metrics.push(Arc::clone(&direct_metrics));
    let metrics = Arc::new(AgentMetrics::new(all_metrics, access_log));
    watch_kernel(&mut programs, &metrics)?;

    let (direct, heard) = direct::channel();
    let shared = shared(&config, &xds, &certificates, &direct, open_files);
    let kernel = DirectKernel::new(&mut programs)?;
    let work = direct::Work { kernel, shared: Arc::clone(&shared), metrics: direct_metrics };
    tokio::spawn(direct::Task::new(work, heard).run());
    let workers = start_workers(&shared, &programs, worker_metrics)?;
    programs.announce(AgentProcess {
        cgroup: sys::cgroup_id_of_self(&config.cgroup_root)?,
        tgid: std::process::id(),
        workers: u32::try_from(config.workers)?,
    })?;

    let pods = follow_pods(&config).await?;
    let installed = pods.installed;
    let statuses = Statuses::default();
    let enroller = Enroller::new(Setup {
        programs,
        workers: workers.commands.clone(),
        certificates: certificates.clone(),
        direct,
        cgroup: config.cgroup_root.clone(),
        metrics: Arc::clone(&metrics),
        statuses: Arc::clone(&statuses),
        report: pods.report,
    })?;
    let updates = xds.updates.clone();
    let enrolling = tokio::spawn(async move {
        // An error means that the source is gone, and then there is nothing to follow.
        if pods.complete.await.is_ok() {
            enroller.run(pods.told, updates).await;
        }
    });

    let bpf_root = config.bpf_root.clone();
    let state = admin::State { config, started, xds, certificates, pods: statuses, metrics, set_log_filter };
    admin::serve(Arc::new(state)).await?;
    stop_requested().await?;
    enrolling.abort();
    stop(workers).await;
    if !*installed.borrow() {
        tracing::info!("the mesh is uninstalled: cleaning up");
        ebpf::unpin_all(&bpf_root)?;
    }
    Ok(())
}

/// Where pods are told, and who hears of those that can't be enrolled.
struct Pods {
    told: watch::Receiver<Arc<NodePods>>,
    /// What is told counts from here on.
    complete: oneshot::Receiver<()>,
    report: Report,
    /// Whether the mesh is there to stay.
    installed: watch::Receiver<bool>,
}

async fn follow_pods(config: &Config) -> Result<Pods, Failure> {
    let (node, domain) = (config.node_name.clone(), config.trust_domain.clone());
    match &config.pod_source {
        PodSource::Directory(path) => {
            let (complete, completed) = oneshot::channel();
            let told = pods::directory::watch(path.clone(), node, domain)?;
            // It was read already.
            let _received = complete.send(());
            let installed = watch::channel(true).1;
            Ok(Pods { told, complete: completed, report: Box::new(|_, _| ()), installed })
        }
        PodSource::Kubernetes => {
            let client = cluster::connect().await?;
            let report = cluster::report_to(client.clone(), &node);
            let installed = match std::env::var("POD_NAMESPACE") {
                Ok(namespace) => cluster::watch_installation(client.clone(), &namespace),
                // Not in a pod: nobody uninstalls it.
                Err(_) => watch::channel(true).1,
            };
            let (told, complete) = pods::kubernetes::watch(client, node, domain);
            Ok(Pods { told, complete, report, installed })
        }
    }
}

/// What the workers share.
fn shared(
    config: &Config,
    xds: &Xds,
    certificates: &Certificates,
    direct: &Direct,
    open_files: u64,
) -> Arc<Shared> {
    // Over HBONE a connection has one descriptor on each node, its socket in the pod. Plain ones have two: should these
    // use descriptors up, a new one is refused and `accept` pauses.
    let most = open_files.saturating_sub(SPARE_DESCRIPTORS) / config.workers as u64;
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    Arc::new(Shared {
        snapshot: Arc::clone(&xds.snapshot),
        updates: xds.updates.clone(),
        certificates: certificates.clone(),
        health: Health::default(),
        limits: Limits::default(),
        direct: direct.clone(),
        same_node: config.same_node,
        most_connections: most,
        most_of_pod: most_of_pod(config, most),
        drain: config.drain_timeout,
    })
}

/// Connections of one pod on one worker. Where nothing is said, one pod leaves a quarter to the others.
fn most_of_pod(config: &Config, most: usize) -> usize {
    match config.pod_connections {
        Some(limit) => limit.get().div_ceil(config.workers).min(most),
        None => most - most / 4,
    }
}

fn start_workers(
    shared: &Arc<Shared>,
    programs: &Programs,
    metrics: Vec<Arc<WorkerMetrics>>,
) -> Result<Workers, Failure> {
    let mut workers = Workers { threads: Vec::new(), commands: Vec::new() };
    for (index, metrics) in metrics.into_iter().enumerate() {
        let (sender, commands) = mpsc::unbounded_channel();
        let (shared, flows) = (Arc::clone(shared), programs.flow_map()?);
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            if let Err(error) = worker::run(shared, flows, metrics, commands) {
                tracing::error!(%error, "worker could not start");
            }
        })?;
        workers.threads.push(thread);
        workers.commands.push(sender);
    }
    Ok(workers)
}

/// Logs what the eBPF programs report.
fn watch_kernel(programs: &mut Programs, metrics: &Arc<AgentMetrics>) -> Result<(), Failure> {
    let (events, log) = (EventLog::new(programs)?, ebpf::Log::new(programs)?);
    let metrics = Arc::clone(metrics);
    tokio::spawn(events.run(move |fault| {
        metrics.ebpf_faults.get_or_create(&[("fault", format!("{fault:?}"))]).inc();
    }));
    tokio::spawn(log.run());
    Ok(())
}

async fn stop_requested() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop: letting connections finish");
    Ok(())
}

/// Pods stay enrolled in the kernel: until an agent is back their mesh traffic is refused and not let out in
/// plaintext. `mesh-agent cleanup` lets them go.
async fn stop(workers: Workers) {
    for worker in &workers.commands {
        let _gone_already = worker.send(Command::Drain);
    }
    for thread in workers.threads {
        let _panicked = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    tracing::info!("stopped");
}

fn access_log(format: AccessLogFormat) -> std::io::Result<AccessLog> {
    match format {
        AccessLogFormat::Off => Ok(AccessLog::off()),
        AccessLogFormat::Text => AccessLog::start(Format::Text, std::io::stdout()),
        AccessLogFormat::Json => AccessLog::start(Format::Json, std::io::stdout()),
    }
}

/// The Kubernetes client's own lines say again, with less, what is logged where it matters.
fn log_filter(text: &str) -> Result<EnvFilter, Failure> {
    Ok(EnvFilter::try_new(text)?.add_directive("kube_client=off".parse()?))
}

/// Logs to standard error, leaving standard output to the access log.
fn start_log(config: &Config) -> Result<SetLogFilter, Failure> {
    let (filter, handle) = reload::Layer::new(log_filter(&config.log)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json()).try_init()?,
    }
    Ok(Box::new(move |text| {
        let filter = log_filter(text).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

fn ca_client(config: &Config) -> certs::CaClient {
    certs::CaClient::new(
        config.control.to_string(),
        config.control_name.clone(),
        config.control_root_cert.clone(),
        config.token_file.clone(),
    )
}

fn xds_config(config: &Config) -> XdsConfig {
    XdsConfig {
        node_name: config.node_name.clone(),
        address: config.control.to_string(),
        control_name: config.control_name.clone(),
        root_cert: config.control_root_cert.clone(),
        token_file: config.token_file.clone(),
        cluster_id: config.cluster_id.clone(),
        instance_ip: instance_ip(),
    }
}

/// The node's first address, for the node id (wire reference 2.4).
fn instance_ip() -> String {
    let addresses = sys::local_addresses().unwrap_or_default();
    addresses.first().map_or_else(|| "1.1.1.1".to_owned(), ToString::to_string)
}
