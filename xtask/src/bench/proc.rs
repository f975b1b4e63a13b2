//! What /proc tells about the proxies: which they are, their CPU time, their memory (proc(5)).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Clock ticks of /proc in a second: fixed for programs, whatever the kernel's own clock (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Processes with an argument that starts like that; an error if there are none.
pub fn with_argument(argument: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("can't read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended meanwhile is none of them.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word.starts_with(argument.as_bytes())) {
            found.push(pid);
        }
    }
    ensure!(!found.is_empty(), "no process runs with {argument}");
    Ok(found)
}

/// Processes of the agent of a node, as `mesh-lab status -o json` shows the node: its keeper, and the proxy
/// if that runs. None if the node has no agent.
pub fn of_agent(node: &Value) -> Option<Vec<u32>> {
    let keeper = id(&node["agent"]["pid"])?;
    let proxies = node["agent"]["children"].as_array()?.iter().filter_map(id);
    Some(std::iter::once(keeper).chain(proxies).collect())
}

/// A process id.
pub fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// CPU time that processes have used so far, in user and kernel mode, in seconds.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let of = |pid: &u32| {
        let file = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {file}"))?;
        ticks(&text).map(|ticks| ticks / TICKS).with_context(|| format!("{file} is not as proc(5) says"))
    };
    pids.iter().map(of).sum()
}

/// Resident memory of processes that belong together, in megabytes: a page that several of them map counts
/// once, as two processes of one program share its code. (`proc_pid_pagemap(5)`; frame numbers are shown to
/// root alone.)
pub fn resident(pids: &[u32]) -> Result<f64> {
    let mut frames = HashSet::new();
    for pid in pids {
        let (maps, pagemap) = (format!("/proc/{pid}/maps"), format!("/proc/{pid}/pagemap"));
        let text = fs::read_to_string(&maps).with_context(|| format!("can't read {maps}"))?;
        let file = fs::File::open(&pagemap).with_context(|| format!("can't read {pagemap}"))?;
        for (first, count) in text.lines().filter_map(pages) {
            let mut entries = vec![0; count * ENTRY];
            // What was unmapped meanwhile has no entries; what was never the process's own, neither.
            let read = file.read_at(&mut entries, (first * ENTRY) as u64).unwrap_or_default();
            let (entries, _) = entries[..read].as_chunks::<ENTRY>();
            frames.extend(entries.iter().filter_map(|entry| frame(u64::from_ne_bytes(*entry))));
        }
    }
    ensure!(!frames.is_empty(), "processes {pids:?} have no memory, or this is not root");
    #[allow(clippy::cast_precision_loss)]
    Ok((frames.len() * PAGE) as f64 / 1e6)
}

/// Bytes of a page, on the machines that the mesh runs on.
const PAGE: usize = 4096;
/// Bytes that describe a page in `pagemap`.
const ENTRY: usize = 8;

/// The first page of a mapping, and how many there are.
fn pages(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start / PAGE, end.checked_sub(start)? / PAGE))
}

/// The frame of a page that is present.
fn frame(entry: u64) -> Option<u64> {
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    (entry & PRESENT != 0).then_some(entry & NUMBER)
}

/// `utime` and `stime`, fields 14 and 15. The name, field 2, may hold anything but ends with the last
/// bracket.
fn ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cpu_time_past_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("7 broken"), None);
    }

    #[test]
    fn a_page_is_present_or_not() {
        assert_eq!(pages("00400000-00402000 r-xp 00000000 fe:00 77 /bin/agent"), Some((0x400, 2)));
        assert_eq!(pages("garbage"), None);
        assert_eq!(frame(1 << 63 | 1 << 55 | 0x77), Some(0x77));
        assert_eq!(frame(0x77), None);
    }

    #[test]
    fn what_is_shared_counts_once() {
        let own = std::process::id();
        let (once, twice) = (resident(&[own]).unwrap(), resident(&[own, own]).unwrap());
        assert!(twice < once * 1.5, "{once} and {twice} MB");
    }
}
