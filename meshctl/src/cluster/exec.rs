//! Programs that run in the mesh's own pods for a moment.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Cluster;

impl Cluster {
    /// Runs a program in a pod of the mesh, and answers what it printed. Errors: it may not be run, or what
    /// it said if it failed.
    pub async fn run_in(&self, pod: &str, command: &[String]) -> Result<String> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let asked = AttachParams::default().stdin(false).stdout(true).stderr(true);
        let mut program = pods.exec(pod, command, &asked).await.context(
            "the API server does not run a program in the pod; it takes the verbs `get` and `create` on pods/exec",
        )?;
        let status = program.take_status();
        let (out, err) = tokio::join!(text(program.stdout()), text(program.stderr()));
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        match status.and_then(|status| status.status).as_deref() {
            Some("Success") => Ok(out),
            _ => bail!("{}", err.trim().trim_start_matches("mesh-control: ")),
        }
    }
}

/// All that comes; what there is of it if the connection breaks.
async fn text(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _broke = stream.read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
