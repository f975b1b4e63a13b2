//! Memory and CPU time of the mesh's processes on this machine, by `proc(5)`.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Ticks in a second: what `/proc/PID/stat` counts in on Linux, whatever the kernel's own clock (time(7)).
const TICKS: f64 = 100.0;

/// What replicas and agents use.
pub struct Cost {
    control: Vec<Process>,
    agents: Vec<Process>,
}

struct Process {
    megabytes: f64,
    cpu_seconds: f64,
}

impl Cost {
    /// As it is now.
    pub fn now() -> Result<Self> {
        let cost = Self { control: named("mesh-control")?, agents: named("mesh-agent")? };
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
        let list = |all: &[Process]| {
            all.iter().map(|process| format!("{:.0}", process.megabytes)).collect::<Vec<_>>().join(" and ")
        };
        write!(f, "control plane {} MB, agents {} MB", list(&self.control), list(&self.agents))
    }
}

fn most(all: &[Process]) -> f64 {
    all.iter().map(|process| process.megabytes).fold(0.0, f64::max)
}

fn seconds(all: &[Process]) -> f64 {
    all.iter().map(|process| process.cpu_seconds).sum()
}

/// Those that run in a pod, which a lab's do not.
fn named(name: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let directory = entry?.path();
        // A process may end while it is looked at.
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        if read("comm").trim() == name && read("cgroup").contains("kubepods") {
            found.push(process(&directory)?);
        }
    }
    Ok(found)
}

fn process(directory: &Path) -> Result<Process> {
    let status = fs::read_to_string(directory.join("status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse()?;
    let stat = fs::read_to_string(directory.join("stat"))?;
    // The name, in brackets, may hold spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks = ticks.sum::<Result<f64, _>>()?;
    Ok(Process { megabytes: kilobytes * 1024.0 / 1e6, cpu_seconds: ticks / TICKS })
}
