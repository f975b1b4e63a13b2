//! `meshctl uninstall`: the agents first, since they clean up their nodes as they go, then everything else.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use mesh_api::resource::enrolment::{LABEL, REDIRECTION};
use serde::Serialize;

use super::annotations;
use super::apply::Applier;
use super::inventory::{self, Entry, Inventory};
use super::others;
use crate::cluster::{COMPONENT_AGENT, COMPONENT_CONTROL, Cluster};
use crate::output::{Format, Table};
use crate::source::Source;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// The control plane's authority.
const CA_SECRET: &str = "nodemesh-ca";
/// The trust bundle, in one namespace or in all.
const TRUST_BUNDLE: &str = "nodemesh-root-cert";
/// The control plane's lease.
const LEASE: &str = "nodemesh-control";

/// How to uninstall.
#[derive(Args)]
pub struct Options {
    /// Name of the release
    #[arg(long, value_name = "NAME", default_value = "nodemesh")]
    release: String,
    /// Delete the definitions of Istio's kinds as well, and with them every policy in the cluster
    #[arg(long)]
    crds: bool,
    /// How long to wait for the agents to clean up their nodes: 90s, 5m
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// What was taken away.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    deleted: Vec<Entry>,
    kept: Vec<Entry>,
    /// Namespaces that would be in the mesh again if it were installed again.
    still_labelled: Vec<String>,
}

/// Takes away what `meshctl install` made.
pub async fn run(source: &Source, options: &Options, format: Format) -> Result<ExitCode> {
    let cluster = source.cluster().await?;
    let inventory = installed(&cluster, &options.release).await?;
    let end = Instant::now() + options.timeout;
    let (mut applier, mut report) = (
        Applier::new(&cluster),
        Report { deleted: Vec::new(), kept: Vec::new(), still_labelled: labelled(&cluster).await },
    );
    let (agents, rest): (Vec<_>, Vec<_>) =
        inventory.backwards().cloned().partition(|entry| entry.kind == "DaemonSet");
    for entry in agents {
        take(&mut applier, entry, &mut report).await?;
    }
    await_no_pods(&cluster, COMPONENT_AGENT, end).await?;
    match annotations::take_off(&cluster).await {
        Ok(0) => {}
        Ok(pods) => remark!("took the annotation {REDIRECTION} off {pods} pods"),
        // Only Istio's own parts read it: all else is to go all the same.
        Err(error) => remark!("{error:#}; Istio's own parts take such pods for pods of a mesh"),
    }
    for entry in rest {
        if entry.is_definition() && !options.crds {
            report.kept.push(entry);
        } else {
            take(&mut applier, entry, &mut report).await?;
        }
    }
    await_no_pods(&cluster, COMPONENT_CONTROL, end).await?;
    delete_what_the_control_plane_made(&cluster).await?;
    delete::<ConfigMap>(&cluster.api(), &inventory::name(&options.release)).await?;
    if inventory.made_namespace() {
        delete_namespace(&cluster, end).await?;
    }
    format.print(&report, table)?;
    tell_what_stays(&report);
    Ok(ExitCode::SUCCESS)
}

/// What there is to take away. An error that says how, if it is not for meshctl to do.
async fn installed(cluster: &Cluster, release: &str) -> Result<Inventory> {
    let inventory = Inventory::read(cluster, release).await?;
    if !inventory.is_empty() {
        return Ok(inventory);
    }
    let namespace = &cluster.namespace;
    if inventory::has_helm_release(cluster, release).await? {
        bail!(
            "{release} in {namespace} was installed by helm: use {}",
            others::helm_uninstall(release, namespace)
        );
    }
    bail!(
        "meshctl has installed no {release} in the namespace {namespace}; --mesh-namespace and --release NAME name another"
    )
}

async fn take(applier: &mut Applier<'_>, entry: Entry, report: &mut Report) -> Result<()> {
    if applier.delete(&entry).await? {
        report.deleted.push(entry);
    }
    Ok(())
}

/// A pod is gone when its program has ended, for an agent after it cleaned up its node. Its owner goes last.
async fn await_no_pods(cluster: &Cluster, component: &str, end: Instant) -> Result<()> {
    let mut told = 0;
    loop {
        let pods = cluster.pods(component).await?;
        if pods.is_empty() && !has_owner(cluster, component).await? {
            return Ok(());
        }
        if pods.len() != told {
            told = pods.len();
            remark!("waiting for {told} pods of {component} to end");
        }
        if Instant::now() > end {
            let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
            bail!(
                "these pods have not ended: {}. Run `meshctl uninstall` again when their nodes are back; `mesh-agent cleanup` \
                 on a node takes away what an agent left there",
                names.join(", ")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn has_owner(cluster: &Cluster, component: &str) -> Result<bool> {
    Ok(if component == COMPONENT_AGENT {
        cluster.daemon_set().await?.is_some()
    } else {
        cluster.deployment().await?.is_some()
    })
}

async fn delete_what_the_control_plane_made(cluster: &Cluster) -> Result<()> {
    delete::<Lease>(&cluster.api(), LEASE).await?;
    delete::<Secret>(&cluster.api(), CA_SECRET).await?;
    let everywhere: Api<ConfigMap> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={TRUST_BUNDLE}"));
    let bundles = everywhere.list_metadata(&named);
    for bundle in bundles.await.context("can't look for trust bundles")? {
        let namespace = bundle.namespace().unwrap_or_default();
        delete::<ConfigMap>(&Api::namespaced(cluster.client.clone(), &namespace), TRUST_BUNDLE).await?;
    }
    Ok(())
}

async fn delete_namespace(cluster: &Cluster, end: Instant) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    delete(&namespaces, &cluster.namespace).await?;
    while namespaces.get_metadata_opt(&cluster.namespace).await?.is_some() {
        if Instant::now() > end {
            bail!(
                "the namespace {} is still going; `kubectl get namespace -o yaml` says why",
                cluster.namespace
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    remark!("deleted Namespace {}", cluster.namespace);
    Ok(())
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + kube::Resource,
    K::DynamicType: Default,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => {
            let kind = K::kind(&K::DynamicType::default()).into_owned();
            Err(anyhow!(error).context(format!("can't delete {kind} {name}")))
        }
    }
}

async fn labelled(cluster: &Cluster) -> Vec<String> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let selector = ListParams::default().labels(&format!("{LABEL}=enabled"));
    let found = namespaces.list_metadata(&selector).await.map(|found| found.items).unwrap_or_default();
    found.iter().map(ResourceExt::name_any).collect()
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "RESULT"]);
    let deleted = report.deleted.iter().map(|entry| (entry, "deleted"));
    for (entry, result) in deleted.chain(report.kept.iter().map(|entry| (entry, "kept"))) {
        let namespace = entry.namespace.clone().unwrap_or_default();
        table.row([entry.kind.clone(), namespace, entry.name.clone(), result.to_owned()]);
    }
    table.render()
}

fn tell_what_stays(report: &Report) {
    if !report.kept.is_empty() {
        remark!("the definitions of Istio's kinds stay, and the policies with them; --crds deletes both");
    }
    if !report.still_labelled.is_empty() {
        let names = report.still_labelled.join(", ");
        remark!("these namespaces keep the label {LABEL}=enabled: {names}");
    }
}
