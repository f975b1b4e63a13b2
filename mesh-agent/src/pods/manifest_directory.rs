//! Pods from a directory: one file for each Pod and Namespace object, replaced by renaming.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use mesh_api::manifest::parse;
use mesh_api::resource::{Metadata, Object};
use mesh_proxy::file_version::FileVersion;
use tokio::sync::watch;

use super::{NodePod, NodePods};

/// How often the directory is read even without a notice, in case one was lost (inotify(7), `IN_Q_OVERFLOW`).
const REREAD_EVERY: Duration = Duration::from_secs(10);

/// Watches a directory. The receiver always has the newest state, until the runtime ends. Errors: the
/// directory can't be watched.
pub fn watch_pods(
    directory: PathBuf,
    node: String,
    trust_domain: String,
) -> io::Result<watch::Receiver<Arc<NodePods>>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(&directory, mask)?;
    let mut notices = inotify.into_event_stream(vec![0; 16 * 1024])?;
    let mut reader = Reader { directory, node, trust_domain, files: HashMap::new() };
    reader.read();
    let (sender, receiver) = watch::channel(Arc::new(reader.pods()));
    tokio::spawn(async move {
        loop {
            let _notice_or_time = tokio::time::timeout(REREAD_EVERY, notices.next()).await;
            if reader.read() {
                let pods = reader.pods();
                sender.send_if_modified(|current| {
                    let changed = **current != pods;
                    if changed {
                        *current = Arc::new(pods);
                    }
                    changed
                });
            }
            if sender.is_closed() {
                return;
            }
        }
    });
    Ok(receiver)
}

struct Reader {
    directory: PathBuf,
    node: String,
    trust_domain: String,
    files: HashMap<PathBuf, Known>,
}

/// A file as it was last read.
struct Known {
    version: FileVersion,
    /// Its last good content.
    good: Option<Object>,
}

impl Reader {
    /// Reads files that have changed. Returns whether any has.
    fn read(&mut self) -> bool {
        let files = list(&self.directory);
        let before = self.files.len();
        self.files.retain(|path, _| files.contains(path));
        let mut changed = self.files.len() < before;
        for path in files {
            changed |= self.read_file(&path);
        }
        changed
    }

    /// Reads a file that has changed; returns whether its content did. One that can't be read or parsed keeps
    /// its last good content in force.
    fn read_file(&mut self, path: &Path) -> bool {
        let (version, text) = match self.text_if_new(path) {
            Ok(Some(new)) => new,
            Ok(None) => return false,
            // Removed between the listing and here: the next notice follows.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "pod file not readable");
                return false;
            }
        };
        let parsed = parse(&path.to_string_lossy(), &text);
        for error in &parsed.errors {
            tracing::warn!(%error, "pod file not understood; its last good content stays in force");
        }
        let known = self.files.entry(path.to_path_buf()).or_insert(Known { version, good: None });
        known.version = version;
        if let Some(object) = parsed.objects.into_iter().next() {
            known.good = Some(object.value);
        }
        true
    }

    fn text_if_new(&self, path: &Path) -> io::Result<Option<(FileVersion, String)>> {
        let version = FileVersion::of(path)?;
        if self.files.get(path).is_some_and(|known| known.version == version) {
            return Ok(None);
        }
        Ok(Some((version, std::fs::read_to_string(path)?)))
    }

    fn pods(&self) -> NodePods {
        let objects = || self.files.values().filter_map(|known| known.good.as_ref());
        let namespaces: HashMap<&str, &Metadata> = objects()
            .filter_map(|object| match object {
                Object::Namespace(namespace) => Some((namespace.metadata.name.as_str(), &namespace.metadata)),
                _ => None,
            })
            .collect();
        let none = Metadata::default();
        let mut pods = NodePods::new();
        for object in objects() {
            let Object::Pod(pod) = object else { continue };
            if pod.spec.node_name != self.node || pod.is_terminal() || pod.metadata.uid.is_empty() {
                continue;
            }
            let namespace = namespaces.get(pod.metadata.namespace.as_str()).copied().unwrap_or(&none);
            match NodePod::new(pod, namespace, &self.trust_domain) {
                Ok(pod) => drop(pods.insert(Arc::clone(&pod.uid), pod)),
                Err(error) => tracing::warn!(pod = %pod.metadata.full_name(), %error, "pod left out"),
            }
        }
        pods
    }
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "pod directory not readable");
            return Vec::new();
        }
    };
    let is_manifest = |path: &PathBuf| {
        path.extension().is_some_and(|kind| ["json", "yaml", "yml"].iter().any(|known| kind == *known))
    };
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_manifest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-1","namespace":"shop","uid":"u1"},
        "spec":{"nodeName":"node1","serviceAccountName":"web","containers":[{"name":"c","image":"x",
        "readinessProbe":{"httpGet":{"port":8080}}}]},"status":{"podIPs":[{"ip":"10.244.1.5"},{"ip":"fd00::5"}]}}"#;

    fn namespace(label: &str) -> String {
        format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"shop","labels":{{"nodemesh.io/dataplane":"{label}"}}}}}}"#
        )
    }

    async fn changed(pods: &mut watch::Receiver<Arc<NodePods>>) -> Arc<NodePods> {
        tokio::time::timeout(Duration::from_secs(5), pods.changed()).await.expect("in time").unwrap();
        pods.borrow_and_update().clone()
    }

    fn replace(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join(".new"), text).unwrap();
        std::fs::rename(directory.join(".new"), directory.join(name)).unwrap();
    }

    #[tokio::test]
    async fn pods_follow_their_files_and_their_namespaces_labels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut pods = watch_pods(path.into(), "node1".into(), "cluster.local".into()).unwrap();
        assert!(pods.borrow().is_empty());
        replace(path, "shop_web-1.json", POD);
        let now = changed(&mut pods).await;
        let pod = &now["u1"];
        assert!(!pod.should_be_enrolled());
        assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!((pod.addresses.len(), pod.probe_ports.as_slice()), (2, [8080].as_slice()));
        replace(path, "_namespace_shop.json", &namespace("enabled"));
        assert!(changed(&mut pods).await["u1"].should_be_enrolled());
        replace(path, "_namespace_shop.json", &namespace("disabled"));
        assert!(!changed(&mut pods).await["u1"].should_be_enrolled());
        std::fs::remove_file(path.join("shop_web-1.json")).unwrap();
        assert!(changed(&mut pods).await.is_empty());
    }

    #[tokio::test]
    async fn a_broken_file_leaves_the_last_good_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        replace(path, "shop_web-1.json", POD);
        let mut pods = watch_pods(path.into(), "node1".into(), "cluster.local".into()).unwrap();
        replace(path, "shop_web-1.json", "{ broken");
        replace(path, "shop_web-2.json", &POD.replace("web-1", "web-2").replace("u1", "u2"));
        let now = changed(&mut pods).await;
        assert_eq!(now.keys().map(|uid| &**uid).collect::<Vec<_>>(), ["u1", "u2"]);
    }

    #[tokio::test]
    async fn pods_of_other_nodes_are_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        replace(directory.path(), "shop_web-1.json", POD);
        let pods = watch_pods(directory.path().into(), "node2".into(), "cluster.local".into()).unwrap();
        assert!(pods.borrow().is_empty());
    }
}
