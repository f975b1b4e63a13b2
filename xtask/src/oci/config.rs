//! How a container of an image starts.

use std::collections::BTreeMap;
use std::env::consts;

use serde_json::{Value, json};

/// The part of the OCI image configuration that this project's images need.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The program, by its absolute path, and arguments that stay when a pod gives `args`.
    pub entrypoint: Vec<String>,
    /// Arguments for a container that names none.
    pub arguments: Vec<String>,
    /// `NAME=value` each.
    pub environment: Vec<String>,
    /// `UID` or `UID:GID`; root if empty. Numbers, so that Kubernetes can check `runAsNonRoot`.
    pub user: String,
    /// Labels such as `org.opencontainers.image.source`.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// The JSON document for an image of layers with these diff IDs, for this machine's architecture.
    pub fn document(&self, diff_ids: &[String]) -> Value {
        json!({
            "architecture": architecture(consts::ARCH),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "Env": self.environment,
                "User": self.user,
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
    }
}

/// The name that Go, and so OCI, has for what Rust calls `name`.
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_runs_and_on_what() {
        let config = Config {
            entrypoint: vec!["/bin/thing".into()],
            arguments: vec!["--help".into()],
            user: "65532:65532".into(),
            ..Config::default()
        };
        let document = config.document(&["sha256:00".into()]);
        assert_eq!(document["config"]["Entrypoint"], json!(["/bin/thing"]));
        assert_eq!(document["config"]["Cmd"], json!(["--help"]));
        assert_eq!(document["config"]["User"], "65532:65532");
        assert_eq!(document["rootfs"]["diff_ids"], json!(["sha256:00"]));
        assert_eq!(architecture("x86_64"), "amd64");
        assert_eq!(architecture("aarch64"), "arm64");
    }
}
