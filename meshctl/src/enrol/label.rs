//! Which label has to change so that pods are taken in or let go.

use std::collections::BTreeMap;
use std::fmt;

use mesh_api::resource::Labels;
use mesh_api::resource::enrolment::{LABEL, is_enrolled};

use super::Way;

/// What has to change of the one label that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// It gets a value.
    Set(&'static str),
    /// It goes.
    Remove,
}

/// For a namespace.
pub fn of_namespace(namespace: &Labels, way: Way) -> Change {
    change(way, namespace.contains_key(LABEL), |change| {
        let mut after = namespace.clone();
        change.apply(&mut after);
        is_enrolled(&after, &Labels::new(), false).is_selected()
    })
}

/// For a pod, of which the namespace may say otherwise.
pub fn of_pod(namespace: &Labels, pod: &Labels, way: Way) -> Change {
    change(way, pod.contains_key(LABEL), |change| {
        let mut after = pod.clone();
        change.apply(&mut after);
        is_enrolled(namespace, &after, false).is_selected()
    })
}

/// The least that does it: nothing, taking our label away, or giving it a value, which beats everything.
fn change(way: Way, labelled: bool, selects: impl Fn(Change) -> bool) -> Change {
    let wanted = way == Way::In;
    if selects(Change::None) == wanted {
        return Change::None;
    }
    if labelled && selects(Change::Remove) == wanted {
        return Change::Remove;
    }
    Change::Set(if wanted { "enabled" } else { "disabled" })
}

impl Change {
    /// Whether nothing has to change.
    pub fn is_none(self) -> bool {
        self == Self::None
    }

    /// Makes it.
    pub fn apply(self, labels: &mut Labels) {
        match self {
            Self::None => {}
            Self::Set(value) => {
                labels.insert(LABEL.to_owned(), value.to_owned());
            }
            Self::Remove => {
                labels.remove(LABEL);
            }
        }
    }

    /// As labels of a merge patch, where nothing stands for removal.
    pub fn as_labels(self) -> BTreeMap<&'static str, Option<&'static str>> {
        match self {
            Self::None => BTreeMap::new(),
            Self::Set(value) => [(LABEL, Some(value))].into(),
            Self::Remove => [(LABEL, None)].into(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no change"),
            Self::Set(value) => write!(f, "{LABEL}={value}"),
            Self::Remove => write!(f, "{LABEL} removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_namespace_gets_the_least_that_does_it() {
        let (none, on) = (labels(&[]), labels(&[(LABEL, "enabled")]));
        assert_eq!(of_namespace(&none, Way::In), Change::Set("enabled"));
        assert_eq!(of_namespace(&on, Way::In), Change::None);
        assert_eq!(of_namespace(&on, Way::Out), Change::Remove);
        assert_eq!(of_namespace(&none, Way::Out), Change::None);
    }

    #[test]
    fn istios_label_is_left_alone_and_overruled() {
        let ambient = labels(&[("istio.io/dataplane-mode", "ambient")]);
        assert_eq!(of_namespace(&ambient, Way::In), Change::None);
        assert_eq!(of_namespace(&ambient, Way::Out), Change::Set("disabled"));
        let off = labels(&[("istio.io/dataplane-mode", "ambient"), (LABEL, "disabled")]);
        assert_eq!(of_namespace(&off, Way::In), Change::Remove);
    }

    #[test]
    fn a_pod_is_let_go_from_a_namespace_that_stays_in() {
        let (none, on) = (labels(&[]), labels(&[(LABEL, "enabled")]));
        assert_eq!(of_pod(&on, &none, Way::Out), Change::Set("disabled"));
        assert_eq!(of_pod(&none, &on, Way::Out), Change::Remove);
        assert_eq!(of_pod(&on, &labels(&[(LABEL, "disabled")]), Way::In), Change::Remove);
    }
}
