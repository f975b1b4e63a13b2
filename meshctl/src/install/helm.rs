//! Renders the chart with the `helm` program; nothing of Helm's own records is written.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::process::Command;

const HOW_TO_GET_IT: &str = "`helm`, which renders the chart, is not on PATH. Get version 3.14 or later from \
    https://helm.sh/docs/intro/install (`go install helm.sh/helm/v3/cmd/helm@v3.19.2` builds it)";

/// What the API server is taken for where none is asked; helm's own guess depends on how it was built.
const KUBERNETES: &str = "v1.34.0";

/// What the chart is rendered with.
pub struct Values<'a> {
    /// `KEY=VALUE`.
    pub set: &'a [String],
    /// Files.
    pub files: &'a [PathBuf],
}

/// The manifests of the chart in `directory`, for an API server of `version`.
pub async fn template(
    directory: &Path,
    release: &str,
    namespace: &str,
    version: Option<&str>,
    values: &Values<'_>,
) -> Result<String> {
    let version = version.unwrap_or(KUBERNETES);
    let mut command = Command::new("helm");
    command.args(arguments(directory, release, namespace, version, values));
    // The answer depends on the arguments alone.
    command.env_remove("KUBECONFIG").kill_on_drop(true);
    let output = command.output().await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(HOW_TO_GET_IT),
        _ => anyhow!(error).context("can't run helm"),
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm can't render the chart: {}", said.trim());
    String::from_utf8(output.stdout).context("helm rendered what is not UTF-8")
}

fn arguments<'a>(
    directory: &'a Path,
    release: &'a str,
    namespace: &'a str,
    version: &'a str,
    values: &Values<'a>,
) -> Vec<&'a OsStr> {
    let mut all: Vec<&OsStr> = ["template".as_ref(), release.as_ref(), directory.as_ref()].into();
    // Hooks are for helm itself to run; the chart's tests are among them.
    all.extend(["--namespace", namespace, "--include-crds", "--no-hooks"].map(OsStr::new));
    all.extend(["--kube-version", version].map(OsStr::new));
    for file in values.files {
        all.extend(["--values".as_ref(), file.as_os_str()]);
    }
    for value in values.set {
        all.extend(["--set", value].map(OsStr::new));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_pass_through_in_helms_order_of_precedence() {
        let values = Values { set: &["a=1".to_owned()], files: &["v.yaml".into()] };
        let all = arguments(Path::new("/chart"), "r", "ns", "v1.34.2", &values);
        let text: Vec<_> = all.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(text[..5], ["template", "r", "/chart", "--namespace", "ns"]);
        assert_eq!(text[7..], ["--kube-version", "v1.34.2", "--values", "v.yaml", "--set", "a=1"]);
    }
}
