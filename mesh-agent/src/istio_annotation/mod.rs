//! The annotation that tells Istio's control plane and proxies that a pod takes mutual TLS. istiod tells
//! peers to speak plaintext to every pod without it, so whoever takes a pod into the mesh has to write it.
//!
//! Reading order: [`ObservedAnnotation`], a pod's annotation in the API; [`due_writes()`], which are to be
//! written; [`AnnotationWriter`], which writes them.
//!
//! Kubernetes' own record of who wrote a field (server-side apply) says whether an annotation is ours: ours
//! is removed, and one that istio-cni wrote stays, whichever of them restarts meanwhile.

mod annotation_diff;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use mesh_api::resource::enrolment::{REDIRECTION, REDIRECTION_ENABLED, REDIRECTION_WRITER};

pub use annotation_diff::{DueWrite, due_writes};
pub use writer::AnnotationWriter;

/// The annotation of each pod of this node in the API, by the pod's uid.
pub type ObservedAnnotations = BTreeMap<Arc<str>, ObservedAnnotation>;

/// A pod's annotation as it is in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAnnotation {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Whether the annotation says that the pod is in a mesh.
    pub enabled: bool,
    /// Whether an agent of nodemesh wrote it.
    pub ours: bool,
}

impl ObservedAnnotation {
    /// Reads a pod object.
    pub fn from_pod(pod: &impl ResourceExt) -> Self {
        let annotation = pod.annotations().get(REDIRECTION);
        Self {
            namespace: pod.namespace().unwrap_or_default().into(),
            name: pod.name_any().into(),
            enabled: annotation.is_some_and(|value| value == REDIRECTION_ENABLED),
            ours: pod.managed_fields().iter().any(|it| it.manager.as_deref() == Some(REDIRECTION_WRITER)),
        }
    }
}

/// Why annotations could not be written, by the pod's uid; shown with the pod.
#[derive(Clone, Debug, Default)]
pub struct AnnotationFailures(Arc<Mutex<BTreeMap<Arc<str>, String>>>);

impl AnnotationFailures {
    /// Returns why a pod's annotation could not be written, if it could not.
    pub fn error_of(&self, uid: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn replace(&self, failures: BTreeMap<Arc<str>, String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failures;
    }
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;

    use super::*;

    fn read(metadata: &serde_json::Value) -> ObservedAnnotation {
        let pod: DynamicObject = serde_json::from_value(serde_json::json!({"metadata": metadata})).unwrap();
        ObservedAnnotation::from_pod(&pod)
    }

    #[test]
    fn istios_word_and_who_wrote_it_are_read() {
        let by = |manager: &str| serde_json::json!([{"manager": "kubelet"}, {"manager": manager}]);
        let ours = read(&serde_json::json!({"name": "web", "namespace": "shop",
            "annotations": {"ambient.istio.io/redirection": "enabled"}, "managedFields": by("mesh-agent")}));
        let expected =
            ObservedAnnotation { namespace: "shop".into(), name: "web".into(), enabled: true, ours: true };
        assert_eq!(ours, expected);
        let istios = read(&serde_json::json!({"name": "web", "namespace": "shop",
            "annotations": {"ambient.istio.io/redirection": "pending"}, "managedFields": by("istio-cni")}));
        assert_eq!(istios, ObservedAnnotation { enabled: false, ours: false, ..expected });
    }
}
