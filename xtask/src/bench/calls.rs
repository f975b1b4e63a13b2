//! Calls of gRPC, as h2load makes them: a small message there and back, and trailers behind it.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::command::CommandExt;

use super::measure::{Values, cpu_seconds};
use super::paths::{CALLS, Paths};
use super::plan::{self, Path, Probe};

/// A call's message of 16 bytes behind the five bytes of its length.
const MESSAGE: &[u8] = b"\0\0\0\0\x1016 bytes of text";

/// Makes calls on `connections` with so many `streams` open on each, as fast as they are answered.
pub fn measure(
    paths: &Paths,
    path: Path,
    probe: Probe,
    (connections, streams): (u32, u32),
    seconds: u32,
) -> Result<Values> {
    let (host, port) = paths.target(path, probe.place, CALLS)?;
    let (message, log) = (paths.directory().join("call"), paths.directory().join("calls.log"));
    fs::write(&message, MESSAGE).context("can't write a call's message")?;
    // It adds to what is there.
    let _nothing_there = fs::remove_file(&log);
    let command = [
        "h2load",
        "--threads=1",
        &format!("--clients={connections}"),
        &format!("--max-concurrent-streams={streams}"),
        &format!("--duration={seconds}"),
        &format!("--data={}", message.display()),
        &format!("--log-file={}", log.display()),
        "--header=content-type: application/grpc",
        "--header=te: trailers",
        &format!("http://{host}:{port}/bench.Echo/Call"),
    ];
    let before = cpu_seconds(paths, path)?;
    let report = paths.in_client(path, seconds, &command).captured()?;
    let cpu = cpu_seconds(paths, path)? - before;
    ensure!(report.contains(" 0 failed, 0 errored, 0 timeout"), "calls failed:\n{report}");
    let times = Times::read(&fs::read_to_string(&log).context("h2load's log")?)?;
    #[allow(clippy::cast_precision_loss)]
    let count = times.sorted.len() as f64;
    let values = [count / f64::from(seconds), times.quantile(0.5), times.quantile(0.99), cpu / count * 1e5];
    let names = plan::CALLS.map(|metric| format!("{metric}_{connections}x{streams}"));
    let measured = names.into_iter().zip(values);
    Ok(measured.filter(|(name, _)| path != Path::None || !name.starts_with("cpu")).collect())
}

/// How long calls took.
#[derive(Debug)]
struct Times {
    /// In microseconds, the least first.
    sorted: Vec<u64>,
}

impl Times {
    /// Reads h2load's log: when a call began, its status, and how long it took.
    fn read(log: &str) -> Result<Self> {
        let mut sorted = Vec::new();
        for line in log.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            let [_, status, took] = fields[..] else { anyhow::bail!("not a line of h2load's log: {line}") };
            ensure!(status == "200", "a call was answered by {status}");
            sorted.push(took.parse().with_context(|| format!("not a time: {took}"))?);
        }
        ensure!(!sorted.is_empty(), "no call was answered");
        sorted.sort_unstable();
        Ok(Self { sorted })
    }

    /// In milliseconds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn quantile(&self, quantile: f64) -> f64 {
        let index = (self.sorted.len() as f64 * quantile) as usize;
        self.sorted[index.min(self.sorted.len() - 1)] as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_h2loads_log() {
        let lines: Vec<_> = (1..=100).rev().map(|ms| format!("170000\t200\t{}\n", ms * 1000)).collect();
        let times = Times::read(&lines.concat()).unwrap();
        assert!((times.quantile(0.5) - 51.0).abs() < 0.5 && (times.quantile(0.99) - 100.0).abs() < 0.5);
        assert!(Times::read("170000\t503\t10\n").unwrap_err().to_string().contains("503"));
        assert!(Times::read("").is_err());
    }

    #[test]
    fn a_message_has_the_length_that_it_says() {
        assert_eq!(MESSAGE.len(), 5 + usize::from(MESSAGE[4]));
    }
}
