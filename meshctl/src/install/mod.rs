//! `meshctl install`: renders the embedded chart, applies it in an order that works, and waits until it
//! serves.

mod annotations;
mod apply;
mod chart;
mod helm;
mod inventory;
mod manifests;
mod others;
mod ready;
mod uninstall;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use kube::ResourceExt;
use kube::api::DynamicObject;

use crate::cluster::Cluster;
use crate::output::{Format, Table, write};
use crate::reason::reason;
use crate::source::Source;
use apply::{Applied, Applier};
use inventory::Inventory;

pub use inventory::has_helm_release;
pub use others::{RELEASE, owner, refusal};
pub use uninstall::{Options as UninstallOptions, run as uninstall};

/// How to install.
#[derive(Args)]
pub struct Options {
    /// A value of the chart, KEY=VALUE; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A file of values of the chart; may be repeated
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Name of the release, which the objects' labels have
    #[arg(long, value_name = "NAME", default_value = "nodemesh")]
    release: String,
    /// Print the manifests and change nothing: `server` has the API server look at each as well
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "client")]
    dry_run: Option<DryRun>,
    /// Do not wait until everything is ready
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for that: 90s, 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Who looks at what would be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DryRun {
    /// Nobody: the manifests as rendered
    Client,
    /// The API server: its schemas, admission and defaults
    Server,
}

/// Installs, or brings an installation to this version and these values.
pub async fn run(source: &Source, options: &Options, format: Format) -> Result<ExitCode> {
    if options.dry_run == Some(DryRun::Client) {
        // The cluster's version decides what the chart may use; without a cluster, the one that helm assumes.
        let cluster = source.cluster().await.ok();
        let version = cluster.as_ref().map(|cluster| cluster.version.as_str());
        let text = render(options, source.mesh_namespace(), version).await?;
        print_manifests(&text, format)?;
        if let Some(cluster) = &cluster {
            // Said on standard error: the manifests are the chart's.
            others::set_aside(cluster, &mut manifests::parse(&text)?).await?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = source.cluster().await?;
    refuse_others_release(&cluster, &options.release).await?;
    let text = render(options, &cluster.namespace, Some(&cluster.version)).await?;
    let mut objects = manifests::parse(&text)?;
    let left = others::set_aside(&cluster, &mut objects).await?;
    if options.dry_run == Some(DryRun::Server) {
        return try_out(&cluster, objects, left, format).await;
    }
    let mut applied = change(&cluster, &options.release, objects).await?;
    applied.extend(left);
    // Before the wait, which may be long or fail: until then nothing was said of the objects.
    format.print(&applied, |applied| table(applied))?;
    if !options.no_wait {
        ready::wait(&cluster, options.timeout).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifests as rendered, which are YAML with the chart's comments, unless JSON is asked for.
fn print_manifests(text: &str, format: Format) -> Result<()> {
    match format {
        Format::Json => format.print(&manifests::parse(text)?, |_| String::new()),
        Format::Table | Format::Yaml => write(text),
    }
}

async fn render(options: &Options, namespace: &str, version: Option<&str>) -> Result<String> {
    let chart = chart::unpack()?;
    let values = helm::Values { set: &options.set, files: &options.values };
    helm::template(chart.path(), &options.release, namespace, version, &values).await
}

async fn refuse_others_release(cluster: &Cluster, release: &str) -> Result<()> {
    match refusal(cluster, release).await? {
        Some(refusal) => bail!("{refusal}"),
        None => Ok(()),
    }
}

/// Has the API server look at everything, each object for itself.
async fn try_out(
    cluster: &Cluster,
    objects: Vec<DynamicObject>,
    left: Vec<Applied>,
    format: Format,
) -> Result<ExitCode> {
    let mut applier = Applier::rehearsing(cluster).await?;
    let mut results = Vec::new();
    for object in &objects {
        results.push(applier.apply(object).await);
    }
    let failed = results.iter().filter(|result| result.is_err()).count();
    let mut shown = Vec::new();
    for result in results {
        match result {
            Ok(accepted) => shown.push(accepted),
            Err(error) => remark!("error: {}", reason(&error)),
        }
    }
    shown.extend(left);
    format.print(&shown, |shown| table(shown))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Applies everything, and removes what an earlier installation had and this one has not.
async fn change(cluster: &Cluster, release: &str, objects: Vec<DynamicObject>) -> Result<Vec<Applied>> {
    let created = apply::ensure_namespace(cluster).await?;
    let before = Inventory::read(cluster, release).await?;
    let mut inventory = Inventory::of(&objects, created || before.made_namespace());
    // Written first, with what was there before, so that an installation that fails halfway can be taken
    // away.
    inventory.clone().and(&before).write(cluster, release).await?;
    let mut applier = Applier::new(cluster);
    let mut done = Vec::new();
    for object in &objects {
        done.push(applier.apply(object).await?);
    }
    applier.prune(&before, &inventory).await?;
    inventory.sort();
    inventory.write(cluster, release).await?;
    Ok(done)
}

fn table(applied: &[Applied]) -> String {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "RESULT"]);
    for it in applied {
        let namespace = it.namespace.clone().unwrap_or_default();
        table.row([it.kind.clone(), namespace, it.name.clone(), it.result.to_string()]);
    }
    table.render()
}

/// `kind name`, as messages call an object.
fn title(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    format!("{kind} {}", object.name_any())
}
