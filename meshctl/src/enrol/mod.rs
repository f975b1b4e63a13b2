//! `meshctl enroll` and `unenroll`: labels that take pods into the mesh or let them go, and what becomes of
//! the pods.

mod label;
mod pods;
mod wait;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::json;

use crate::cluster::{Cluster, FIELD_MANAGER};
use crate::output::{Format, Table};
use crate::source::Source;
use label::Change;
use pods::Fate;

/// What to enrol, or to let go.
#[derive(Args)]
pub struct Options {
    /// Namespaces, with all their pods
    #[arg(value_name = "NAMESPACE", required_unless_present = "pods")]
    namespaces: Vec<String>,
    /// A single pod, NAMESPACE/NAME; may be repeated
    #[arg(long = "pod", value_name = "NAMESPACE/NAME")]
    pods: Vec<PodName>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until the agents say that it is so
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for that: 30s, 2m
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodName {
    namespace: String,
    name: String,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the mesh.
    In,
    /// Out of it.
    Out,
}

/// What was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `namespace NAME` or `pod NAMESPACE/NAME` of what was labelled.
    changed: Vec<String>,
    pods: Vec<Fate>,
}

/// Labels, and waits until the agents say that it is so.
pub async fn run(source: &Source, way: Way, options: &Options, format: Format) -> Result<ExitCode> {
    let cluster = source.cluster().await?;
    let mut report = Report { changed: Vec::new(), pods: Vec::new() };
    for name in &options.namespaces {
        namespace(&cluster, name, way, options.dry_run, &mut report).await?;
    }
    for name in &options.pods {
        pod(&cluster, name, way, options.dry_run, &mut report).await?;
    }
    if !options.no_wait && !options.dry_run {
        wait::until_so(cluster, &mut report.pods, options.timeout).await?;
    }
    format.print(&report, |report| text(report, options))?;
    let failed = report.pods.iter().any(Fate::has_failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn namespace(
    cluster: &Cluster,
    name: &str,
    way: Way,
    dry_run: bool,
    report: &mut Report,
) -> Result<()> {
    ensure!(
        way == Way::Out || name != cluster.namespace,
        "{name} has the mesh itself, which would wait for itself: its pods stay out"
    );
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = api.get_opt(name).await.with_context(|| format!("can't read the namespace {name}"))?;
    let Some(mut namespace) = namespace else { bail!("there is no namespace {name}") };
    let change = label::of_namespace(namespace.labels(), way);
    change.apply(namespace.labels_mut());
    if !change.is_none() {
        if !dry_run {
            patch(&api, name, &change).await.with_context(|| format!("can't label the namespace {name}"))?;
        }
        report.changed.push(format!("namespace {name}: {change}"));
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), name).list(&ListParams::default()).await;
    let pods = pods.with_context(|| format!("can't list the pods of {name}"))?;
    report.pods.extend(pods.iter().filter_map(|pod| Fate::of(namespace.labels(), pod)));
    Ok(())
}

async fn pod(cluster: &Cluster, name: &PodName, way: Way, dry_run: bool, report: &mut Report) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = namespaces.get(&name.namespace).await.context("can't read the pod's namespace")?;
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &name.namespace);
    let pod = api.get_opt(&name.name).await.context("can't read the pod")?;
    let Some(mut pod) = pod else { bail!("there is no pod {}/{}", name.namespace, name.name) };
    let change = label::of_pod(namespace.labels(), pod.labels(), way);
    change.apply(pod.labels_mut());
    if !change.is_none() {
        if !dry_run {
            patch(&api, &name.name, &change).await.context("can't label the pod")?;
        }
        report.changed.push(format!("pod {}/{}: {change}", name.namespace, name.name));
    }
    report.pods.retain(|fate| !fate.is_of(&pod));
    report.pods.extend(Fate::of(namespace.labels(), &pod));
    Ok(())
}

async fn patch<K>(api: &Api<K>, name: &str, change: &Change) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let body = json!({ "metadata": { "labels": change.as_labels() } });
    let how = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &how, &Patch::Merge(&body)).await?;
    Ok(())
}

fn text(report: &Report, options: &Options) -> String {
    let mut lines: Vec<String> = report.changed.clone();
    if lines.is_empty() {
        lines.push("the labels are as they should be".to_owned());
    } else if options.dry_run {
        lines.push("nothing was changed (dry run)".to_owned());
    }
    let mut table = Table::new(&["NAMESPACE", "POD", "NODE", "MESHED", "WHY"]);
    for fate in &report.pods {
        table.row(fate.cells());
    }
    lines.join("\n") + "\n\n" + &table.render()
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err("NAMESPACE/NAME is wanted".into()),
        }
    }
}
