//! The authority's roots, kept in a Secret.
//!
//! The state directory is this replica's working copy of the Secret: what is in the Secret is written there,
//! where the authority notices it, and a step of a rotation is written back. The API server lets only one of
//! two writers through.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use super::{Cluster, pauses};
use crate::ca::rotation::{RootStore, RotationError, RotationState, Step};
use crate::ca::{Authority, AuthorityError, GivenAuthority};
use crate::durable;

/// Name of the Secret.
const SECRET: &str = "nodemesh-ca";

/// In the state directory; it is written last, since it says which of the others count.
const STATE: &str = "state.json";

/// The Secret and its working copy.
pub struct SecretRoots {
    secrets: Api<Secret>,
    directory: PathBuf,
    /// Held while the one is brought in line with the other.
    busy: Mutex<()>,
}

impl SecretRoots {
    /// Copies the Secret into `state_dir`, or makes the first root and the Secret.
    pub async fn open(
        cluster: &Cluster,
        state_dir: &Path,
        trust_domain: &str,
        leaf_lifetime: Duration,
    ) -> Result<Self, RootsError> {
        let directory = state_dir.join("ca");
        std::fs::create_dir_all(&directory)?;
        let secrets = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let roots = Self { secrets, directory, busy: Mutex::default() };
        let found = roots.pull().await?;
        RootStore::at(state_dir).prepare(trust_domain, leaf_lifetime)?;
        if found {
            // Only the lifetime may differ; whoever was faster is as good.
            roots.push().await.or_else(RootsError::or_lost)?;
        } else {
            roots.create().await?;
        }
        Ok(roots)
    }

    /// Follows the Secret for ever.
    pub async fn follow(self: Arc<Self>) {
        let config = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
        let events = watcher(self.secrets.clone(), config).backoff(pauses()).applied_objects();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(secret) => {
                    let _busy = self.busy.lock().await;
                    if let Err(error) = self.copy(&secret) {
                        error!(%error, "roots not copied; the last ones stay in force");
                    }
                }
                Err(error) => warn!(%error, "Secret {SECRET} not watched; trying again"),
            }
        }
    }

    /// Takes a step of a rotation for all replicas.
    pub async fn rotate(
        &self,
        authority: &Authority,
        step: Option<Step>,
        force: bool,
    ) -> Result<RotationState, RotateError> {
        let _busy = self.busy.lock().await;
        self.pull().await?;
        authority.reload()?;
        let state = authority.rotate(step, force)?;
        if let Err(error) = self.push().await {
            self.pull().await?;
            authority.reload()?;
            return Err(error.into());
        }
        Ok(state)
    }

    /// Copies the Secret into the directory; false if there is none.
    async fn pull(&self) -> Result<bool, RootsError> {
        let Some(secret) = self.secrets.get_opt(SECRET).await? else { return Ok(false) };
        self.copy(&secret)?;
        Ok(true)
    }

    fn copy(&self, secret: &Secret) -> Result<(), RootsError> {
        let data = secret.data.as_ref().ok_or(RootsError::Empty)?;
        let state = data.get(STATE).ok_or(RootsError::Empty)?;
        for (name, content) in data.iter().filter(|(name, _)| is_root(name)) {
            self.write(name, &content.0)?;
        }
        self.write(STATE, &state.0)?;
        for file in self.files()?.into_keys().filter(|name| is_root(name) && !data.contains_key(name)) {
            std::fs::remove_file(self.directory.join(file))?;
        }
        Ok(())
    }

    /// Writes only what differs, so that nobody is woken for nothing.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.directory.join(name);
        if std::fs::read(&path).is_ok_and(|now| now == content) {
            return Ok(());
        }
        durable::write(&path, content, durable::PRIVATE)
    }

    async fn create(&self) -> Result<(), RootsError> {
        let metadata = ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() };
        let secret = Secret { metadata, data: Some(self.files()?), ..Secret::default() };
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => info!("made the first root, in Secret {SECRET}"),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.pull().await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes the directory into the Secret, unless another replica has changed it meanwhile.
    async fn push(&self) -> Result<(), RootsError> {
        let mut secret = self.secrets.get(SECRET).await?;
        let files = self.files()?;
        if secret.data.as_ref() == Some(&files) {
            return Ok(());
        }
        secret.data = Some(files);
        match self.secrets.replace(SECRET, &PostParams::default(), &secret).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(RootsError::Lost),
            Err(error) => Err(error.into()),
        }
    }

    fn files(&self) -> io::Result<BTreeMap<String, ByteString>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == STATE || is_root(&name) {
                files.insert(name, ByteString(std::fs::read(entry.path())?));
            }
        }
        Ok(files)
    }
}

fn is_root(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|kind| kind == "pem")
}

/// Copies an authority of the operator's own (a Secret as cert-manager makes it) into `state_dir`.
pub async fn given(cluster: &Cluster, name: &str, state_dir: &Path) -> Result<GivenAuthority, RootsError> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let data = secrets.get(name).await?.data.unwrap_or_default();
    let directory = state_dir.join("given");
    std::fs::create_dir_all(&directory)?;
    let write = |key: &'static str| {
        let content = data.get(key).ok_or_else(|| RootsError::Missing { secret: name.to_owned(), key })?;
        let path = directory.join(key);
        durable::write(&path, &content.0, durable::PRIVATE)?;
        Ok::<_, RootsError>(path)
    };
    Ok(GivenAuthority {
        certificate: write("tls.crt")?,
        key: write("tls.key")?,
        chain: Some(write("ca.crt")?),
    })
}

/// Why the roots are not to be had.
#[derive(Debug, Error)]
pub enum RootsError {
    /// The API server refuses, or is not there.
    #[error("Secret: {0}")]
    Api(#[from] kube::Error),
    /// The state directory is unusable.
    #[error("state directory: {0}")]
    Io(#[from] io::Error),
    /// What is in it can't be used.
    #[error(transparent)]
    Store(#[from] RotationError),
    /// The Secret is there, but not ours.
    #[error("Secret {SECRET} has no {STATE}: delete it to have a new root made, or restore it")]
    Empty,
    /// The Secret of `--ca-secret` lacks something.
    #[error("Secret {secret} has no key {key}; it needs tls.crt, tls.key and ca.crt")]
    Missing {
        /// Its name.
        secret: String,
        /// What it lacks.
        key: &'static str,
    },
    /// Another replica wrote first.
    #[error("another replica has changed the roots; look at the state and try again")]
    Lost,
}

impl RootsError {
    fn or_lost(self) -> Result<(), Self> {
        if matches!(self, Self::Lost) { Ok(()) } else { Err(self) }
    }
}

/// Why a step of a rotation was not taken.
#[derive(Debug, Error)]
pub enum RotateError {
    /// It is not the time for it.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It could not be kept.
    #[error(transparent)]
    Roots(#[from] RootsError),
}
