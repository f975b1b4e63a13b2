//! What a control plane is made of, opened from a directory or from a cluster.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_api::compile::MeshConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::ca::Authority;
use crate::config::Configuration;
use crate::kubernetes::bundle::Publication;
use crate::kubernetes::objects::Objects;
use crate::kubernetes::review::TokenReviews;
use crate::kubernetes::roots::SecretRoots;
use crate::kubernetes::unread::Unread;
use crate::kubernetes::{Cluster, last_good, leader, past, roots, status, taint, watch as cluster_watch};
use crate::metrics::Metrics;
use crate::nodes::{NodeTokens, Nodes};
use crate::options::{Options, Source};
use crate::server::StartError;
use crate::source::directory::Directory;
use crate::source::{Changes, Publisher, Reader};
use crate::watch::{Depth, DirectoryWatch, Touched};
use crate::xds::agents::Agents;

/// The parts that more than one service uses.
pub(crate) struct Parts {
    pub authority: Arc<Authority>,
    /// Where the roots are kept for all replicas.
    pub shared_roots: Option<Arc<SecretRoots>>,
    pub nodes: Arc<Nodes>,
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// Objects of kinds that the mesh does not read.
    pub unread: Unread,
    pub agents: Arc<Agents>,
    pub metrics: Arc<Metrics>,
}

/// What runs beside, and how it ends.
#[derive(Default)]
pub(crate) struct Tasks {
    pub stopping: watch::Sender<bool>,
    /// What ends by itself once `stopping` is true.
    pub serving: JoinSet<()>,
    /// What is ended when nobody is served any more.
    pub background: JoinSet<()>,
}

/// Opens everything, and publishes the first configuration, whole.
pub(crate) async fn open(
    options: &Options,
    metrics: Arc<Metrics>,
    tasks: &mut Tasks,
) -> Result<(Parts, Publisher, Changes), StartError> {
    std::fs::create_dir_all(&options.state_dir).map_err(at(&options.state_dir))?;
    match &options.source {
        Source::Directory(path) => from_directory(options, path, metrics, &mut tasks.background),
        Source::Kubernetes => from_cluster(options, metrics, tasks).await,
    }
}

fn from_directory(
    options: &Options,
    path: &Path,
    metrics: Arc<Metrics>,
    tasks: &mut JoinSet<()>,
) -> Result<(Parts, Publisher, Changes), StartError> {
    let given = options.given_authority();
    let (domain, longest) = (&options.trust_domain, options.workload_cert_ttl);
    let authority = Arc::new(Authority::open(&options.state_dir, given.as_ref(), domain, longest)?);
    follow_roots(&authority, tasks)?;
    let directory = options.node_tokens.as_ref().ok_or(StartError::NoNodeTokens)?;
    let tokens = NodeTokens::open(directory).map_err(at(directory))?;
    let mut token_changes = DirectoryWatch::new(directory, Depth::Flat).map_err(at(directory))?;
    let nodes = Arc::new(Nodes::Directory(tokens));
    let reloaded = Arc::clone(&nodes);
    tasks.spawn(async move {
        loop {
            token_changes.changed().await;
            reloaded.reload();
        }
    });
    let reader = Directory::new(path.to_owned(), options.state_dir.join("last-good.json"));
    // Watched before it is read, so that nothing is missed between.
    let changes = DirectoryWatch::new(path, Depth::Recursive).map_err(at(path))?;
    let mut publisher =
        Publisher::new(Reader::Directory(Box::new(reader)), mesh(options), Arc::clone(&metrics));
    publisher.publish(&Touched::Anything).map_err(at(path))?;
    let parts = Parts {
        authority,
        shared_roots: None,
        nodes,
        configuration: publisher.configuration(),
        unread: Unread::default(),
        agents: Arc::new(Agents::new(Arc::clone(&metrics))),
        metrics,
    };
    Ok((parts, publisher, Changes::Directory(changes)))
}

async fn from_cluster(
    options: &Options,
    metrics: Arc<Metrics>,
    tasks: &mut Tasks,
) -> Result<(Parts, Publisher, Changes), StartError> {
    let cluster = Cluster::connect(&options.namespace, &options.pod_name).await?;
    let Tasks { stopping, serving, background: tasks } = tasks;
    let (authority, shared_roots) = cluster_authority(options, &cluster, tasks).await?;
    let objects = Objects::expecting(&cluster_watch::core());
    last_good::recall(&cluster, &objects).await?;
    let unread = Unread::default();
    cluster_watch::start(&cluster.client, &objects, &unread, tasks).await;
    info!("waiting for the lists of all kinds");
    objects.complete().await;
    let reader = Reader::Kubernetes(objects.clone());
    let mut publisher = Publisher::new(reader, mesh(options), Arc::clone(&metrics));
    publisher.publish(&Touched::Anything).map_err(at(&options.state_dir))?;
    let leads = leader::take_part(&cluster, &metrics, stopping.subscribe(), serving);
    let configuration = publisher.configuration();
    let kept = last_good::keep(cluster.clone(), objects.clone(), leads.clone(), configuration.clone());
    tasks.spawn(kept);
    let writer =
        status::Writer { cluster: cluster.clone(), objects: objects.clone(), findings: publisher.findings() };
    tasks.spawn(writer.run(leads.clone(), configuration.clone()));
    let teller =
        past::Teller { cluster: cluster.clone(), objects: objects.clone(), findings: publisher.findings() };
    tasks.spawn(teller.run(leads.clone(), configuration.clone()));
    tasks.spawn(unread.clone().tell(cluster.clone(), leads.clone()));
    let bundle = Publication {
        cluster: cluster.clone(),
        authority: Arc::clone(&authority),
        objects: objects.clone(),
        scope: options.publish_trust_bundle,
    };
    if options.remove_startup_taint {
        let account = options.agent_service_account.clone();
        tasks.spawn(taint::remove(cluster.clone(), account, leads.clone()));
    }
    tasks.spawn(bundle.keep(leads, configuration.clone()));
    let reviews = TokenReviews::new(&cluster, &options.agent_service_account, objects.clone());
    let parts = Parts {
        authority,
        shared_roots,
        nodes: Arc::new(Nodes::Reviewed(Box::new(reviews))),
        configuration,
        unread,
        agents: Arc::new(Agents::new(Arc::clone(&metrics))),
        metrics,
    };
    Ok((parts, publisher, Changes::Kubernetes(objects)))
}

async fn cluster_authority(
    options: &Options,
    cluster: &Cluster,
    tasks: &mut JoinSet<()>,
) -> Result<(Arc<Authority>, Option<Arc<SecretRoots>>), StartError> {
    let (state_dir, domain, longest) = (&options.state_dir, &options.trust_domain, options.workload_cert_ttl);
    if let Some(name) = &options.ca_secret {
        let files = roots::given(cluster, name, state_dir).await?;
        return Ok((Arc::new(Authority::open(state_dir, Some(&files), domain, longest)?), None));
    }
    let given = options.given_authority();
    if given.is_some() {
        return Ok((Arc::new(Authority::open(state_dir, given.as_ref(), domain, longest)?), None));
    }
    let shared = Arc::new(SecretRoots::open(cluster, state_dir, domain, longest).await?);
    let authority = Arc::new(Authority::open(state_dir, None, domain, longest)?);
    follow_roots(&authority, tasks)?;
    tasks.spawn(Arc::clone(&shared).follow());
    Ok((authority, Some(shared)))
}

/// Uses the roots in the state directory whenever they change.
fn follow_roots(authority: &Arc<Authority>, tasks: &mut JoinSet<()>) -> Result<(), StartError> {
    let Some(directory) = authority.watched_directory() else { return Ok(()) };
    let mut changes = DirectoryWatch::new(directory, Depth::Flat).map_err(at(directory))?;
    let authority = Arc::clone(authority);
    tasks.spawn(async move {
        loop {
            changes.changed().await;
            match authority.reload() {
                Ok(true) => info!("roots changed"),
                Ok(false) => {}
                Err(error) => error!(%error, "roots not read; the last ones stay in force"),
            }
        }
    });
    Ok(())
}

fn mesh(options: &Options) -> MeshConfig {
    MeshConfig {
        trust_domain: options.trust_domain.clone(),
        root_namespace: options.root_namespace.clone(),
        cluster_domain: options.cluster_domain.clone(),
        cluster_id: options.cluster_id.clone(),
        ..MeshConfig::default()
    }
}

/// Says which path it was.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path: PathBuf = path.to_owned();
    move |error| StartError::Path { path, error }
}
