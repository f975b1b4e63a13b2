//! `retries`: when a request is tried again.

use std::collections::HashSet;
use std::time::Duration;

use http::StatusCode;

use super::values;
use crate::document::cursor::{Cursor, quote_words, quoted};
use crate::document::nearest_word::nearest_word;

/// Most bytes of `retryOn`, which is more than all that it can say, once each.
const MAX_RETRY_ON: usize = 1024;
/// Most words of one `retryOn` that are complained of: what was meant by each takes a while to find out.
const MAX_BAD_WORDS: usize = 10;

/// How often and when a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Most tries after the first one; 0: none.
    pub attempts: u32,
    /// Time that each try has. `None`: as long as the route's `timeout`.
    pub per_try_timeout: Option<Duration>,
    /// What makes a try fail so that another one follows: any of these, none twice. Empty: what is usual in
    /// the mesh.
    pub retry_on: Vec<RetryCondition>,
    /// The pause before the next try, which grows with each and varies at random. `None`: 25 ms.
    pub backoff: Option<Duration>,
    /// Whether endpoints that were tried come after others.
    pub ignore_previous_hosts: bool,
    /// Whether endpoints of other localities are tried, too.
    pub remote_localities: bool,
}

/// Why a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCondition {
    /// `5xx`: the response has such a status, or there is none.
    ServerError,
    /// `gateway-error`: the status is 502, 503 or 504.
    GatewayError,
    /// `reset`: there is no response, for the connection ended or the try took too long.
    Reset,
    /// `reset-before-request`: the same, and nothing of the request was sent.
    ResetBeforeRequest,
    /// `connect-failure`: no connection came about.
    ConnectFailure,
    /// `retriable-4xx`: the status is 409.
    Retriable4xx,
    /// `refused-stream`: the server refused the request before it looked at it.
    RefusedStream,
    /// `retriable-status-codes`: the status is one of those that [`RetryCondition::Status`] lists.
    RetriableStatusCodes,
    /// `retriable-headers`: the response has a header that says so.
    RetriableHeaders,
    /// `envoy-ratelimited`: a rate limit of Envoy refused it.
    EnvoyRatelimited,
    /// `http3-post-connect-failure`: HTTP/3 failed after it had connected.
    Http3PostConnectFailure,
    /// `cancelled`: the status of gRPC is that one; so for the next four.
    Cancelled,
    /// `deadline-exceeded`.
    DeadlineExceeded,
    /// `internal`.
    Internal,
    /// `resource-exhausted`.
    ResourceExhausted,
    /// `unavailable`.
    Unavailable,
    /// A number: the response has this status.
    Status(StatusCode),
}

const CONDITIONS: [(&str, RetryCondition); 16] = [
    ("5xx", RetryCondition::ServerError),
    ("gateway-error", RetryCondition::GatewayError),
    ("reset", RetryCondition::Reset),
    ("reset-before-request", RetryCondition::ResetBeforeRequest),
    ("connect-failure", RetryCondition::ConnectFailure),
    ("retriable-4xx", RetryCondition::Retriable4xx),
    ("refused-stream", RetryCondition::RefusedStream),
    ("retriable-status-codes", RetryCondition::RetriableStatusCodes),
    ("retriable-headers", RetryCondition::RetriableHeaders),
    ("envoy-ratelimited", RetryCondition::EnvoyRatelimited),
    ("http3-post-connect-failure", RetryCondition::Http3PostConnectFailure),
    ("cancelled", RetryCondition::Cancelled),
    ("deadline-exceeded", RetryCondition::DeadlineExceeded),
    ("internal", RetryCondition::Internal),
    ("resource-exhausted", RetryCondition::ResourceExhausted),
    ("unavailable", RetryCondition::Unavailable),
];

impl RetryCondition {
    /// Its name in Envoy's `retry_on`. `None`: it is a status, which has none.
    pub fn name(self) -> Option<&'static str> {
        CONDITIONS.into_iter().find_map(|(name, condition)| (condition == self).then_some(name))
    }
}

impl Retries {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&[
            "attempts",
            "perTryTimeout",
            "retryOn",
            "backoff",
            "retryIgnorePreviousHosts",
            "retryRemoteLocalities",
        ]);
        let attempts = fields.get("attempts").map_or(Some(0), |at| at.integer(values::INT32));
        let useless = ["perTryTimeout", "retryOn", "retryRemoteLocalities"];
        if attempts == Some(0) && useless.into_iter().any(|key| values::given(&fields, key).is_some()) {
            let fix = "write how many `attempts` may follow the first try, or remove the rest";
            at.error("without `attempts` nothing is tried again, so the rest means nothing", fix);
        } else if fields.get("attempts").is_none() {
            let fix = "write `attempts: 0`, or remove `retries` for what is usual, 2 attempts";
            at.warn("without `attempts` nothing is tried again", fix);
        }
        let boolean = |key: &str| fields.get(key).and_then(|at| at.boolean());
        Self {
            attempts: attempts.unwrap_or_default(),
            per_try_timeout: values::duration(&fields, "perTryTimeout"),
            retry_on: values::given(&fields, "retryOn").map(|at| retry_on(&at)).unwrap_or_default(),
            backoff: values::duration(&fields, "backoff"),
            ignore_previous_hosts: boolean("retryIgnorePreviousHosts").unwrap_or(true),
            remote_localities: boolean("retryRemoteLocalities").unwrap_or(false),
        }
    }
}

fn retry_on(at: &Cursor<'_>) -> Vec<RetryCondition> {
    let Some(text) = at.text() else { return Vec::new() };
    if text.len() > MAX_RETRY_ON {
        at.error(format!("it is longer than {MAX_RETRY_ON} bytes"), "write each reason once");
        return Vec::new();
    }
    let (mut seen, mut conditions, mut bad) = (HashSet::new(), Vec::new(), 0);
    for word in text.split(',').filter(|word| seen.insert(*word)) {
        match condition(at, word) {
            Some(condition) => conditions.push(condition),
            None => bad += 1,
        }
        if bad == MAX_BAD_WORDS {
            break;
        }
    }
    conditions
}

fn condition(at: &Cursor<'_>, word: &str) -> Option<RetryCondition> {
    if let Some((_, condition)) = CONDITIONS.into_iter().find(|(name, _)| *name == word) {
        return Some(condition);
    }
    let status = word.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
    if let Some(status) = status.filter(|status| status.canonical_reason().is_some()) {
        return Some(RetryCondition::Status(status));
    }
    let names = CONDITIONS.map(|(name, _)| name);
    let fix = match nearest_word(word, names) {
        Some(near) => format!("did you mean `{near}`? Commas go without spaces"),
        None => format!("write {}, or a status of HTTP", quote_words(&names)),
    };
    at.error(format!("{} is no reason to try again", quoted(word)), fix);
    None
}
