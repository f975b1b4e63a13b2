//! Routes of the Gateway API as its own conformance suite sees them, and beyond what that looks at.

mod exact;
mod suite;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_e2e::kubectl;
use serde_json::Value;

/// What `cargo xtask e2e` has built of the suite.
struct Built {
    directory: PathBuf,
}

impl Built {
    fn find() -> Result<Self> {
        let directory =
            std::env::var_os("NODEMESH_CONFORMANCE").context("run it with `cargo xtask e2e conformance`")?;
        Ok(Self { directory: directory.into() })
    }

    /// The suite as a program.
    fn program(&self) -> PathBuf {
        self.directory.join("conformance.test")
    }

    /// The image of its pods, which every node has.
    fn image(&self) -> Result<String> {
        let path = self.directory.join("image");
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }
}

/// The Gateway API's own definitions, which go with the value: other tests define these kinds, too.
struct Definitions {
    names: Vec<String>,
}

impl Definitions {
    fn apply(built: &Built) -> Result<Self> {
        let mut apply = Command::new("kubectl");
        // The largest does not fit into the annotation of a plain apply.
        apply.args(["apply", "--server-side", "--output=json", "--filename"]);
        let applied = kubectl::output(apply.arg(built.directory.join("definitions")))?;
        let list: Value = serde_json::from_str(&applied).context("kubectl printed what is not JSON")?;
        let name = |it: &Value| it["metadata"]["name"].as_str().map(str::to_owned);
        let definitions =
            Self { names: list["items"].as_array().into_iter().flatten().filter_map(name).collect() };
        ensure!(!definitions.names.is_empty(), "there are no definitions in {}", built.directory.display());
        definitions.each(&["wait", "--for=condition=Established", "--timeout=60s"])?;
        Ok(definitions)
    }

    fn each(&self, arguments: &[&str]) -> Result<()> {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(arguments).arg("customresourcedefinitions").args(&self.names);
        kubectl::output(&mut kubectl).map(drop)
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        if let Err(error) = self.each(&["delete", "--ignore-not-found"]) {
            eprintln!("definitions of the Gateway API stay: {error:#}");
        }
    }
}
