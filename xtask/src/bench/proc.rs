//! What /proc tells about the proxies: which they are, their CPU time, their memory (proc(5)).

use std::fs;

use anyhow::{Context, Result, ensure};

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

/// CPU time that a process has used so far, in user and kernel mode, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&file).with_context(|| format!("can't read {file}"))?;
    ticks(&text).map(|ticks| ticks / TICKS).with_context(|| format!("{file} is not as proc(5) says"))
}

/// Resident memory of a process, in megabytes.
pub fn resident(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("can't read {file}"))?;
    let kilobytes = kilobytes(&text).with_context(|| format!("{file} is not as proc(5) says"))?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// `utime` and `stime`, fields 14 and 15. The name, field 2, may hold anything but ends with the last bracket.
fn ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
}

fn kilobytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
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
    fn reads_resident_memory() {
        assert_eq!(kilobytes("Name:\tagent\nVmRSS:\t   13328 kB\nThreads:\t4\n"), Some(13_328.0));
        assert_eq!(kilobytes("Name:\tkthreadd\n"), None);
    }
}
