//! `cluster status`, and single processes of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::process::Process;
use super::state::State;
use super::wait::until;

const TO_DIE: Duration = Duration::from_secs(10);

/// Prints one line for each process.
pub fn show(state: &State) -> Result<()> {
    let processes = latest(state.processes());
    ensure!(!processes.is_empty(), "there is no cluster. Run: cargo xtask cluster up");
    for process in processes.values() {
        let condition = if process.is_alive() { "running" } else { "ended" };
        say!(
            "{:<24} {condition:<8} pid {:<8} {}",
            process.name,
            process.pid,
            state.log(&process.name).display()
        );
    }
    say!("kubeconfig: {}", super::kubeconfig(state)?.display());
    Ok(())
}

/// Kills the process of this name.
pub fn stop(state: &State, name: &str) -> Result<()> {
    let process = state.process(name)?;
    process.kill()?;
    until(&format!("{name} to end"), TO_DIE, || Ok((!process.is_alive()).then_some(())))
}

/// Starts it again as it was started first.
pub fn start(state: &State, name: &str) -> Result<()> {
    let process = state.process(name)?;
    ensure!(!process.is_alive(), "{name} runs, as pid {}", process.pid);
    state.spawn(name, &process.command).map(drop)
}

/// Of processes with one name, the one that was started last.
fn latest(processes: Vec<Process>) -> BTreeMap<String, Process> {
    processes.into_iter().map(|process| (process.name.clone(), process)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_started_again_is_told_once() {
        let process = |pid| Process { name: "etcd".into(), pid, start: 1, command: Vec::new() };
        let latest = latest(vec![process(1), process(2)]);
        assert_eq!(latest["etcd"].pid, 2);
        assert_eq!(latest.len(), 1);
    }
}
