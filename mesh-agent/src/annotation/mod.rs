//! The annotation by which Istio's control plane and proxies know that a pod takes mutual TLS. istiod tells
//! peers to speak plaintext to every pod without it, so whoever takes a pod into the mesh has to write it.
//!
//! Reading order: [`Annotated`], what the API says of a pod's; [`due`], which are to be written; [`Writer`],
//! who writes them.
//!
//! Kubernetes' own record of who wrote a field (server-side apply) says whether an annotation is ours: it is
//! taken off where it is, and one that istio-cni wrote stays, whoever restarts meanwhile.

mod due;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use mesh_api::resource::enrolment::{REDIRECTION, REDIRECTION_ENABLED, REDIRECTION_WRITER};

pub use due::{DueWrite, due};
pub use writer::Writer;

/// What the API says of the annotation of each pod of this node, by the pod's uid.
pub type AnnotatedPods = BTreeMap<Arc<str>, Annotated>;

/// A pod, and what the API says of its annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotated {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The annotation says that the pod is in a mesh.
    pub enabled: bool,
    /// An agent of ours wrote it.
    pub ours: bool,
}

impl Annotated {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let annotation = pod.annotations().get(REDIRECTION);
        Self {
            namespace: pod.namespace().unwrap_or_default().into(),
            name: pod.name_any().into(),
            enabled: annotation.is_some_and(|value| value == REDIRECTION_ENABLED),
            ours: pod.managed_fields().iter().any(|it| it.manager.as_deref() == Some(REDIRECTION_WRITER)),
        }
    }
}

/// Why the annotation of a pod could not be written, by uid: for those who look at the pod.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<Arc<str>, String>>>);

impl Failures {
    /// Why that of a pod could not be.
    pub fn of(&self, uid: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn replace(&self, failures: BTreeMap<Arc<str>, String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failures;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &serde_json::Value) -> Annotated {
        Annotated::of(&serde_json::from_value(serde_json::json!({"metadata": metadata})).unwrap())
    }

    #[test]
    fn istios_word_and_who_wrote_it_are_read() {
        let by = |manager: &str| serde_json::json!([{"manager": "kubelet"}, {"manager": manager}]);
        let ours = read(&serde_json::json!({"name": "web", "namespace": "shop",
            "annotations": {"ambient.istio.io/redirection": "enabled"}, "managedFields": by("mesh-agent")}));
        let expected = Annotated { namespace: "shop".into(), name: "web".into(), enabled: true, ours: true };
        assert_eq!(ours, expected);
        let istios = read(&serde_json::json!({"name": "web", "namespace": "shop",
            "annotations": {"ambient.istio.io/redirection": "pending"}, "managedFields": by("istio-cni")}));
        assert_eq!(istios, Annotated { enabled: false, ours: false, ..expected });
    }
}
