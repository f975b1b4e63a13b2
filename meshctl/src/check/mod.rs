//! `meshctl check`: what keeps a mesh from being installed, or an installed one from working, and what to do
//! about it.

mod access;
mod after;
mod before;
mod kernel;
mod resources;
mod strangers;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::output::{Format, Table};
use crate::reason::reason;
use crate::source::Source;

/// What to check.
#[derive(Args)]
pub struct Options {
    /// Before an installation: does the cluster have what a mesh needs, and may you install it?
    #[arg(long)]
    pre: bool,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub result: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be; the mesh works.
    Warn,
    /// The mesh does not work, or not everywhere.
    Fail,
}

impl Finding {
    /// It is as it should be.
    pub fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), result: Verdict::Ok, detail: detail.into(), fix: None }
    }

    /// It is not, and the mesh works.
    pub fn warn(check: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let (check, detail) = (check.to_owned(), detail.into());
        Self { check, result: Verdict::Warn, detail, fix: Some(fix.into()) }
    }

    /// It is not, and the mesh does not work for it.
    pub fn fail(check: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Verdict::Fail, ..Self::warn(check, detail, fix) }
    }

    /// It could not be looked at.
    pub fn unknown(check: &str, error: &anyhow::Error) -> Self {
        Self::warn(check, format!("could not be looked at: {}", reason(error)), "look as somebody who may")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// Checks. The exit status is 1 if something fails.
pub async fn run(source: &Source, options: &Options, format: Format) -> Result<ExitCode> {
    let cluster = source.cluster().await?;
    let findings = if options.pre { before::check(&cluster).await } else { after::check(cluster).await? };
    format.print(&findings, |findings| text(findings))?;
    let failed = findings.iter().any(|finding| finding.result == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line for each, and below it what to do.
fn text(findings: &[Finding]) -> String {
    let mut table = Table::new(&["RESULT", "CHECK", "FOUND"]);
    for finding in findings {
        table.row([finding.result.to_string(), finding.check.clone(), finding.detail.clone()]);
        if let Some(fix) = &finding.fix {
            table.row([" ".to_owned(), " ".to_owned(), format!("-> {fix}")]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_was_found() {
        let shown = text(&[Finding::ok("version", "v1.34"), Finding::fail("nodes", "none", "add one")]);
        let lines: Vec<_> = shown.lines().map(str::trim).collect();
        assert_eq!(lines[1..], ["ok      version  v1.34", "FAIL    nodes    none", "-> add one"]);
    }
}
