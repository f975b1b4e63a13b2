//! What the API server wrote down of the mesh's own requests. The local cluster's does, a cluster of kind
//! does not.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

const LOG: &str = "/run/nodemesh-cluster/audit.log";

/// One request of a service account of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name of the account.
    pub account: String,
    /// `list`, `watch`, `patch` …
    pub verb: String,
    /// API group; empty for the core's, and for what is no resource.
    pub group: String,
    /// Plural, with the subresource after a slash; empty for what is no resource.
    pub resource: String,
    /// Of one object, where one was meant.
    pub name: String,
    /// HTTP status.
    pub code: u16,
    /// When it was answered, or first answered: RFC 3339, in UTC, so that text order is time order.
    pub time: String,
    /// A watch that has not ended.
    pub open: bool,
}

/// All of them so far, in the order in which they were first answered.
pub fn requests() -> Result<Vec<Request>> {
    let text = fs::read_to_string(LOG).with_context(|| format!("can't read {LOG}"))?;
    Ok(read(&text))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(rename = "auditID")]
    id: String,
    stage: String,
    stage_timestamp: String,
    verb: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    api_group: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// A watch has two lines, one when it begins and one when it ends. The last line may not be whole yet.
fn read(text: &str) -> Vec<Request> {
    let mut all: Vec<Request> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        let open = line.stage == "ResponseStarted";
        if let Some(place) = places.get(&line.id) {
            all[*place].open = open;
        } else {
            places.insert(line.id.clone(), all.len());
            all.push(request(line, open));
        }
    }
    all
}

fn request(line: Line, open: bool) -> Request {
    let object = line.object_ref.unwrap_or_default();
    let resource = if object.subresource.is_empty() {
        object.resource
    } else {
        format!("{}/{}", object.resource, object.subresource)
    };
    Request {
        account: line.user.username.rsplit(':').next().unwrap_or_default().to_owned(),
        verb: line.verb,
        group: object.api_group,
        resource,
        name: object.name,
        code: line.response_status.map_or(0, |status| status.code),
        time: line.stage_timestamp,
        open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, stage: &str, verb: &str) -> String {
        format!(
            r#"{{"auditID":"{id}","stage":"{stage}","stageTimestamp":"2026-01-02T03:04:05.000006Z","verb":"{verb}",
            "user":{{"username":"system:serviceaccount:nodemesh-system:mesh-agent"}},
            "objectRef":{{"resource":"pods","subresource":"status","apiVersion":"v1"}},"responseStatus":{{"code":200}}}}"#
        )
        .replace('\n', "")
            + "\n"
    }

    #[test]
    fn a_watch_is_one_request_until_it_ends() {
        let begun = line("a", "ResponseStarted", "watch");
        let text = begun.clone() + &line("b", "ResponseComplete", "list") + "{\"auditID\":\"c\",\"sta";
        let found = read(&text);
        assert_eq!(found.iter().map(|request| request.open).collect::<Vec<_>>(), [true, false]);
        assert_eq!((found[0].account.as_str(), found[0].resource.as_str()), ("mesh-agent", "pods/status"));
        let ended = read(&(begun + &line("a", "ResponseComplete", "watch")));
        assert_eq!((ended.len(), ended[0].open), (1, false));
    }
}
