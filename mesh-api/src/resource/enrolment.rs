//! Which pods the mesh takes in.

use std::fmt;

use serde_json::json;

use super::Labels;

/// Our label, on a namespace or a pod: `enabled` or `disabled`.
pub const LABEL: &str = "nodemesh.io/dataplane";
/// Istio's label: `ambient` or `none`. Ours counts if an object has both.
pub const ISTIO_LABEL: &str = "istio.io/dataplane-mode";

/// Annotation by which Istio's control plane and proxies know that a pod takes mutual TLS, which its agent
/// writes.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// What it says of a pod that is in the mesh. With another value, such as istio-cni's `pending`, it is not.
pub const REDIRECTION_ENABLED: &str = "enabled";
/// The name under which our agents write it, in Kubernetes' record of who wrote which field (server-side
/// apply).
pub const REDIRECTION_WRITER: &str = "mesh-agent";

/// What is to be applied to a pod, under that name, so that it says that it is in the mesh; or so that we say
/// nothing of it, which takes off what nobody else said. The uid keeps it from another pod of the same name.
pub fn redirection(name: &str, uid: &str, enabled: bool) -> serde_json::Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": uid}});
    if enabled {
        pod["metadata"]["annotations"] = json!({REDIRECTION: REDIRECTION_ENABLED});
    }
    pod
}

/// Whether a pod is to be in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// It is.
    Selected,
    /// It is not.
    NotSelected(NotSelected),
}

/// Why a pod is not in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotSelected {
    /// It uses the node's network, which is not the pod's to redirect.
    HostNetwork,
    /// A label of the pod says no.
    PodLabel,
    /// A label of the namespace says no.
    NamespaceLabel,
    /// Neither says anything.
    NoLabel,
    /// The label that decides has a value without a meaning.
    UnknownValue {
        /// The label.
        label: &'static str,
        /// Its value.
        value: String,
    },
}

impl fmt::Display for NotSelected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("the pod uses the network of its node"),
            Self::PodLabel => f.write_str("a label of the pod says no"),
            Self::NamespaceLabel => f.write_str("a label of the namespace says no"),
            Self::NoLabel => write!(f, "neither pod nor namespace has the label {LABEL}"),
            Self::UnknownValue { label, value } => {
                write!(f, "the label {label} has the unknown value {value:?}")
            }
        }
    }
}

impl Enrolment {
    /// Whether the pod is to be in the mesh.
    pub fn is_selected(&self) -> bool {
        *self == Self::Selected
    }
}

/// Decides from the labels of the namespace and of the pod, which counts more, and from `hostNetwork`.
pub fn is_enrolled(namespace: &Labels, pod: &Labels, host_network: bool) -> Enrolment {
    if host_network {
        return Enrolment::NotSelected(NotSelected::HostNetwork);
    }
    wish(pod, NotSelected::PodLabel)
        .or_else(|| wish(namespace, NotSelected::NamespaceLabel))
        .unwrap_or(Enrolment::NotSelected(NotSelected::NoLabel))
}

/// What an object's labels ask for, if they ask for anything.
fn wish(labels: &Labels, no: NotSelected) -> Option<Enrolment> {
    let (label, value) = [LABEL, ISTIO_LABEL].into_iter().find_map(|l| Some((l, labels.get(l)?)))?;
    Some(match (label, value.as_str()) {
        (LABEL, "enabled") | (ISTIO_LABEL, "ambient") => Enrolment::Selected,
        (LABEL, "disabled") | (ISTIO_LABEL, "none") => Enrolment::NotSelected(no),
        _ => Enrolment::NotSelected(NotSelected::UnknownValue { label, value: value.clone() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_pod_counts_more_than_its_namespace() {
        let on = labels(&[(LABEL, "enabled")]);
        let off = labels(&[(LABEL, "disabled")]);
        let none = labels(&[]);
        assert_eq!(is_enrolled(&on, &none, false), Enrolment::Selected);
        assert_eq!(is_enrolled(&none, &on, false), Enrolment::Selected);
        assert_eq!(is_enrolled(&off, &on, false), Enrolment::Selected);
        assert_eq!(is_enrolled(&on, &off, false), Enrolment::NotSelected(NotSelected::PodLabel));
        assert_eq!(is_enrolled(&off, &none, false), Enrolment::NotSelected(NotSelected::NamespaceLabel));
        assert_eq!(is_enrolled(&none, &none, false), Enrolment::NotSelected(NotSelected::NoLabel));
    }

    #[test]
    fn istio_labels_mean_the_same() {
        let ambient = labels(&[(ISTIO_LABEL, "ambient")]);
        assert_eq!(is_enrolled(&ambient, &labels(&[]), false), Enrolment::Selected);
        let none = labels(&[(ISTIO_LABEL, "none")]);
        assert_eq!(is_enrolled(&ambient, &none, false), Enrolment::NotSelected(NotSelected::PodLabel));
        let both = labels(&[(ISTIO_LABEL, "none"), (LABEL, "enabled")]);
        assert_eq!(is_enrolled(&labels(&[]), &both, false), Enrolment::Selected);
    }

    #[test]
    fn the_host_network_is_never_taken_in() {
        let on = labels(&[(LABEL, "enabled")]);
        assert_eq!(is_enrolled(&on, &on, true), Enrolment::NotSelected(NotSelected::HostNetwork));
    }

    #[test]
    fn a_value_without_a_meaning_is_named() {
        let odd = labels(&[(LABEL, "true")]);
        let Enrolment::NotSelected(reason) = is_enrolled(&odd, &labels(&[]), false) else {
            panic!("must not be selected")
        };
        assert_eq!(reason.to_string(), "the label nodemesh.io/dataplane has the unknown value \"true\"");
    }
}
