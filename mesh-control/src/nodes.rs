//! Which node is calling: a directory with one token per node, or the API server's review of a token.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tracing::{error, warn};

use crate::kubernetes::review::TokenReviews;

/// Shorter tokens could be guessed.
const SHORTEST_TOKEN: usize = 16;

type Digest = [u8; 32];

/// Who says which node is calling.
pub enum Nodes {
    /// A directory of tokens.
    Directory(NodeTokens),
    /// The API server.
    Reviewed(Box<TokenReviews>),
}

impl Nodes {
    /// Name of the node whose token the caller sent as `authorization: Bearer TOKEN`, from an address.
    pub async fn authenticate(
        &self,
        sender: IpAddr,
        metadata: &MetadataMap,
    ) -> Result<Arc<str>, AuthenticationError> {
        match self {
            Self::Directory(tokens) => tokens.authenticate(metadata),
            Self::Reviewed(reviews) => reviews.authenticate(sender, metadata).await,
        }
    }

    /// Reads the tokens again; on an error the ones in force stay.
    pub fn reload(&self) {
        if let Self::Directory(tokens) = self
            && let Err(error) = tokens.reload()
        {
            error!(%error, "node tokens not read; the last ones stay in force");
        }
    }

    /// Woken whenever tokens may have changed. The API server tells of no change: its tokens run out by
    /// themselves.
    pub fn changes(&self) -> watch::Receiver<()> {
        match self {
            Self::Directory(tokens) => tokens.changes(),
            Self::Reviewed(reviews) => reviews.changes(),
        }
    }
}

/// The token of `authorization: Bearer TOKEN`.
pub fn bearer_token(metadata: &MetadataMap) -> Result<&[u8], AuthenticationError> {
    let header = metadata.get("authorization").ok_or(AuthenticationError::NoToken)?;
    let token = header.as_bytes().strip_prefix(b"Bearer ").ok_or(AuthenticationError::NoToken)?;
    Ok(token.trim_ascii())
}

/// The tokens in force: file `<directory>/<node name>` holds that node's token.
///
/// Only digests are kept, and all of them are compared in constant time, so neither the length nor a prefix
/// of a token can be learnt from how long an answer takes.
pub struct NodeTokens {
    directory: PathBuf,
    tokens: ArcSwap<HashMap<Arc<str>, Digest>>,
    changed: watch::Sender<()>,
}

impl NodeTokens {
    /// Reads the directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let tokens = ArcSwap::from_pointee(read(directory)?);
        Ok(Self { directory: directory.to_owned(), tokens, changed: watch::Sender::new(()) })
    }

    /// Reads the directory again; on an error the tokens in force stay.
    pub fn reload(&self) -> io::Result<()> {
        self.tokens.store(Arc::new(read(&self.directory)?));
        self.changed.send_replace(());
        Ok(())
    }

    /// Woken whenever tokens may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Name of the node whose token the caller sent as `authorization: Bearer TOKEN`.
    pub fn authenticate(&self, metadata: &MetadataMap) -> Result<Arc<str>, AuthenticationError> {
        let sent = sha256(bearer_token(metadata)?);
        let tokens = self.tokens.load();
        tokens
            .iter()
            .filter(|(_, known)| verify_slices_are_equal(&sent, known.as_slice()).is_ok())
            .map(|(node, _)| Arc::clone(node))
            .last()
            .ok_or(AuthenticationError::UnknownToken)
    }
}

fn read(directory: &Path) -> io::Result<HashMap<Arc<str>, Digest>> {
    let mut tokens = HashMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        // Kubernetes mounts and atomic writers keep files of their own beside, with a leading dot.
        let Some(node) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if !fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let Ok(content) = fs::read(entry.path()) else {
            warn!(node, "the token of the node can't be read");
            continue;
        };
        let token = content.trim_ascii();
        if token.len() < SHORTEST_TOKEN {
            warn!(node, "the token of the node is shorter than {SHORTEST_TOKEN} bytes and is not used");
            continue;
        }
        tokens.insert(Arc::from(node), sha256(token));
    }
    drop_shared(&mut tokens);
    Ok(tokens)
}

/// A token of several nodes tells none of them from the other.
fn drop_shared(tokens: &mut HashMap<Arc<str>, Digest>) {
    let mut uses: HashMap<Digest, u32> = HashMap::new();
    for token in tokens.values() {
        *uses.entry(*token).or_default() += 1;
    }
    tokens.retain(|node, token| {
        let own = uses.get(token) == Some(&1);
        if !own {
            warn!(node = &**node, "the token of the node is another node's too and is not used");
        }
        own
    });
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut out = Digest::default();
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

impl From<AuthenticationError> for Status {
    fn from(error: AuthenticationError) -> Self {
        let text = error.to_string();
        match error {
            AuthenticationError::Unavailable(_) | AuthenticationError::Busy(_) => Self::unavailable(text),
            _ => Self::unauthenticated(text),
        }
    }
}

/// Why a caller is not known. The node's operator has to act.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthenticationError {
    /// No `authorization: Bearer …`.
    #[error("no node token was sent (metadata `authorization: Bearer TOKEN`)")]
    NoToken,
    /// A token that no node has.
    #[error("the token that was sent belongs to no node")]
    UnknownToken,
    /// The API server's review came to another end.
    #[error("the token that was sent is not an agent's: {0}")]
    Refused(String),
    /// The same, a moment ago.
    #[error("{0} (found a moment ago)")]
    RefusedLately(String),
    /// Others have sent too many; the agent should try again.
    #[error("the token was not reviewed: {0}")]
    Busy(&'static str),
    /// The API server did not answer; the agent should try again.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn metadata(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        metadata
    }

    #[test]
    fn the_token_names_the_node() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("node1"), format!("{TOKEN}\n")).unwrap();
        fs::write(directory.path().join("node2"), "another token of enough length").unwrap();
        fs::write(directory.path().join("node3"), "").unwrap();
        let tokens = NodeTokens::open(directory.path()).unwrap();
        assert_eq!(&*tokens.authenticate(&metadata(&format!("Bearer {TOKEN}"))).unwrap(), "node1");
        assert_eq!(tokens.authenticate(&MetadataMap::new()), Err(AuthenticationError::NoToken));
        assert_eq!(tokens.authenticate(&metadata(TOKEN)), Err(AuthenticationError::NoToken));
        for wrong in ["Bearer ", "Bearer x", &format!("Bearer {TOKEN}0")] {
            assert_eq!(
                tokens.authenticate(&metadata(wrong)),
                Err(AuthenticationError::UnknownToken),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_changed_token_counts_at_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("node1"), TOKEN).unwrap();
        let tokens = NodeTokens::open(directory.path()).unwrap();
        fs::write(directory.path().join("node1"), "a token that was made anew").unwrap();
        tokens.reload().unwrap();
        assert!(tokens.authenticate(&metadata(&format!("Bearer {TOKEN}"))).is_err());
        assert!(tokens.authenticate(&metadata("Bearer a token that was made anew")).is_ok());
    }

    #[test]
    fn a_token_of_two_nodes_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        for node in ["node1", "node2"] {
            fs::write(directory.path().join(node), TOKEN).unwrap();
        }
        let tokens = NodeTokens::open(directory.path()).unwrap();
        assert!(tokens.authenticate(&metadata(&format!("Bearer {TOKEN}"))).is_err());
    }
}
