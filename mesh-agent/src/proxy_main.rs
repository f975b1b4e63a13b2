//! The proxy's process: puts configuration, certificates, workers and the enroller together.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_common::fault::Fault;
use mesh_proxy::balance::{OutlierDetector, ServiceLimits, SessionAffinity};
use mesh_proxy::certs::{self, Certificates};
use mesh_proxy::deferred_accept;
use mesh_proxy::inheritance::{Bequest, BequestSender};
use mesh_proxy::liveness::Liveness;
use mesh_proxy::telemetry::{AccessLog, AgentMetrics, Format, WorkerMetrics};
use mesh_proxy::worker::{self, NEW_POD_WAIT, SharedState, WorkerCommand};
use mesh_proxy::xds::{self, InheritedConfiguration, XdsConfig, XdsState};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::{self, SetLogFilterFn};
use crate::config::{AccessLogFormat, Config, PodSource};
use crate::direct::{self, DirectHandle};
use crate::enrol::{Enroller, EnrollerSetup, KernelDestinations, PodStatuses, ReportNotEnrolledFn};
use crate::istio_annotation::{AnnotationFailures, AnnotationWriter, ObservedAnnotations};
use crate::keeper::RELIEVED_SIGNAL;
use crate::keeper_client::{self, KeeperClient, StartKit};
use crate::node_surroundings::{NodeShared, NodeSurroundings};
use crate::pods::NodePods;
use crate::strict_egress::{self, EgressEnforcer, StrictPods};
use crate::sys::ebpf::{DeferredSyns, FaultRing, MapsHandedToProxy, SocketAddressMap};
use crate::sys::seccomp;
use crate::{cni, connect_to_kubernetes, not_enrolled_events, pods, sys, uninstall_watch};

/// Descriptors reserved for other things than connections: listeners, maps, logs, the control plane.
const SPARE_DESCRIPTORS: u64 = 1000;

/// How long certificates are waited for while another proxy serves. An identity that nobody signs for delays
/// an upgrade no longer; the supervisor of the other proxy does not wait much longer for its end either.
const CERTIFICATES: Duration = Duration::from_secs(10);

/// How long an agent whose mesh is removed waits for the API server before it ends.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Why the proxy did not start or had to stop.
pub type ProxyError = Box<dyn Error>;

/// The workers' threads and command channels.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    commands: Vec<mpsc::UnboundedSender<WorkerCommand>>,
}

/// Runs the proxy until it is told to stop. Errors: it could not start, or had to stop.
pub fn run_proxy(config: Config, set_log_filter: SetLogFilterFn) -> Result<(), ProxyError> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.node_name, "proxy starting");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, set_log_filter))
}

async fn serve(mut config: Config, set_log_filter: SetLogFilterFn) -> Result<(), ProxyError> {
    let started = Instant::now();
    let open_files = sys::raise_open_file_limit();
    let (inheritance, bequests) = BequestSender::channel();
    let (to_inherit, inherited) = oneshot::channel();
    let ca = ca_client(&config);
    let certificates = Certificates::new(ca, &config.trust_domain, config.tunnel.into(), inheritance.clone());
    let xds = xds::start_client(xds_config(&config), certificates.clone(), inheritance, inherited);
    certs::warm_up_crypto().await;
    let kit = tokio::task::spawn_blocking(keeper_client::receive_start_kit).await??;
    inherit(&kit, &certificates, to_inherit);
    let StartKit { control, maps, admin_listeners, workers: channels, beside, .. } = kit;
    // A predecessor's workers go on with its listeners.
    config.workers = channels.len();
    let (keeper, moved) = KeeperClient::start(control)?;
    bequeath_to_keeper(bequests, &keeper);

    let Counters { workers: worker_metrics, direct: direct_metrics, all: metrics } = counters(&config)?;

    let (direct, receiver) = direct::channel();
    let (serving, served) = watch::channel(false);
    let patience = if beside { CERTIFICATES } else { NEW_POD_WAIT };
    if !beside {
        serve_in_time(serving.clone());
    }
    let (node, syns) = node(&config, &direct, &maps)?;
    let shown_links = maps.pod_link_map()?;
    let shared = shared(&config, &xds, &certificates, served, open_files);
    let socket_address_maps =
        channels.iter().map(|_| maps.socket_address_map()).collect::<Result<Vec<_>, _>>()?;
    let (destination_maps, kernel, events, egress) = maps.open_remaining_maps()?;
    let egress = EgressEnforcer::take_over(egress, node.strict_egress.clone())?;
    watch_kernel(events, &metrics, node.strict_egress.clone(), direct.clone());
    let work = direct::DirectTaskSetup {
        kernel,
        keeper: keeper.clone(),
        node: Arc::clone(&node),
        shared: Arc::clone(&shared),
        metrics: direct_metrics,
    };
    tokio::spawn(direct::DirectTask::new(work, receiver).run());
    let kernel = socket_address_maps.into_iter().zip(channels);
    let liveness = Liveness::default();
    let workers = start_workers(&shared, &node, kernel, worker_metrics, &liveness)?;
    follow_syns(Arc::clone(&shared), syns)?;
    // The beat of this runtime.
    let beat = liveness.add_loop("control");
    tokio::spawn(async move { beat.beat_forever().await });

    let pods = follow_pods(&config).await?;
    let installed = pods.installed;
    let statuses = PodStatuses::default();
    let (annotating, not_annotated) = annotate(pods.annotate, &statuses, &installed);
    let node_name = config.node_name.as_str().into();
    let destinations = KernelDestinations::new(destination_maps, node_name, Arc::clone(&metrics));
    let enroller = Enroller::new(EnrollerSetup {
        keeper: keeper.clone(),
        moved,
        destinations,
        workers: workers.commands.clone(),
        certificates: certificates.clone(),
        direct: direct.clone(),
        egress,
        serving,
        patience,
        metrics: Arc::clone(&metrics),
        statuses: statuses.clone(),
        report: pods.report,
    });
    let (updates, configured) = (xds.updates.clone(), xds.ready.clone());
    let namespaces = pods.namespaces.filter(|_| config.cni_state_dir.is_some());
    let publish = |of| cni::publish_enrollment_to_plugin(keeper.clone(), pods.told.clone(), of);
    let telling = namespaces.map(publish).transpose()?;
    let enrolling = tokio::spawn(async move {
        // An error means that the source is gone; then there is nothing to follow.
        if pods.complete.await.is_ok() {
            telling.map(tokio::spawn);
            enroller.run(pods.told, updates, configured).await;
        }
    });

    let state = admin::AdminState {
        config,
        started,
        xds,
        certificates,
        pods: statuses,
        not_annotated,
        links: shown_links,
        metrics,
        set_log_filter,
        liveness,
    };
    let (relieved, leave) = watch::channel(false);
    admin::spawn_http_servers(Arc::new(state), admin_listeners, leave)?;
    seccomp::apply_filters()?;
    if stop_requested().await? == Stop::Relieved {
        // The node's own listeners, direct connections and annotations are the next proxy's from here on.
        relieved.send_replace(true);
        direct.notify_successor_took_over();
        annotating.as_ref().inspect(|annotating| annotating.abort());
    }
    enrolling.abort();
    stop(workers).await;
    if *installed.borrow() { Ok(()) } else { uninstall(annotating, &keeper).await }
}

/// The metrics, and who writes which.
struct Counters {
    workers: Vec<Arc<WorkerMetrics>>,
    /// Metrics of direct connections.
    direct: Arc<WorkerMetrics>,
    /// All metrics, as they are shown.
    all: Arc<AgentMetrics>,
}

fn counters(config: &Config) -> std::io::Result<Counters> {
    let access_log = access_log(config.access_log)?;
    let workers: Vec<_> = (0..config.workers).map(|_| WorkerMetrics::new(access_log.clone())).collect();
    let direct = WorkerMetrics::new(access_log.clone());
    let shown = workers.iter().chain([&direct]).cloned().collect();
    Ok(Counters { workers, direct, all: Arc::new(AgentMetrics::new(shown, access_log)) })
}

/// Creates what workers share of their node, and the source of deferred SYNs.
fn node(
    config: &Config,
    direct: &DirectHandle,
    maps: &MapsHandedToProxy,
) -> Result<(Arc<NodeShared>, DeferredSyns), sys::ebpf::Error> {
    let (recent, decisions, syns) = maps.deferred_accept_maps()?;
    let node = NodeShared {
        direct: direct.clone(),
        strict_egress: StrictPods::default(),
        recent,
        decisions,
        same_node: config.same_node,
        links: maps.pod_link_map()?,
    };
    Ok((Arc::new(node), syns))
}

/// Where pods are read from, and who is told of those that can't be enrolled.
struct Pods {
    told: watch::Receiver<Arc<NodePods>>,
    /// Namespaces whose pods should be in the mesh, where the source has them.
    namespaces: Option<watch::Receiver<Arc<BTreeSet<String>>>>,
    /// Tells that the source has listed everything.
    complete: oneshot::Receiver<()>,
    report: ReportNotEnrolledFn,
    /// Whether the mesh stays installed.
    installed: watch::Receiver<bool>,
    /// How Istio is told of enrolled pods, where there is an API for that.
    annotate: Option<Annotate>,
}

/// How Istio is told of enrolled pods.
struct Annotate {
    client: kube::Client,
    annotated: watch::Receiver<Arc<ObservedAnnotations>>,
}

async fn follow_pods(config: &Config) -> Result<Pods, ProxyError> {
    let (node, domain) = (config.node_name.clone(), config.trust_domain.clone());
    match &config.pod_source {
        PodSource::Directory(path) => {
            let (complete, completed) = oneshot::channel();
            let told = pods::manifest_directory::watch_pods(path.clone(), node, domain)?;
            // The directory was read already.
            let _received = complete.send(());
            let installed = watch::channel(true).1;
            let report: ReportNotEnrolledFn = Box::new(|_, _| ());
            Ok(Pods { told, namespaces: None, complete: completed, report, installed, annotate: None })
        }
        PodSource::Kubernetes => {
            let client = connect_to_kubernetes::connect().await?;
            let report = not_enrolled_events::spawn_not_enrolled_reporter(client.clone(), &node);
            let installed = match std::env::var("POD_NAMESPACE") {
                Ok(namespace) => uninstall_watch::watch_own_daemon_set(client.clone(), &namespace),
                // Not in a pod: nobody uninstalls it.
                Err(_) => watch::channel(true).1,
            };
            let told = pods::kubernetes::watch_pods(client.clone(), node, domain);
            let (complete, namespaces) = (told.complete, Some(told.namespaces));
            let annotate = Some(Annotate { client, annotated: told.annotated });
            Ok(Pods { told: told.pods, namespaces, complete, report, installed, annotate })
        }
    }
}

/// Tells Istio of pods as they are enrolled and let go, if there is a way, and notes for which that failed.
fn annotate(
    how: Option<Annotate>,
    statuses: &PodStatuses,
    installed: &watch::Receiver<bool>,
) -> (Option<tokio::task::JoinHandle<()>>, AnnotationFailures) {
    let failures = AnnotationFailures::default();
    let writing = how.map(|Annotate { client, annotated }| {
        let writer = AnnotationWriter::new(
            client,
            statuses.subscribe(),
            annotated,
            installed.clone(),
            failures.clone(),
        );
        tokio::spawn(writer.run())
    });
    (writing, failures)
}

/// Removes the mesh's annotations from this node's pods, and has the keeper remove what it has on the node.
/// Errors: why that failed.
async fn uninstall(
    annotating: Option<tokio::task::JoinHandle<()>>,
    keeper: &KeeperClient,
) -> Result<(), ProxyError> {
    if let Some(annotating) = annotating {
        let _in_time = tokio::time::timeout(LAST_WORDS, annotating).await;
    }
    Ok(keeper.report_uninstalled().await?)
}

/// Takes over what the proxy before has left.
fn inherit(kit: &StartKit, certificates: &Certificates, to_inherit: oneshot::Sender<InheritedConfiguration>) {
    if let Some(file) = &kit.certificates {
        certificates.load_inherited(file);
    }
    if let Some(file) = kit.configuration.as_ref().and_then(|file| file.try_clone().ok()) {
        // The receiver lives as long as the runtime.
        let _stopping = to_inherit.send(InheritedConfiguration { file, beside: kit.beside });
    }
}

/// Hands the files that this proxy leaves to the keeper, as they come.
fn bequeath_to_keeper(mut bequests: mpsc::UnboundedReceiver<Bequest>, keeper: &KeeperClient) {
    let keeper = keeper.clone();
    tokio::spawn(async move {
        while let Some(bequest) = bequests.recv().await {
            if let Err(error) = keeper.bequeath(bequest).await {
                tracing::debug!(error, "not held for a next proxy");
            }
        }
    });
}

/// Begins to serve after a while in any case: without a configuration connections are refused with the
/// reason, and do not wait for ever.
fn serve_in_time(serving: watch::Sender<bool>) {
    tokio::spawn(async move {
        tokio::time::sleep(NEW_POD_WAIT).await;
        serving.send_replace(true);
    });
}

/// Creates the state that workers share.
fn shared(
    config: &Config,
    xds: &XdsState,
    certificates: &Certificates,
    serving: watch::Receiver<bool>,
    open_files: u64,
) -> Arc<SharedState> {
    // Over HBONE a connection has one descriptor on each node, its socket in the pod. Plain ones have two: if
    // they use descriptors up, a new one is refused and `accept` pauses.
    let most = open_files.saturating_sub(SPARE_DESCRIPTORS) / config.workers as u64;
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(4);
    let most_of_pod = most_of_pod(config, most);
    // Connections between nodes have a descriptor, too, and many streams each.
    let most_sessions = (most / 16).max(2);
    Arc::new(SharedState {
        snapshot: Arc::clone(&xds.snapshot),
        updates: xds.updates.clone(),
        serving,
        certificates: certificates.clone(),
        outliers: OutlierDetector::default(),
        affinity: SessionAffinity::default(),
        service_limits: ServiceLimits::default(),
        syn_router: deferred_accept::SynRouter::default(),
        most_connections: most - most_sessions,
        most_of_pod,
        most_sessions,
        buffers_of_pod: config.pod_buffers.saturating_mul(1024 * 1024) / config.workers,
        drain: config.drain_timeout,
    })
}

/// Returns the limit of one pod's connections on one worker: by default one pod leaves a quarter to the
/// others.
fn most_of_pod(config: &Config, most: usize) -> usize {
    match config.pod_connections {
        Some(limit) => limit.get().div_ceil(config.workers).min(most),
        None => most - most / 4,
    }
}

fn start_workers(
    shared: &Arc<SharedState>,
    node: &Arc<NodeShared>,
    kernel: impl Iterator<Item = (SocketAddressMap, OwnedFd)>,
    metrics: Vec<Arc<WorkerMetrics>>,
    liveness: &Liveness,
) -> Result<Workers, ProxyError> {
    let mut workers = Workers { threads: Vec::new(), commands: Vec::new() };
    for (index, (metrics, (peers, sockets))) in metrics.into_iter().zip(kernel).enumerate() {
        let (sender, commands) = mpsc::unbounded_channel();
        let (shared, node) = (Arc::clone(shared), Arc::clone(node));
        let name = format!("worker-{index}");
        let beat = liveness.add_loop(&name);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let start = || NodeSurroundings::start(node, peers, sockets);
            match worker::run_worker(shared, start, metrics, commands, &beat) {
                Ok(()) => beat.end_in_order(),
                Err(error) => tracing::error!(%error, "worker could not start"),
            }
        })?;
        workers.threads.push(thread);
        workers.commands.push(sender);
    }
    Ok(workers)
}

/// Passes deferred SYNs to the workers, on a thread of its own: a client waits for it, whatever else is to be
/// done. Errors: the thread can't be started.
fn follow_syns(shared: Arc<SharedState>, mut syns: DeferredSyns) -> std::io::Result<()> {
    let follow = move || {
        loop {
            if let Err(error) = syns.wait_for_syns(|syn| shared.syn_router.hand_to_listeners_worker(syn)) {
                return tracing::error!(%error, "connections of pods wait for a second and more");
            }
        }
    };
    std::thread::Builder::new().name("syns".into()).spawn(follow).map(drop)
}

/// Logs and counts the eBPF programs' reports.
fn watch_kernel(events: FaultRing, metrics: &Arc<AgentMetrics>, strict: StrictPods, direct: DirectHandle) {
    let metrics = Arc::clone(metrics);
    let mut refusals = strict_egress::RefusalLog::new(strict);
    tokio::spawn(events.log_faults_and_pass_on(move |fault, event| {
        metrics.ebpf_faults.get_or_create(&[("fault", format!("{fault:?}"))]).inc();
        match fault {
            Fault::EgressRefused => refusals.log_or_count_refusal(event),
            Fault::NobodyThere | Fault::RefusedLately => direct.report_refused(fault, event),
            _ => {}
        }
    }));
}

/// Why the proxy stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The agent was told to.
    Asked,
    /// Another one has taken over.
    Relieved,
}

async fn stop_requested() -> std::io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut relieved = signal(SignalKind::from_raw(RELIEVED_SIGNAL.as_raw()))?;
    let stop = tokio::select! {
        _ = terminate.recv() => Stop::Asked,
        _ = interrupt.recv() => Stop::Asked,
        _ = relieved.recv() => Stop::Relieved,
    };
    tracing::info!(?stop, "told to stop: letting connections finish");
    Ok(stop)
}

async fn stop(workers: Workers) {
    for worker in &workers.commands {
        let _gone_already = worker.send(WorkerCommand::Drain);
    }
    for thread in workers.threads {
        let _panicked = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    tracing::info!("proxy stopped");
}

fn access_log(format: AccessLogFormat) -> std::io::Result<AccessLog> {
    match format {
        AccessLogFormat::Off => Ok(AccessLog::disabled()),
        AccessLogFormat::Text => AccessLog::start(Format::Text, standard_output()?),
        AccessLogFormat::Json => AccessLog::start(Format::Json, standard_output()?),
    }
}

/// Opens standard output without the library's lock and buffer, which another thread would wait for.
fn standard_output() -> std::io::Result<File> {
    Ok(File::from(std::io::stdout().as_fd().try_clone_to_owned()?))
}

fn ca_client(config: &Config) -> certs::CaClient {
    certs::CaClient::new(
        config.control.to_string(),
        config.control_name.clone(),
        config.control_root_cert.clone(),
        config.token_file.clone(),
        config.cluster_id.clone(),
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
        waypoints: config.waypoints.into(),
        release_memory: sys::release_code_pages_and_heap,
    }
}

/// Returns the node's first address, for the node id (docs/wire.md, Node).
fn instance_ip() -> String {
    let addresses = sys::node_addresses().unwrap_or_default();
    addresses.first().map_or_else(|| "1.1.1.1".to_owned(), ToString::to_string)
}
