//! One measurement: a load in the client's pod, what it reports, and the CPU time that the proxies took
//! meanwhile.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::CommandExt;

use super::calls;
use super::envoy::Variant;
use super::paths::{self, BULK, HTTP, LARGE_BODY, LARGE_BODY_BYTES, Paths, STREAM};
use super::plan::{FAIRNESS, Load, NOBODY, Path, Place, Probe, cpu_metric, unit};
use super::proc;

/// Runs a probe over a path and answers metrics with their values.
pub fn run(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Vec<(String, f64)>> {
    let values = if path == Path::Envoy && probe.place.is_http() {
        best_of_variants(paths, probe, seconds)
    } else {
        measured(paths, path, probe, seconds)
    };
    let values = values.with_context(|| format!("{probe:?} over {}", path.name()))?;
    Ok(values.into_iter().map(|(name, value)| (probe.metric(name), value)).collect())
}

/// Measures each way in which Envoy can be set up, and returns the best value of each metric.
fn best_of_variants(paths: &Paths, probe: Probe, seconds: u32) -> Result<Values> {
    let mut best: Values = Vec::new();
    for variant in Variant::of(probe.place) {
        paths.variant.set(variant);
        for (name, value) in measured(paths, Path::Envoy, probe, seconds)? {
            let more_is_better = unit(&name).1;
            match best.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) if more_is_better => *known = known.max(value),
                Some((_, known)) => *known = known.min(value),
                None => best.push((name, value)),
            }
        }
    }
    Ok(best)
}

fn measured(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    match probe.load {
        Load::Streams(count) => streams(paths, path, probe, count, seconds),
        Load::Requests(count) => requests(paths, path, probe, count, seconds),
        Load::Calls(connections, streams) => {
            calls::measure(paths, path, probe, (connections, streams), seconds)
        }
        Load::Bodies => bodies(paths, path, probe, seconds),
        Load::HalfOfEnvoy => half_of_envoy(paths, path, probe, seconds),
        Load::Connections => connections(paths, path, probe, seconds),
        Load::Fairness => fairness(paths, path, probe, seconds),
        Load::Nobody if path == Path::Envoy => Ok(vec![]),
        Load::Nobody => nobody(paths, path, probe, seconds),
    }
}

/// Metrics of a probe, by their short names.
pub type Values = Vec<(String, f64)>;

fn streams(paths: &Paths, path: Path, probe: Probe, count: u32, seconds: u32) -> Result<Values> {
    let (host, port) = paths.target(path, probe.place, STREAM)?;
    let (port, streams, duration) = (port.to_string(), count.to_string(), seconds.to_string());
    let before = cpu_seconds(paths, path)?;
    let command = ["iperf3", "-c", &host, "-p", &port, "-P", &streams, "-t", &duration, "-J"];
    let text = paths.in_client(path, seconds, &command).captured()?;
    let cpu = cpu_seconds(paths, path)? - before;
    let (bits_per_second, bytes) = received(&text)?;
    let mut values = vec![(format!("throughput_{count}"), bits_per_second / 1e9)];
    if count == 1 && path != Path::None {
        values.push(("cpu_s_per_gb".into(), cpu / (bytes / 1e9)));
    }
    Ok(values)
}

/// Rate and bytes that arrived, of iperf3's report.
fn received(text: &str) -> Result<(f64, f64)> {
    let report: Value = serde_json::from_str(text).context("iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let sum = &report["end"]["sum_received"];
    let (rate, bytes) = (sum["bits_per_second"].as_f64(), sum["bytes"].as_f64());
    let (rate, bytes) = rate.zip(bytes).context("iperf3's report has no sum")?;
    ensure!(bytes > 0.0, "no byte arrived");
    Ok((rate, bytes))
}

fn requests(paths: &Paths, path: Path, probe: Probe, count: u32, seconds: u32) -> Result<Values> {
    let before = cpu_seconds(paths, path)?;
    let report = wrk(paths, path, probe, count, seconds, &[])?;
    let cpu = cpu_seconds(paths, path)? - before;
    let mut values = vec![
        (format!("rps_{count}"), report.rate),
        (format!("p50_{count}"), report.p50),
        (format!("p99_{count}"), report.p99),
    ];
    if let Some(metric) = cpu_metric(count).filter(|_| path != Path::None) {
        values.push((metric.into(), cpu / report.requests * 1e5));
    }
    Ok(values)
}

/// Connections of the paced load at half of Envoy's rate.
const HALF_CONNECTIONS: u32 = 128;

fn half_of_envoy(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    let most = match paths.envoy_most.get() {
        Some(most) => *most,
        None => {
            let report = wrk(paths, Path::Envoy, probe, HALF_CONNECTIONS, seconds, &[])?;
            *paths.envoy_most.get_or_init(|| report.rate)
        }
    };
    let each = most / 2.0 / f64::from(HALF_CONNECTIONS);
    let latencies = paced(paths, path, probe, HALF_CONNECTIONS, each, seconds)?;
    Ok(vec![("p99_half".into(), latencies.quantile(0.99))])
}

/// Connections of the few requests of the fairness test, and requests a second on each.
const FEW: (u32, f64) = (4, 50.0);

/// Seconds for a stream of bytes to be at its full rate before the requests begin.
const LEAD: u32 = 1;

fn fairness(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    let few = || paced(paths, path, probe, FEW.0, FEW.1, seconds);
    let alone = few()?;
    let (throughput_alone, _) = received(&bulk(paths, path, probe, seconds)?.captured()?)?;
    let stream = bulk(paths, path, probe, seconds + 2 * LEAD)?.stdout(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(LEAD.into()));
    let beside = few();
    let output = stream.wait_with_output().context("iperf3")?;
    let beside = beside?;
    let (throughput_beside, _) = received(&String::from_utf8_lossy(&output.stdout))?;
    let (p50_alone, p50_beside) = (alone.quantile(0.5), beside.quantile(0.5));
    let values = [
        p50_alone,
        alone.quantile(0.99),
        throughput_alone / 1e9,
        p50_beside,
        beside.quantile(0.99),
        throughput_beside / 1e9,
        p50_beside / p50_alone,
        throughput_beside / throughput_alone,
    ];
    Ok(FAIRNESS.map(str::to_owned).into_iter().zip(values).collect())
}

/// How long `connect()` takes until it is refused, without a mesh at a port of a pod where nobody listens.
fn nobody(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    /// No server and no service has it.
    const CLOSED: u16 = 9;
    let port = paths.target(path, probe.place, CLOSED)?;
    let service = if path == Path::Mesh { (paths::nobody(path), HTTP) } else { port.clone() };
    let mut values = Vec::new();
    for (host, port) in [service, port] {
        let program = ["python3", "-c", REFUSED, &host, &port.to_string()];
        let times = Latencies::read(&paths.in_client(path, seconds, &program).captured()?)?;
        values.extend([times.quantile(0.5), times.quantile(1.0)]);
    }
    Ok(NOBODY.map(str::to_owned).into_iter().zip(values).collect())
}

/// Connects a thousand times and prints how long each took, in microseconds. Whatever is not refused is an
/// error. No other process has a part in it, so it runs before all others: else the longest is as long as a
/// turn of another one.
const REFUSED: &str = r"
import errno, os, socket, sys, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
to = (socket.gethostbyname(sys.argv[1]), int(sys.argv[2]))
for _ in range(1000):
    with socket.socket() as sock:
        began = time.perf_counter()
        result = sock.connect_ex(to)
        took = time.perf_counter() - began
    assert result == errno.ECONNREFUSED, errno.errorcode.get(result, result)
    print(took * 1e6)
";

/// One stream of bytes from the second pod of the client's node.
fn bulk(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Command> {
    let (host, port) = paths.target(path, probe.place, STREAM)?;
    let (port, duration) = (port.to_string(), seconds.to_string());
    let command = ["iperf3", "-c", &host, "-p", &port, "-t", &duration, "-J"];
    Ok(paths.in_pod(path, BULK, seconds, &command))
}

/// What the largest proxy of a path grows by for each of so many connections that do nothing, in kilobytes.
pub fn idle_connection(paths: &Paths, path: Path) -> Result<f64> {
    // So many that what a proxy has once, and first uses with the first of them, does not count.
    const COUNT: u32 = 5000;
    let (host, port) = paths.target(path, Place::Cross, HTTP)?;
    let before = paths.largest(path)?;
    let (port, count) = (port.to_string(), COUNT.to_string());
    let mut parked = paths
        .in_client(path, 30, &["python3", "-c", PARK, &host, &port, &count])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(parked.stdout.take().context("no output")?).read_line(&mut said)?;
    let after = paths.largest(path);
    drop(parked.stdin.take());
    parked.wait()?;
    ensure!(said.trim() == "parked", "the connections were not made: {said}");
    Ok((after? - before) * 1e3 / f64::from(COUNT))
}

/// Opens connections that have carried one request, and holds them until its input ends.
const PARK: &str = r"
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
for _ in range(count):
    held.append(socket.create_connection((host, port), timeout=10))
    held[-1].sendall(b'GET / HTTP/1.1\r\nHost: idle\r\n\r\n')
    held[-1].recv(4096)
print('parked', flush=True)
sys.stdin.read()
";

/// Latencies of requests at a fixed rate.
struct Latencies {
    /// In milliseconds, the least first.
    sorted: Vec<f64>,
}

impl Latencies {
    fn quantile(&self, quantile: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (self.sorted.len() as f64 * quantile) as usize;
        self.sorted.get(index.min(self.sorted.len() - 1)).copied().unwrap_or_default()
    }

    /// What [`pace`](super::pace) prints.
    fn read(text: &str) -> Result<Self> {
        let latencies = text.lines().map(|line| Ok(line.parse::<f64>()? / 1e3));
        let mut sorted = latencies.collect::<Result<Vec<_>>>().context("what pace prints")?;
        ensure!(!sorted.is_empty(), "no request was answered");
        sorted.sort_by(f64::total_cmp);
        Ok(Self { sorted })
    }
}

/// Requests at a fixed rate for each connection.
fn paced(paths: &Paths, path: Path, probe: Probe, count: u32, each: f64, seconds: u32) -> Result<Latencies> {
    let (host, port) = paths.target(path, probe.place, HTTP)?;
    let own = std::env::current_exe().context("where this program is")?.display().to_string();
    let (port, count, rate, duration) =
        (port.to_string(), count.to_string(), each.to_string(), seconds.to_string());
    let command =
        [&own, "pace", &host, &port, "--connections", &count, "--rate", &rate, "--seconds", &duration];
    Latencies::read(&paths.in_client(path, seconds, &command).captured()?)
}

fn connections(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    let report = wrk(paths, path, probe, 16, seconds, &["-H", "Connection: close"])?;
    Ok(vec![("conn_rate".into(), report.rate)])
}

/// Connections that large responses come on.
const BODY_CONNECTIONS: u32 = 8;

fn bodies(paths: &Paths, path: Path, probe: Probe, seconds: u32) -> Result<Values> {
    let report = wrk_of(paths, path, (probe, LARGE_BODY), BODY_CONNECTIONS, seconds, &[])?;
    #[allow(clippy::cast_precision_loss)]
    let bits = report.rate * 8.0 * LARGE_BODY_BYTES as f64;
    Ok(vec![("throughput_bodies".into(), bits / 1e9)])
}

fn wrk(paths: &Paths, path: Path, probe: Probe, count: u32, seconds: u32, more: &[&str]) -> Result<Wrk> {
    wrk_of(paths, path, (probe, "/"), count, seconds, more)
}

fn wrk_of(
    paths: &Paths,
    path: Path,
    (probe, page): (Probe, &str),
    count: u32,
    seconds: u32,
    more: &[&str],
) -> Result<Wrk> {
    let (host, port) = paths.target(path, probe.place, HTTP)?;
    let (count, duration) = (format!("-c{count}"), format!("-d{seconds}s"));
    let url = format!("http://{host}:{port}{page}");
    let mut command = vec!["wrk", "-t1", &count, &duration, "--latency"];
    command.extend_from_slice(more);
    command.push(&url);
    let text = paths.in_client(path, seconds, &command).captured()?;
    Wrk::read(&text).with_context(|| format!("wrk's report:\n{text}"))
}

/// What wrk reports.
#[derive(Debug, PartialEq)]
struct Wrk {
    requests: f64,
    rate: f64,
    /// In milliseconds, like `p99`.
    p50: f64,
    p99: f64,
}

impl Wrk {
    fn read(text: &str) -> Result<Self> {
        let errors = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        ensure!(errors.is_none_or(only_timeouts), "errors under load: {}", errors.unwrap_or_default().trim());
        let after = |label: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            line.map(str::trim).with_context(|| format!("no `{label}`"))
        };
        let total = text.lines().find(|line| line.contains(" requests in ")).context("no total")?;
        let requests = total.split_whitespace().next().context("no total")?.parse()?;
        let rate = after("Requests/sec:")?.parse()?;
        let report =
            Self { requests, rate, p50: milliseconds(after("50%")?)?, p99: milliseconds(after("99%")?)? };
        ensure!(report.requests > 0.0, "no request was answered");
        Ok(report)
    }
}

/// A request that takes longer than wrk's two seconds shows in the latency, not as an error of the path.
fn only_timeouts(line: &str) -> bool {
    line.contains("connect 0, read 0, write 0, timeout")
}

fn milliseconds(text: &str) -> Result<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)];
    for (unit, factor) in units {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>().with_context(|| format!("the time {text}"))? * factor);
        }
    }
    anyhow::bail!("a time without a unit: {text}")
}

/// CPU time that the proxies of a path have used so far, in user and kernel mode.
pub fn cpu_seconds(paths: &Paths, path: Path) -> Result<f64> {
    proc::cpu_seconds(&paths.proxies(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 1s test @ http://10.0.0.1:8080/
  1 threads and 16 connections
  Latency Distribution
     50%   57.00us
     75%  130.00us
     90%  208.00us
     99%    1.25ms
  153000 requests in 1.00s, 24.40MB read
Requests/sec: 152000.50
Transfer/sec:     24.30MB
";

    #[test]
    fn reads_wrks_report() {
        let report = Wrk::read(REPORT).unwrap();
        assert_eq!(report, Wrk { requests: 153_000.0, rate: 152_000.5, p50: 0.057, p99: 1.25 });
        let broken = format!("{REPORT}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(Wrk::read(&broken).unwrap_err().to_string().contains("read 3"));
        assert!(Wrk::read("").is_err());
    }

    #[test]
    fn the_quantiles_are_of_what_pace_prints() {
        let lines: Vec<_> = (1..=100).rev().map(|ms| format!("{}\n", ms * 1000)).collect();
        let latencies = Latencies::read(&lines.concat()).unwrap();
        assert!((latencies.quantile(0.5) - 51.0).abs() < 0.5);
        assert!((latencies.quantile(0.99) - 100.0).abs() < 0.5);
        assert!(Latencies::read("x\n").is_err() && Latencies::read("").is_err());
    }

    #[test]
    fn reads_iperf3s_report() {
        let text = r#"{"end":{"sum_received":{"bytes":4000,"bits_per_second":32000.0}}}"#;
        assert_eq!(received(text).unwrap(), (32_000.0, 4_000.0));
        assert_eq!(received(r#"{"error":"no route"}"#).unwrap_err().to_string(), "iperf3: no route");
    }
}
