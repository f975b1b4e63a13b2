//! Which node is calling: the API server says whose token it is (`TokenReview`).
//!
//! Only tokens of the agents' service account count that were made for us (audience) and are bound to a pod, so that a
//! node's token says of which node it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use super::objects::Objects;
use super::{Cluster, expiry};
use crate::nodes::{AuthenticationError, bearer_token};

/// Who the token has to be for.
pub const AUDIENCE: &str = "nodemesh";

/// How long an answer is used again without asking, unless the token runs out before. A pod that is gone has its token
/// refused after this at the latest.
const FRESH: Duration = Duration::from_mins(1);

/// What Kubernetes adds to a token that is bound to a pod (1.30 and later; the node's name).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

type Digest = Vec<u8>;

/// Asks the API server, and remembers its answer for a while. Where it can't be asked, what it last said of a token counts
/// until the token runs out: without it no pod could have been deleted either, and certificates are renewed meanwhile.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    objects: Objects,
    namespace: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    user: String,
    known: Mutex<HashMap<Digest, Known>>,
    never: watch::Sender<()>,
}

/// What the API server said of a token.
struct Known {
    node: Arc<str>,
    fresh_until: Instant,
    /// The token's own end.
    ends: Instant,
}

impl TokenReviews {
    /// Tokens of `account` in the control plane's namespace. `objects` tells the node of a pod where the API server does
    /// not.
    pub fn new(cluster: &Cluster, account: &str, objects: Objects) -> Self {
        Self {
            reviews: Api::all(cluster.client.clone()),
            objects,
            namespace: cluster.namespace.clone(),
            user: format!("system:serviceaccount:{}:{account}", cluster.namespace),
            known: Mutex::default(),
            never: watch::Sender::new(()),
        }
    }

    /// Never woken.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.never.subscribe()
    }

    /// Name of the node whose agent sent the token.
    pub async fn authenticate(&self, metadata: &MetadataMap) -> Result<Arc<str>, AuthenticationError> {
        let token = bearer_token(metadata)?;
        let key = digest(&SHA256, token).as_ref().to_vec();
        if let Some(node) = self.remembered(&key, |known| known.fresh_until) {
            return Ok(node);
        }
        match self.review(token).await {
            Ok(node) => Ok(self.remember(key, token, node.into())),
            Err(error @ AuthenticationError::Unavailable(_)) => {
                self.remembered(&key, |known| known.ends).ok_or(error)
            }
            Err(refused) => {
                self.lock().remove(&key);
                Err(refused)
            }
        }
    }

    fn remember(&self, key: Digest, token: &[u8], node: Arc<str>) -> Arc<str> {
        let (now, left) = (Instant::now(), expiry::left(token, SystemTime::now()));
        let known = Known { node: Arc::clone(&node), fresh_until: now + FRESH.min(left), ends: now + left };
        let mut all = self.lock();
        all.retain(|_, known| now < known.ends);
        all.insert(key, known);
        node
    }

    fn remembered(&self, key: &Digest, until: impl Fn(&Known) -> Instant) -> Option<Arc<str>> {
        self.lock()
            .get(key)
            .filter(|known| Instant::now() < until(known))
            .map(|known| Arc::clone(&known.node))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn review(&self, token: &[u8]) -> Result<String, AuthenticationError> {
        let token = String::from_utf8(token.to_vec())
            .map_err(|_| AuthenticationError::Refused("it is not text".to_owned()))?;
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self
            .reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| AuthenticationError::Unavailable(error.to_string()))?;
        let status = answer.status.unwrap_or_default();
        let pod_or_node = judge(&status, &self.user).map_err(AuthenticationError::Refused)?;
        match pod_or_node {
            Holder::Node(node) => Ok(node),
            Holder::Pod(pod) => self.objects.node_of(&self.namespace, &pod).ok_or_else(|| {
                AuthenticationError::Refused(format!("pod {pod}, which it is bound to, is on no node"))
            }),
        }
    }
}

/// What a token is bound to.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Node(String),
    Pod(String),
}

fn judge(status: &TokenReviewStatus, user: &str) -> Result<Holder, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.clone().unwrap_or_else(|| "the API server does not know it".to_owned()));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(format!("it is not for the audience {AUDIENCE}"));
    }
    let info = status.user.clone().unwrap_or_default();
    let name = info.username.unwrap_or_default();
    if name != user {
        return Err(format!("it is {name}'s and not {user}'s"));
    }
    let extra = info.extra.unwrap_or_default();
    let first = |key| extra.get(key).and_then(|values: &Vec<String>| values.first()).cloned();
    let node = first(NODE_NAME).map(Holder::Node);
    node.or_else(|| first(POD_NAME).map(Holder::Pod)).ok_or_else(|| "it is bound to no pod".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    const USER: &str = "system:serviceaccount:nodemesh-system:mesh-agent";

    fn status(extra: &[(&str, &str)]) -> TokenReviewStatus {
        let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
        let user = UserInfo { username: Some(USER.to_owned()), extra: Some(extra), ..UserInfo::default() };
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            user: Some(user),
            error: None,
        }
    }

    #[test]
    fn a_token_says_its_node_itself_or_by_its_pod() {
        let both = status(&[(NODE_NAME, "node1"), (POD_NAME, "mesh-agent-x")]);
        assert_eq!(judge(&both, USER), Ok(Holder::Node("node1".into())));
        assert_eq!(
            judge(&status(&[(POD_NAME, "mesh-agent-x")]), USER),
            Ok(Holder::Pod("mesh-agent-x".into()))
        );
    }

    #[test]
    fn other_tokens_are_nobodys() {
        let good = status(&[(NODE_NAME, "node1")]);
        let unbound = status(&[]);
        let unknown = TokenReviewStatus { authenticated: Some(false), ..good.clone() };
        let elsewhere = TokenReviewStatus { audiences: Some(vec!["vault".into()]), ..good.clone() };
        for wrong in [&unbound, &unknown, &elsewhere, &TokenReviewStatus::default()] {
            assert!(judge(wrong, USER).is_err(), "{wrong:?}");
        }
        let error = judge(&good, "system:serviceaccount:nodemesh-system:other").unwrap_err();
        assert!(error.contains("mesh-agent's and not"), "{error}");
    }
}
