//! `logs`: what a container wrote.

use std::{
    fs::File,
    io::{self, ErrorKind},
    time::Duration,
};

use anyhow::{Context, bail};
use mesh_api::manifest::Kind;

use crate::{client::Client, layout::Layout};

/// Between two looks for more.
const LOOK: Duration = Duration::from_millis(50);

/// Copies a container's log to standard output, to its present end or, if `follow`, until the pod is gone.
pub fn show(
    client: &Client,
    layout: &Layout,
    namespace: &str,
    pod: &str,
    container: Option<&str>,
    follow: bool,
) -> anyhow::Result<()> {
    let find = || -> anyhow::Result<_> {
        let pods = client.list(Kind::Pod, Some(namespace))?;
        Ok(pods.into_iter().find(|item| item["metadata"]["name"] == pod))
    };
    let Some(found) = find()? else { bail!("there is no pod {namespace}/{pod}") };
    let containers = ["containers", "initContainers"].map(|field| found["spec"][field].as_array().cloned());
    let mut names = containers.iter().flatten().flatten().filter_map(|item| item["name"].as_str());
    let name = match container {
        Some(wanted) => names.find(|name| *name == wanted),
        None => names.next(),
    };
    let Some(name) = name else { bail!("the pod {namespace}/{pod} has no such container") };
    let path = layout.pod(namespace, pod).join(format!("{name}.log"));
    let mut file = match File::open(&path) {
        // Nothing was started yet, so nothing was written.
        Err(error) if error.kind() == ErrorKind::NotFound && !follow => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => wait_for(&path, || Ok(find()?.is_some()))?,
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    loop {
        let there = !follow || find()?.is_some();
        match io::copy(&mut file, &mut io::stdout()) {
            // As `head` does when it has had enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            copied => copied.context("show the log")?,
        };
        if !follow || !there {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn wait_for(path: &std::path::Path, pod_exists: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<File> {
    while pod_exists()? {
        if let Ok(file) = File::open(path) {
            return Ok(file);
        }
        std::thread::sleep(LOOK);
    }
    bail!("the pod is gone, and {} with it", path.display())
}
