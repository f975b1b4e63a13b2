//! Connects to the control plane: the same address, name and token for certificates and discovery.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::RootCertStore;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig};

/// See docs/wire.md, Control plane.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Address of the control plane, and what it authenticates us by.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlaneConnector {
    /// URL of the form `https://HOST:PORT`.
    pub address: String,
    /// DNS name that its certificate must have.
    pub name: String,
    /// PEM file of the roots that its certificate is checked with at first.
    pub root_cert: PathBuf,
    /// File of the node's token.
    pub token_file: PathBuf,
    /// Name of the cluster (`--cluster-id`), which istiod needs to sign for other identities.
    pub cluster_id: String,
}

/// Why the control plane can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneConnectError {
    /// The address is not a URL. The operator has to act.
    #[error("{address}: {error}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        error: tonic::transport::Error,
    },
    /// There is no root to check its certificate with. The operator has to act.
    #[error("no root certificate to check the control plane with; looked in {}", .0.display())]
    NoRoots(PathBuf),
    /// It is unreachable, or TLS failed.
    #[error("{}", causes(.0))]
    Unreachable(tonic::transport::Error),
    /// The token can't be read. The operator has to act.
    #[error("token {}: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The token has bytes that a header can't have. The operator has to act.
    #[error("token {}: it is not a token", .0.display())]
    BadToken(PathBuf),
    /// The cluster's name has characters that a header can't have. The operator has to act.
    #[error("--cluster-id {0:?} can't be sent: give one of visible ASCII characters")]
    BadClusterId(String),
}

impl ControlPlaneConnector {
    /// Connects. Each use makes a connection of its own, so that it has the newest roots and certificate.
    /// Errors: the address is not valid, or the control plane is unreachable.
    pub async fn open_channel(
        &self,
        roots: &RootCertStore,
        own: Option<tonic::transport::Identity>,
    ) -> Result<Channel, ControlPlaneConnectError> {
        if roots.is_empty() {
            return Err(ControlPlaneConnectError::NoRoots(self.root_cert.clone()));
        }
        let address = |error| ControlPlaneConnectError::Address { address: self.address.clone(), error };
        let mut tls = ClientTlsConfig::new().domain_name(&self.name).trust_anchors(roots.roots.clone());
        if let Some(own) = own {
            tls = tls.identity(own);
        }
        let endpoint = tonic::transport::Endpoint::from_shared(self.address.clone()).map_err(address)?;
        endpoint
            .tls_config(tls)
            .map_err(address)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Some(Duration::from_mins(5)))
            .tcp_keepalive_interval(Some(Duration::from_secs(75)))
            .tcp_keepalive_retries(Some(9))
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect()
            .await
            .map_err(ControlPlaneConnectError::Unreachable)
    }

    /// Adds the token and the cluster's name to a request. Errors: one of them can't be read or sent.
    pub fn add_auth_headers<T>(&self, request: &mut Request<T>) -> Result<(), ControlPlaneConnectError> {
        let bad = || ControlPlaneConnectError::BadClusterId(self.cluster_id.clone());
        // The library would also send other bytes, which the control plane can't read.
        let sendable = self.cluster_id.bytes().all(|byte| byte.is_ascii_graphic());
        let cluster = self.cluster_id.parse().ok().filter(|_| sendable).ok_or_else(bad)?;
        request.metadata_mut().insert("authorization", self.authorization()?);
        request.metadata_mut().insert("clusterid", cluster);
        Ok(())
    }

    /// Returns `Bearer TOKEN`, from the file as it is now.
    fn authorization(&self) -> Result<MetadataValue<Ascii>, ControlPlaneConnectError> {
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|error| ControlPlaneConnectError::Token { path: self.token_file.clone(), error })?;
        let bad = |_| ControlPlaneConnectError::BadToken(self.token_file.clone());
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse().map_err(bad)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Returns an error's text with those of its causes: the transport's own text alone says nothing.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Wrappers repeat what they wrap.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
