//! Pods that give way to others, at a steady rate, and how long it takes until each node's kernel knows the
//! new one.

use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::bench::proc;

use super::kernel::Destinations;
use super::lab::{Lab, NODES};
use super::objects::Mesh;
use super::rows::Rows;

/// A change that takes longer than that is lost.
const LOST: Duration = Duration::from_secs(20);
/// Between two looks into the maps.
const LOOK: Duration = Duration::from_millis(2);

/// A pod that was written.
struct Written {
    address: IpAddr,
    at: Instant,
}

/// Makes changes for a while and adds what they took.
pub fn run(lab: &Lab, mesh: &mut Mesh, rate: u32, long: Duration, rows: &mut Rows) -> Result<()> {
    say!("scale: {rate} changes/s for {} s", long.as_secs());
    let (control, agent) = ([lab.control()?], lab.agent(NODES[0])?);
    let before = (proc::cpu_seconds(&control)?, proc::cpu_seconds(&agent)?);
    let mut watches = Vec::new();
    let mut tellers = Vec::new();
    for node in NODES {
        let map = lab.destinations(node)?;
        let (teller, written) = mpsc::channel();
        tellers.push(teller);
        watches.push(thread::spawn(move || watch(&map, &written)));
    }
    let start = Instant::now();
    let count = rate * u32::try_from(long.as_secs()).unwrap_or(u32::MAX);
    for number in 0..count {
        let due = start + number * Duration::from_secs(1) / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let number = number as usize;
        // A prime apart, so that services and namespaces take turns.
        let service = number * 7919 % mesh.services();
        let at = Instant::now();
        let (v4, _) = mesh.replace_pod(&lab.given(), service, number)?;
        for teller in &tellers {
            let _ended_early = teller.send(Written { address: v4.into(), at });
        }
    }
    drop(tellers);
    let took = start.elapsed().as_secs_f64();
    let mut delays = Vec::new();
    for watch in watches {
        delays.extend(watch.join().map_err(|_| anyhow!("a watch panicked"))??);
    }
    delays.sort_unstable();
    rows.add("scale.change_rate", "changes/s", f64::from(count) / took);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        rows.add(&format!("scale.change_{name}_ms"), "ms", percentile(&delays, share)?.as_secs_f64() * 1e3);
    }
    let used = start.elapsed().as_secs_f64();
    rows.add("scale.control_cpu", "% of a core", (proc::cpu_seconds(&control)? - before.0) / used * 100.0);
    rows.add("scale.agent_cpu", "% of a core", (proc::cpu_seconds(&agent)? - before.1) / used * 100.0);
    Ok(())
}

/// Looks for each address until it is there; answers how long each took.
fn watch(map: &Path, written: &Receiver<Written>) -> Result<Vec<Duration>> {
    let known = Destinations::open(map)?;
    let (mut open, mut delays, mut more) = (Vec::<Written>::new(), Vec::new(), true);
    while more || !open.is_empty() {
        loop {
            match written.try_recv() {
                Ok(change) => open.push(change),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    more = false;
                    break;
                }
            }
        }
        let now = Instant::now();
        open.retain(|change| {
            let there = known.know(change.address);
            if there {
                delays.push(now - change.at);
            }
            !there
        });
        if let Some(late) = open.iter().find(|change| change.at.elapsed() > LOST) {
            bail!("{} is not known after {} s", late.address, LOST.as_secs());
        }
        thread::sleep(LOOK);
    }
    Ok(delays)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // of some thousands
fn percentile(sorted: &[Duration], share: f64) -> Result<Duration> {
    let last = sorted.len().checked_sub(1).context("nothing was measured")?;
    Ok(sorted[(last as f64 * share).round() as usize])
}
