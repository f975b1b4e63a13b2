//! Which node is calling: the API server says whose token it is (`TokenReview`).
//!
//! Only tokens of the agents' service account count that were made for us (audience) and are bound to a pod,
//! so that a node's token says of which node it is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use super::gate::{Digest, Gate, Wait};
use super::objects::Objects;
use super::{Cluster, expiry};
use crate::nodes::{AuthenticationError, bearer_token};

/// Who the token has to be for.
pub const AUDIENCE: &str = "nodemesh";

/// How long an answer is used again without asking, unless the token runs out before. A pod that is gone has
/// its token refused after this at the latest.
const FRESH: Duration = Duration::from_mins(1);

/// An API server that has not answered by then is one that can't be asked. Agents wait for 10 s in all.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// One that could not be asked is not asked again for so long about tokens that it knew: eight at a time
/// would wait for it.
const NOT_ASKED_FOR: Duration = Duration::from_secs(5);

/// What Kubernetes adds to a token that is bound to a pod (1.30 and later; the node's name).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Asks the API server, and remembers its answer for a while. Where it can't be asked, what it last said of a
/// token counts until the token runs out: without it no pod could have been deleted either, and certificates
/// are renewed meanwhile. What strangers send costs it little (`gate`).
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    objects: Objects,
    namespace: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    user: String,
    known: Mutex<HashMap<Digest, Known>>,
    gate: Gate,
    /// Until when it is not asked about tokens that it knew.
    away_until: Mutex<Option<Instant>>,
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
    /// Tokens of `account` in the control plane's namespace. `objects` tells the node of a pod where the API
    /// server does not.
    pub fn new(cluster: &Cluster, account: &str, objects: Objects) -> Self {
        Self {
            reviews: Api::all(cluster.client.clone()),
            objects,
            namespace: cluster.namespace.clone(),
            user: format!("system:serviceaccount:{}:{account}", cluster.namespace),
            known: Mutex::default(),
            gate: Gate::new(),
            away_until: Mutex::default(),
            never: watch::Sender::new(()),
        }
    }

    /// Never woken.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.never.subscribe()
    }

    /// Name of the node whose agent sent the token, from an address.
    pub async fn authenticate(
        &self,
        sender: IpAddr,
        metadata: &MetadataMap,
    ) -> Result<Arc<str>, AuthenticationError> {
        let token = bearer_token(metadata)?;
        let key = self.gate.digest(token);
        if let Some(node) = self.remembered(&key, |known| known.fresh_until) {
            return Ok(node);
        }
        let known = self.remembered(&key, |known| known.ends);
        if let Some(node) = known.as_ref().filter(|_| self.is_away()) {
            return Ok(Arc::clone(node));
        }
        if known.is_none() {
            expiry::plausible(token, &self.user, AUDIENCE, SystemTime::now())
                .map_err(|reason| AuthenticationError::Refused(reason.to_owned()))?;
            self.not_refused_lately(&key)?;
        }
        let turn = self.gate.turn(sender, known.is_some()).await.map_err(AuthenticationError::from)?;
        // What came at the same time may have been asked about while this one waited.
        if let Some(node) = self.remembered(&key, |known| known.fresh_until) {
            turn.is_not_charged();
            return Ok(node);
        }
        self.not_refused_lately(&key)?;
        let reviewed = self.review(token).await;
        if matches!(reviewed, Ok(_) | Err(AuthenticationError::Unavailable(_))) {
            turn.is_not_charged();
        }
        match reviewed {
            Ok(node) => Ok(self.remember(key, token, node.into())),
            // Nobody else's fault, and nothing that a sender could bring about.
            Err(error @ AuthenticationError::Unavailable(_)) => {
                *self.away() = Some(Instant::now() + NOT_ASKED_FOR);
                known.ok_or(error)
            }
            Err(refused) => {
                self.lock().remove(&key);
                self.gate.was_refused(key, &refused.to_string());
                Err(refused)
            }
        }
    }

    fn is_away(&self) -> bool {
        self.away().is_some_and(|until| Instant::now() < until)
    }

    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_refused_lately(&self, key: &Digest) -> Result<(), AuthenticationError> {
        self.gate.refused(key).map_or(Ok(()), |reason| Err(AuthenticationError::RefusedLately(reason)))
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
        let asked = PostParams::default();
        let answer = tokio::time::timeout(ANSWERED_WITHIN, self.reviews.create(&asked, &review))
            .await
            .map_err(|_| AuthenticationError::Unavailable("the API server does not answer".to_owned()))?
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

/// Never [`AuthenticationError::Unavailable`]: with that a token counts that was good before, and whoever
/// holds one whose pod is gone could keep it so.
impl From<Wait> for AuthenticationError {
    fn from(wait: Wait) -> Self {
        Self::Busy(match wait {
            Wait::Address => "too many tokens from this address were refused",
            Wait::Turn => "too many tokens are waiting to be reviewed",
        })
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

    /// An API server that knows one token, and counts what it is asked.
    struct Server {
        asked: Arc<Mutex<Vec<String>>>,
        reviews: Arc<TokenReviews>,
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn claims(number: u32) -> String {
        let end = SystemTime::now() + Duration::from_hours(1);
        let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(r#"{{"exp":{end},"aud":["nodemesh"],"sub":"{USER}","number":{number}}}"#);
        String::from_utf8(expiry::token(&claims)).unwrap()
    }

    async fn server(good: String) -> Server {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let answer = move |axum::Json(mut review): axum::Json<TokenReview>| async move {
            let token = review.spec.token.clone().unwrap_or_default();
            review.status = Some(if token == good {
                status(&[(NODE_NAME, "node1")])
            } else {
                TokenReviewStatus::default()
            });
            log.lock().unwrap().push(token);
            // Those that come at the same time are there before the first is answered.
            tokio::time::sleep(Duration::from_millis(20)).await;
            axum::Json(review)
        };
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let routes = axum::Router::new().route(path, axum::routing::post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = kube::Client::try_from(kube::Config::new(uri.parse().unwrap())).unwrap();
        let (namespace, pod) = ("nodemesh-system".to_owned(), "mesh-control-x".to_owned());
        let cluster = Cluster { client, namespace, pod };
        Server { asked, reviews: Arc::new(TokenReviews::new(&cluster, "mesh-agent", Objects::default())) }
    }

    impl Server {
        async fn ask(&self, sender: IpAddr, token: &str) -> Result<Arc<str>, AuthenticationError> {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            self.reviews.authenticate(sender, &metadata).await
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    #[tokio::test]
    async fn a_bad_token_that_comes_again_costs_the_api_server_nothing() {
        let server = server(claims(0)).await;
        let bad = claims(1);
        for _ in 0..100 {
            let error = server.ask(PEER, &bad).await.unwrap_err();
            assert!(error.to_string().contains("does not know it"), "{error}");
        }
        assert_eq!(server.asked(), 1);
        for obvious in ["opaque", "a.b.c", &"A".repeat(100_000)] {
            assert!(server.ask(PEER, obvious).await.is_err());
        }
        assert_eq!(server.asked(), 1, "what can't be an agent's is not asked about");
    }

    #[tokio::test]
    async fn a_flood_of_bad_tokens_is_bounded_and_keeps_no_agent_away() {
        let good = claims(0);
        let server = Arc::new(server(good.clone()).await);
        let mut flood = tokio::task::JoinSet::new();
        for number in 1..=500 {
            let server = Arc::clone(&server);
            flood.spawn(async move { server.ask(PEER, &claims(number)).await });
        }
        let agent = IpAddr::from([10, 0, 0, 2]);
        let began = Instant::now();
        let mut agents = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (server, good) = (Arc::clone(&server), good.clone());
            agents.spawn(async move { server.ask(agent, &good).await });
        }
        assert!(agents.join_all().await.into_iter().all(|node| node.as_deref() == Ok("node1")));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let refused = flood.join_all().await;
        let busy = refused.iter().filter(|it| matches!(it, Err(AuthenticationError::Busy(_)))).count();
        assert!(refused.iter().all(Result::is_err));
        let asked = server.asked.lock().unwrap().iter().filter(|token| **token != good).count();
        assert!(asked < 500 / 10 && busy > 500 / 2, "{asked} asked about, {busy} put off");
        // An agent at the same address goes on with the token that it has, and is not charged for it.
        assert!(server.ask(PEER, &good).await.is_ok());
    }
}
