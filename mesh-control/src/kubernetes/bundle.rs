//! What to trust, published as a `ConfigMap` for the agents and whoever else wants it, and put right when
//! somebody changes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::objects::Objects;
use super::{Cluster, pauses};
use crate::ca::{Authority, pem};
use crate::config::Configuration;

/// Name of the `ConfigMap`, and its key.
const NAME: &str = "nodemesh-root-cert";
const KEY: &str = "root-cert.pem";

/// Somebody who keeps changing it back is answered this often at most.
const PAUSE: Duration = Duration::from_secs(1);

/// What could not be written is tried again after this: a namespace may be going.
const RETRY: Duration = Duration::from_secs(30);

/// A bundle that can't be watched is written anew this often.
const REPAIR: Duration = Duration::from_mins(1);

/// What was put off is looked at again after this.
const TICK: Duration = Duration::from_secs(5);

/// Where the trust bundle is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BundleScope {
    /// In the control plane's own namespace.
    Release,
    /// In every namespace.
    All,
}

/// What is published, and where.
pub struct Publication {
    /// The cluster.
    pub cluster: Cluster,
    /// Knows the roots.
    pub authority: Arc<Authority>,
    /// Knows the namespaces.
    pub objects: Objects,
    /// Where.
    pub scope: BundleScope,
}

impl Publication {
    /// Keeps it published, while this replica leads. `configuration` tells when there may be a new namespace.
    pub async fn keep(
        self,
        mut leads: watch::Receiver<bool>,
        mut configuration: watch::Receiver<Arc<Configuration>>,
    ) {
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let events = watcher(self.watched(), config).backoff(pauses());
        pin_mut!(events);
        let mut roots = self.authority.changes();
        let mut published = Published::default();
        loop {
            if *leads.borrow_and_update() && published.known {
                self.write_what_lacks(&mut published).await;
            }
            let goes_on = tokio::select! {
                Some(event) = events.next() => { published.note(event); true }
                changed = roots.changed() => changed.is_ok(),
                changed = leads.changed() => changed.is_ok(),
                changed = configuration.changed(), if self.scope == BundleScope::All => changed.is_ok(),
                () = tokio::time::sleep(TICK) => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn watched(&self) -> Api<ConfigMap> {
        match self.scope {
            BundleScope::Release => Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace),
            BundleScope::All => Api::all(self.cluster.client.clone()),
        }
    }

    async fn write_what_lacks(&self, published: &mut Published) {
        let namespaces = match self.scope {
            BundleScope::Release => vec![self.cluster.namespace.clone()],
            BundleScope::All => self.objects.namespaces(),
        };
        let bundle = pem::encode_all(&self.authority.roots());
        for namespace in published.lacking(namespaces, &bundle, Instant::now()) {
            let result = self.write(&namespace, &bundle).await;
            match &result {
                Ok(()) => info!(namespace, "trust bundle published"),
                Err(error) => warn!(namespace, %error, "trust bundle not published; trying again"),
            }
            published.wrote(namespace, &bundle, result.is_ok(), Instant::now());
        }
    }

    async fn write(&self, namespace: &str, bundle: &str) -> Result<(), kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), namespace);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "nodemesh"}},
            "data": {KEY: bundle},
        });
        let ours = PatchParams::apply("mesh-control").force();
        maps.patch(NAME, &ours, &Patch::Apply(&map)).await.map(drop)
    }
}

/// What is there.
#[derive(Default)]
struct Published {
    /// What each namespace has.
    held: HashMap<String, String>,
    /// Seen since the list under way began.
    listed: HashMap<String, String>,
    /// When each namespace may be written again.
    not_before: HashMap<String, Instant>,
    /// It was listed; or it can't be, and is written without looking.
    known: bool,
    /// When that was last done.
    blind_since: Option<Instant>,
}

impl Published {
    fn note(&mut self, event: Result<Event<ConfigMap>, watcher::Error>) {
        match event {
            Ok(Event::Init) => self.listed.clear(),
            Ok(Event::InitApply(map)) => drop(self.listed.insert(namespace(&map), bundle(&map))),
            Ok(Event::InitDone) => {
                self.held = std::mem::take(&mut self.listed);
                (self.known, self.blind_since) = (true, None);
            }
            Ok(Event::Apply(map)) => drop(self.held.insert(namespace(&map), bundle(&map))),
            Ok(Event::Delete(map)) => drop(self.held.remove(&namespace(&map))),
            Err(error) => {
                if !self.known {
                    warn!(%error, "trust bundles not watched; they are written anew every {REPAIR:?}");
                    self.blind_since = Some(Instant::now());
                }
                self.known = true;
            }
        }
    }

    /// The namespaces to write now.
    fn lacking(&mut self, mut namespaces: Vec<String>, bundle: &str, now: Instant) -> Vec<String> {
        self.not_before.retain(|_, at| now < *at);
        if self.blind_since.is_some_and(|since| now.duration_since(since) >= REPAIR) {
            self.held.clear();
            self.blind_since = Some(now);
        }
        namespaces.retain(|namespace| {
            self.held.get(namespace).is_none_or(|held| held != bundle)
                && !self.not_before.contains_key(namespace)
        });
        namespaces
    }

    fn wrote(&mut self, namespace: String, bundle: &str, done: bool, now: Instant) {
        self.not_before.insert(namespace.clone(), now + if done { PAUSE } else { RETRY });
        if done {
            self.held.insert(namespace, bundle.to_owned());
        }
    }
}

fn namespace(map: &ConfigMap) -> String {
    map.namespace().unwrap_or_default()
}

fn bundle(map: &ConfigMap) -> String {
    map.data.as_ref().and_then(|data| data.get(KEY)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn map(namespace: &str, bundle: &str) -> ConfigMap {
        let metadata = ObjectMeta { namespace: Some(namespace.into()), ..ObjectMeta::default() };
        let data = Some(BTreeMap::from([(KEY.to_owned(), bundle.to_owned())]));
        ConfigMap { metadata, data, ..ConfigMap::default() }
    }

    fn all() -> Vec<String> {
        ["bank", "shop"].map(str::to_owned).into()
    }

    #[test]
    fn only_what_is_missing_or_changed_is_written() {
        let (mut published, now) = (Published::default(), Instant::now());
        published.note(Ok(Event::Init));
        published.note(Ok(Event::InitApply(map("shop", "root"))));
        assert!(!published.known, "not before the list is complete");
        published.note(Ok(Event::InitDone));
        assert_eq!(published.lacking(all(), "root", now), ["bank"]);
        published.wrote("bank".into(), "root", true, now);
        assert!(published.lacking(all(), "root", now).is_empty());
        published.note(Ok(Event::Apply(map("shop", "evil"))));
        assert_eq!(published.lacking(all(), "root", now), ["shop"]);
        assert_eq!(published.lacking(all(), "new root", now + PAUSE), all());
    }

    #[test]
    fn without_the_right_to_watch_it_is_written_anew() {
        let (mut published, now) = (Published::default(), Instant::now());
        published.note(Err(watcher::Error::NoResourceVersion));
        assert_eq!(published.lacking(all(), "root", now), all());
        for namespace in all() {
            published.wrote(namespace, "root", true, now);
        }
        assert!(published.lacking(all(), "root", now + REPAIR / 2).is_empty());
        assert_eq!(published.lacking(all(), "root", now + REPAIR * 2), all());
    }

    #[test]
    fn neither_a_quarrel_nor_a_namespace_that_goes_makes_a_storm() {
        let (mut published, now) = (Published::default(), Instant::now());
        published.wrote("shop".into(), "root", true, now);
        published.note(Ok(Event::Delete(map("shop", ""))));
        published.wrote("bank".into(), "root", false, now);
        assert!(published.lacking(all(), "root", now).is_empty());
        assert_eq!(published.lacking(all(), "root", now + PAUSE), ["shop"]);
        assert_eq!(published.lacking(all(), "root", now + RETRY), all());
    }
}
