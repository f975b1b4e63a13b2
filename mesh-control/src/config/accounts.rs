//! Which service accounts have a pod on which node.

use std::sync::Arc;

use mesh_api::compile::SharedObject;
use mesh_api::persistent_table::{PersistentTable, hash_of};
use mesh_api::resource::{Object, Pod};

/// The accounts with the number of their pods.
#[derive(Clone, Default)]
pub struct Accounts(PersistentTable<Arc<Account>>);

#[derive(Clone, PartialEq, Eq)]
struct Account {
    node: String,
    namespace: String,
    name: String,
    pods: usize,
}

impl Accounts {
    /// Whether a node has a pod of an account.
    pub fn runs_on(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.find(node, namespace, name).is_some()
    }

    /// Takes over that an object was one thing and is another. Only pods count, and none that has ended.
    pub fn change(&mut self, old: Option<&SharedObject>, new: Option<&SharedObject>) {
        if let Some(pod) = old.and_then(running) {
            self.count(pod, |pods| pods.saturating_sub(1));
        }
        if let Some(pod) = new.and_then(running) {
            self.count(pod, |pods| pods + 1);
        }
    }

    fn count(&mut self, pod: &Pod, change: impl Fn(usize) -> usize) {
        let (node, namespace, name) = (&pod.spec.node_name, &pod.metadata.namespace, pod.service_account());
        let hash = hash(node, namespace, name);
        let old = self.0.remove(hash, |account| account.is(node, namespace, name));
        let pods = change(old.map_or(0, |account| account.pods));
        if pods > 0 {
            let (node, namespace, name) = (node.clone(), namespace.clone(), name.to_owned());
            self.0.insert(hash, Arc::new(Account { node, namespace, name, pods }));
        }
    }

    fn find(&self, node: &str, namespace: &str, name: &str) -> Option<&Arc<Account>> {
        self.0.find(hash(node, namespace, name), |account| account.is(node, namespace, name))
    }
}

impl Account {
    fn is(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.node == node && self.namespace == namespace && self.name == name
    }
}

fn hash(node: &str, namespace: &str, name: &str) -> u64 {
    hash_of(&(node, namespace, name))
}

fn running(object: &SharedObject) -> Option<&Pod> {
    match &object.value {
        Object::Pod(pod) if !pod.is_terminal() && !pod.spec.node_name.is_empty() => Some(pod),
        _ => None,
    }
}
