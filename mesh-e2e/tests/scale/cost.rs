//! Memory and CPU time of the mesh's pods on this machine, by `proc(5)`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Ticks in a second: what `/proc/PID/stat` counts in on Linux, whatever the kernel's own clock (time(7)).
const TICKS: f64 = 100.0;

/// What replicas and agents use.
pub struct Cost {
    control: Vec<Used>,
    agents: Vec<Used>,
}

/// What the processes of one container use together.
#[derive(Clone, Copy, Default)]
struct Used {
    megabytes: f64,
    cpu_seconds: f64,
}

impl Cost {
    /// As it is now.
    pub fn now() -> Result<Self> {
        let cost = Self { control: named(&["mesh-control"])?, agents: named(&["mesh-agent", "mesh-proxy"])? };
        ensure!(cost.control.len() >= 2 && cost.agents.len() >= 2, "the mesh does not run: {cost}");
        Ok(cost)
    }

    /// Memory of the largest replica of the control plane.
    pub fn control_megabytes(&self) -> f64 {
        most(&self.control)
    }

    /// Memory of the largest agent.
    pub fn agent_megabytes(&self) -> f64 {
        most(&self.agents)
    }

    /// CPU seconds of all replicas and of all agents since `earlier`, in words.
    pub fn since(&self, earlier: &Self) -> String {
        let control = seconds(&self.control) - seconds(&earlier.control);
        let agents = seconds(&self.agents) - seconds(&earlier.agents);
        format!("control plane {control:.2} s, agents {agents:.2} s, all together")
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[Used]| {
            all.iter().map(|used| format!("{:.0}", used.megabytes)).collect::<Vec<_>>().join(" and ")
        };
        write!(f, "control plane {} MB, agents {} MB", list(&self.control), list(&self.agents))
    }
}

fn most(all: &[Used]) -> f64 {
    all.iter().map(|used| used.megabytes).fold(0.0, f64::max)
}

fn seconds(all: &[Used]) -> f64 {
    all.iter().map(|used| used.cpu_seconds).sum()
}

/// Containers with processes of these names; a lab's have none.
fn named(names: &[&str]) -> Result<Vec<Used>> {
    let mut found = BTreeMap::<String, Used>::new();
    for entry in fs::read_dir("/proc")? {
        let directory = entry?.path();
        // A process may end while it is looked at.
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let container = read("cgroup");
        if names.contains(&read("comm").trim()) && container.contains("kubepods") {
            let (process, all) = (used_by(&directory)?, found.entry(container).or_default());
            all.megabytes += process.megabytes;
            all.cpu_seconds += process.cpu_seconds;
        }
    }
    Ok(found.into_values().collect())
}

fn used_by(directory: &Path) -> Result<Used> {
    let status = fs::read_to_string(directory.join("status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse()?;
    let stat = fs::read_to_string(directory.join("stat"))?;
    // The name, in brackets, may hold spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks = ticks.sum::<Result<f64, _>>()?;
    Ok(Used { megabytes: kilobytes * 1024.0 / 1e6, cpu_seconds: ticks / TICKS })
}
