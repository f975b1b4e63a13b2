//! A port on a pod's loopback, through the API server and the pod's kubelet: nothing is exposed for it.

use std::fmt;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};

/// A port of a pod.
#[derive(Clone)]
pub struct PodPort {
    /// Client of the API server.
    pub client: Client,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The port.
    pub port: u16,
}

impl PodPort {
    /// Connects. The future has what the node says if the connection breaks.
    pub async fn forward(
        &self,
    ) -> Result<(impl AsyncRead + AsyncWrite + Send + Unpin + use<>, BoxFuture<'static, Option<String>>)>
    {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let mut forward = pods.portforward(&self.pod, &[self.port]).await.context(
            "the API server does not forward; it takes the verbs `get` and `create` on pods/portforward",
        )?;
        let stream = forward.take_stream(self.port).context("the forwarded port has no stream")?;
        let reason = match forward.take_error(self.port) {
            Some(reason) => reason.boxed(),
            None => ready(None).boxed(),
        };
        Ok((stream, reason))
    }
}

impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}/{}, port {}", self.namespace, self.pod, self.port)
    }
}
