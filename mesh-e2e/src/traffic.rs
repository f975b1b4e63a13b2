//! Requests that never stop, and what became of them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::scope::Scope;
use crate::wait::{SOON, eventually};
use crate::workload;

/// Asks the Service `web` by its address, every 50 ms on a new connection and every 50 ms on one that is
/// kept, and prints a line for each answer. It needs nothing but the network: no name server and no API
/// server.
const SCRIPT: &str = r#"
import http.client, os, threading, time

host = os.environ["WEB_SERVICE_HOST"]

def ask(connection):
    connection.request("GET", "/")
    connection.getresponse().read()

def forever(kind, keep):
    connection = None
    while True:
        start = time.monotonic()
        try:
            if connection is None:
                connection = http.client.HTTPConnection(host, 80, timeout=5)
            ask(connection)
            outcome = "ok"
        except TimeoutError:
            outcome = "hung"
        except (OSError, http.client.HTTPException) as error:
            outcome = "failed " + type(error).__name__
        if connection is not None and not (keep and outcome == "ok"):
            connection.close()
            connection = None
        # One write, so that the two threads' lines stay whole.
        os.write(1, f"{kind} {(time.monotonic() - start) * 1000:.0f} {outcome}\n".encode())
        time.sleep(0.05)

threading.Thread(target=forever, args=("kept", True), daemon=True).start()
forever("new", False)
"#;

/// A pod that makes requests until its namespace goes.
pub struct Traffic<'a> {
    scope: &'a Scope,
}

impl<'a> Traffic<'a> {
    /// Starts them on `node`, and waits until they are answered; what became of them by then comes along. The
    /// Service `web` must be there.
    pub fn start(scope: &'a Scope, node: &str) -> Result<(Self, Tally)> {
        let spec = workload::pod_spec("default", Some(node), &["python3", "-u", "-c", SCRIPT]);
        scope.apply(&workload::pod("traffic", &spec))?;
        scope.kubectl(&["wait", "pod/traffic", "--for=condition=Ready", "--timeout=60s"])?;
        let traffic = Self { scope };
        let tally = eventually("traffic flows", SOON, || {
            let tally = traffic.tally()?;
            ensure!(tally.ok > 100, "{tally}");
            Ok(tally)
        })?;
        Ok((traffic, tally))
    }

    /// What became of all requests so far.
    pub fn tally(&self) -> Result<Tally> {
        Ok(Tally::of(&self.scope.kubectl(&["logs", "traffic"])?))
    }
}

/// Requests by outcome.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Answered.
    pub ok: usize,
    /// Refused, reset, or ended early; one line each.
    pub failed: Vec<String>,
    /// Without an answer for 5 seconds; one line each.
    pub hung: Vec<String>,
    /// The longest time that an answer took, in milliseconds.
    pub slowest: u64,
}

impl Tally {
    fn of(log: &str) -> Self {
        let mut tally = Self::default();
        for line in log.lines() {
            tally.count(line);
        }
        tally
    }

    fn count(&mut self, line: &str) -> Option<()> {
        let mut words = line.splitn(3, ' ').skip(1);
        let milliseconds = words.next()?.parse().ok()?;
        match words.next()? {
            "ok" => {
                self.ok += 1;
                self.slowest = self.slowest.max(milliseconds);
            }
            "hung" => self.hung.push(line.into()),
            _ => self.failed.push(line.into()),
        }
        Some(())
    }

    /// What came since `earlier`, a tally of the same traffic.
    pub fn since(&self, earlier: &Self) -> Result<Self> {
        let from = |new: &[String], old: &[String]| new.get(old.len()..).map(<[String]>::to_vec);
        Ok(Self {
            ok: self.ok.checked_sub(earlier.ok).context("requests vanished")?,
            failed: from(&self.failed, &earlier.failed).context("failures vanished")?,
            hung: from(&self.hung, &earlier.hung).context("failures vanished")?,
            slowest: self.slowest,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, failed, hung, slowest } = self;
        let (failed, hung) = (causes(failed), causes(hung));
        write!(f, "{ok} answered, slowest after {slowest} ms; failed: {failed}; hung: {hung}")
    }
}

/// How often each outcome was seen by each kind of connection.
fn causes(lines: &[String]) -> String {
    let mut causes = BTreeMap::<_, usize>::new();
    for line in lines {
        let mut words = line.splitn(3, ' ');
        // The second word is a time.
        *causes.entry((words.next(), words.nth(1))).or_default() += 1;
    }
    let told = causes.into_iter().map(|((kind, cause), count)| {
        format!("{count} {} {}", kind.unwrap_or_default(), cause.unwrap_or_default())
    });
    let told = told.collect::<Vec<_>>().join(", ");
    if told.is_empty() { "0".into() } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_counts_what_the_script_prints() {
        let log = "new 3 ok\nkept 12 ok\nnew 5001 hung\nnew 0 failed ConnectionRefusedError\n";
        let tally = Tally::of(log);
        assert_eq!((tally.ok, tally.slowest), (2, 12));
        assert_eq!(tally.hung, ["new 5001 hung"]);
        assert!(tally.to_string().ends_with("failed: 1 new failed ConnectionRefusedError; hung: 1 new hung"));
        let later = Tally::of(&format!("{log}new 4 ok\nkept 1 failed ConnectionResetError\n"));
        let since = later.since(&tally).unwrap();
        assert_eq!((since.ok, since.failed.len(), since.hung.len()), (1, 1, 0));
    }
}
