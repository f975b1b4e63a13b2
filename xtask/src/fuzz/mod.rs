//! `cargo xtask fuzz [TARGET…]`: the targets of `fuzz/`, with libFuzzer and `AddressSanitizer`.
//!
//! What cargo-fuzz does is to set a few flags and to run what was built; so there is no need of it, nor of a
//! nightly toolchain.

mod build;
mod corpus;

use std::io;
use std::path::{self, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::command::CommandExt;
use crate::setup;
use crate::workspace::Workspace;
use corpus::Corpus;

/// Seconds for each target where nothing is said.
const SHORT: u32 = 10;

/// Seconds for each target among the other tests: it reads its corpus, and a little more.
const SHORTEST: u32 = 4;

/// A single input may take this many seconds and this many MB before it counts as found. Seconds of the
/// clock, of which a busy machine may give a run at idle priority none for a long while.
const TIMEOUT: u32 = 120;
const MEMORY: u32 = 2048;

/// Longest input, bytes.
const LONGEST: u32 = 16_384;

/// What to run, and for how long.
#[derive(Args)]
pub struct Options {
    /// How long each target runs after its corpus
    #[arg(long, default_value_t = SHORT)]
    seconds: u32,
    /// Afterwards, put what reaches new code into the tree's corpus, which is then the smallest that reaches
    /// all of it
    #[arg(long)]
    keep: bool,
    /// Targets, or one target and inputs that it is to read again; all targets if absent
    targets: Vec<String>,
}

impl Options {
    /// All targets, as a part of all tests.
    pub fn among_tests() -> Self {
        Self { seconds: SHORTEST, keep: false, targets: Vec::new() }
    }
}

/// Builds all targets and runs those that are asked for.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::cplusplus()?;
    let all = targets(workspace)?;
    let (wanted, inputs): (Vec<_>, Vec<_>) =
        options.targets.iter().cloned().partition(|name| all.contains(name));
    let inputs: Vec<PathBuf> = inputs.iter().map(path::absolute).collect::<io::Result<_>>()?;
    for input in &inputs {
        ensure!(input.exists(), "{} is neither a target ({}) nor a file", input.display(), all.join(", "));
    }
    ensure!(inputs.is_empty() || wanted.len() == 1, "say which target is to read the input");
    build::all(workspace)?;
    for target in if wanted.is_empty() { &all } else { &wanted } {
        let target = Target { workspace, name: target, corpus: Corpus::of(workspace, target)? };
        if !inputs.is_empty() {
            target.again(&inputs)?;
            continue;
        }
        target.explore(options.seconds)?;
        if options.keep {
            target.corpus.keep(&target.command()?)?;
        }
    }
    Ok(())
}

/// The names of the files in `fuzz/targets`, sorted.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = workspace.root().join("fuzz/targets");
    let entries = directory.read_dir().with_context(|| format!("can't list {}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        Some(path.file_stem()?.to_str()?.to_owned())
    });
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    Ok(names)
}

struct Target<'a> {
    workspace: &'a Workspace,
    name: &'a str,
    corpus: Corpus,
}

impl Target<'_> {
    /// Runs its corpus and then looks for more; an error tells where the input is that something is wrong
    /// with.
    fn explore(&self, seconds: u32) -> Result<()> {
        let start = Instant::now();
        let mut command = self.command()?;
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-print_final_stats=1", "-verbosity=1"]).args(self.corpus.directories());
        let outcome = command.outcome()?;
        ensure!(
            outcome.success,
            "{}\nThe target {name} found something. To see it again: cargo xtask fuzz {name} {}/…",
            tail(&outcome.stderr),
            self.corpus.artifacts().display(),
            name = self.name,
        );
        let runs = statistic(&outcome.stderr, "stat::number_of_executed_units:").unwrap_or("no");
        say!("fuzz {:<10} {runs} inputs in {} s", self.name, start.elapsed().as_secs());
        Ok(())
    }

    /// Runs single inputs.
    fn again(&self, inputs: &[PathBuf]) -> Result<()> {
        self.command()?.args(inputs).checked()
    }

    /// Its program with the limits that are the same for every run.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(build::program(self.workspace, self.name)?);
        command.current_dir(self.workspace.root());
        command.arg(format!("-artifact_prefix={}/", self.corpus.artifacts().display()));
        command.args([
            format!("-timeout={TIMEOUT}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-max_len={LONGEST}"),
        ]);
        Ok(command)
    }
}

/// The end of what libFuzzer said: the panic, the input, the stack.
fn tail(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn statistic<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libfuzzer_says() {
        let text = "Done 12 runs in 1 second(s)\nstat::number_of_executed_units: 4711\nstat::x: 1\n";
        assert_eq!(statistic(text, "stat::number_of_executed_units:"), Some("4711"));
        assert_eq!(tail(text), text.trim_end());
        assert_eq!(tail(&"line\n".repeat(100)).lines().count(), 60);
    }

    /// Each target has a program, a module and a corpus.
    #[test]
    fn targets_are_complete() {
        let workspace = Workspace::locate().unwrap();
        let manifest = std::fs::read_to_string(workspace.root().join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert!(!targets.is_empty());
        for name in targets {
            assert!(
                manifest.contains(&format!("path = \"targets/{name}.rs\"")),
                "{name} is not in fuzz/Cargo.toml"
            );
            assert!(workspace.root().join("fuzz/src").join(format!("{name}.rs")).exists(), "{name}");
            let corpus = workspace.root().join("fuzz/corpus").join(&name);
            assert!(corpus.read_dir().unwrap().next().is_some(), "{name} has no corpus");
        }
    }
}
