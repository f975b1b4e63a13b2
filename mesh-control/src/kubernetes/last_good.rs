//! The last good state of policies that are broken now, kept in a `ConfigMap`: a replica that starts on a
//! broken policy must not serve a mesh without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use super::Cluster;
use super::objects::Objects;
use crate::config::Configuration;

/// Name of the `ConfigMap`, and its key.
const NAME: &str = "nodemesh-last-good";
const KEY: &str = "last-good.json";

/// Nothing is broken.
const NOTHING: &str = "[]";

/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// The API server takes 1 MiB.
const LARGEST: usize = 900 << 10;

/// Has `objects` know what was kept. To be called before the watches tell what is there now.
///
/// Without the right to read it, nothing was kept either.
pub async fn recall(cluster: &Cluster, objects: &Objects) -> Result<(), kube::Error> {
    let text = match read(&maps(cluster)).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            warn!(%status, "the last good state of broken policies is not known and won't be kept");
            return Ok(());
        }
        read => read?,
    };
    let kept: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| {
        warn!(%error, "ConfigMap {NAME} is not ours to read; what is broken now has no last good state");
        Vec::new()
    });
    if !kept.is_empty() {
        info!(policies = kept.len(), "the last good state of broken policies is known");
    }
    for raw in kept {
        objects.recall(raw);
    }
    Ok(())
}

/// Keeps it for ever, while this replica leads.
pub async fn keep(
    cluster: Cluster,
    objects: Objects,
    mut leads: watch::Receiver<bool>,
    mut configuration: watch::Receiver<Arc<Configuration>>,
) {
    let maps = maps(&cluster);
    let (mut written, mut failing) = (None, false);
    loop {
        if !*leads.borrow_and_update() {
            // The next leader writes what we don't see.
            written = None;
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
        }
        let result = bring_up_to_date(&maps, &objects, &mut written).await;
        if let (Err(error), false) = (&result, failing) {
            warn!(%error, "last good state not kept; trying again");
        }
        failing = result.is_err();
        tokio::select! {
            changed = configuration.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn bring_up_to_date(
    maps: &Api<ConfigMap>,
    objects: &Objects,
    written: &mut Option<String>,
) -> Result<(), kube::Error> {
    if written.is_none() {
        *written = Some(read(maps).await?);
    }
    let text = text(&objects.kept());
    if written.as_ref() == Some(&text) {
        return Ok(());
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "nodemesh"}},
        "data": {KEY: text},
    });
    maps.patch(NAME, &PatchParams::apply("mesh-control").force(), &Patch::Apply(&map)).await?;
    *written = Some(text);
    Ok(())
}

fn maps(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

async fn read(maps: &Api<ConfigMap>) -> Result<String, kube::Error> {
    let data: BTreeMap<_, _> = maps.get_opt(NAME).await?.and_then(|map| map.data).unwrap_or_default();
    Ok(data.get(KEY).map_or(NOTHING, String::as_str).to_owned())
}

/// As much as fits.
fn text(kept: &[Value]) -> String {
    let mut text = String::from("[");
    for (at, raw) in kept.iter().map(Value::to_string).enumerate() {
        if text.len() + raw.len() > LARGEST {
            warn!(
                left_out = kept.len() - at,
                "too many policies are broken to keep the last good state of all"
            );
            break;
        }
        if at > 0 {
            text.push(',');
        }
        text.push_str(&raw);
    }
    text + "]"
}

#[cfg(test)]
mod tests {
    use mesh_api::manifest::Kind;

    use super::*;

    fn policy(action: &str) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "open", "namespace": "shop"}, "spec": {"action": action},
        })
    }

    #[test]
    fn a_replica_that_starts_on_a_broken_policy_has_it_as_it_last_was() {
        let before = Objects::default();
        before.put(Kind::AuthorizationPolicy, policy("ALLOW"));
        assert_eq!(text(&before.kept()), NOTHING, "nothing is broken");
        before.put(Kind::AuthorizationPolicy, policy("PERHAPS"));
        let kept: Vec<Value> = serde_json::from_str(&text(&before.kept())).unwrap();

        let after = Objects::default();
        for raw in kept {
            after.recall(raw);
        }
        after.begin_list(Kind::AuthorizationPolicy);
        after.put(Kind::AuthorizationPolicy, policy("PERHAPS"));
        after.end_list(Kind::AuthorizationPolicy);
        assert_eq!((after.load().objects, after.load().errors.len()), (1, 1));
        assert_eq!(after.kept(), before.kept(), "and would keep it again");
    }

    #[test]
    fn what_was_removed_meanwhile_is_not_brought_back() {
        let objects = Objects::default();
        objects.recall(policy("ALLOW"));
        objects.begin_list(Kind::AuthorizationPolicy);
        objects.end_list(Kind::AuthorizationPolicy);
        assert_eq!(objects.load().objects, 0);
    }

    #[test]
    fn only_policies_are_brought_back() {
        let objects = Objects::default();
        objects.recall(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        objects.recall(json!("nonsense"));
        assert_eq!(objects.load().objects, 0);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let large = json!({"spec": "x".repeat(LARGEST / 2)});
        let kept: Vec<Value> = serde_json::from_str(&text(&[large.clone(), large.clone()])).unwrap();
        assert_eq!(kept, [large]);
    }
}
