//! One question to an admin endpoint: HTTP over TCP or over a Unix socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Longest wait for an answer: the endpoints answer from memory.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where an agent or the control plane answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl Endpoint {
    /// `GET path`, as JSON.
    pub async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.bytes(path).await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{self}{path} answered what is not of this version"))
    }

    /// `GET path`, as it came.
    pub async fn bytes(&self, path: &str) -> Result<Bytes> {
        let asking = async {
            match self {
                Self::Tcp(address) => exchange(TcpStream::connect(address).await?, path).await,
                Self::Unix(socket) => exchange(UnixStream::connect(socket).await?, path).await,
            }
        };
        tokio::time::timeout(TIMEOUT, asking)
            .await
            .with_context(|| format!("{self} did not answer within {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("can't ask {self}"))
    }
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, path: &str) -> Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors come out of the request as well.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "nodemesh").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "GET {path}: {status}: {}", String::from_utf8_lossy(&body).trim());
    Ok(body)
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("a path has to follow `unix:`".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.into()))
            }
            _ => Err("neither HOST:PORT nor unix:PATH".into()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_paths_and_nothing_else() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Endpoint::Unix("/run/a.sock".into())));
        assert_eq!("[::1]:15000".parse(), Ok(Endpoint::Tcp("[::1]:15000".into())));
        assert_eq!("node1:15000".parse(), Ok(Endpoint::Tcp("node1:15000".into())));
        for wrong in ["unix:", "node1", ":15000", "node1:http", ""] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_failure_names_the_endpoint() {
        let endpoint = Endpoint::Unix("/nonexistent/admin.sock".into());
        let error = endpoint.bytes("/status").await.unwrap_err();
        assert_eq!(error.to_string(), "can't ask unix:/nonexistent/admin.sock");
    }
}
