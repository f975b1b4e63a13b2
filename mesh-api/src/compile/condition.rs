//! What of a resource is not in force as it was written.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    manifest::{Kind, ObjectKey},
    resource::Metadata,
};

/// Something that a resource says and the mesh does not do, or does otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Kind of the resource.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The field that it is about.
    pub field: String,
    /// What it comes to.
    pub effect: ConditionEffect,
    /// Why, in a sentence.
    pub reason: String,
    /// What to write instead.
    #[serde(default)]
    pub fix: String,
    /// Whether it leaves nothing of the resource in force.
    #[serde(default)]
    pub is_whole: bool,
    /// What a route of the Gateway API says by it in its status, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_fault: Option<RouteFault>,
}

/// Why a condition of the Gateway API's own in a route's status is not true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteFault {
    /// The parent, or its port, is not there.
    NoMatchingParent,
    /// Something that is written can't be done.
    UnsupportedValue,
    /// A backend, or what else is named, is of a kind that nothing can be sent to.
    InvalidKind,
    /// A backend is not there.
    BackendNotFound,
    /// A backend is in another namespace, which grants no reference to it.
    RefNotPermitted,
}

impl RouteFault {
    /// Whether it is about what the route names, so that `ResolvedRefs` tells it; else `Accepted` does.
    pub fn is_of_reference(self) -> bool {
        matches!(self, Self::InvalidKind | Self::BackendNotFound | Self::RefNotPermitted)
    }

    /// The reason that the condition has.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoMatchingParent => "NoMatchingParent",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::InvalidKind => "InvalidKind",
            Self::BackendNotFound => "BackendNotFound",
            Self::RefNotPermitted => "RefNotPermitted",
        }
    }
}

/// Most conditions of one object that are told, each of which goes into its status: its author decides how
/// many there are.
const MAX_TOLD: usize = 50;

/// The conditions of one object. Those beyond the first are counted, and said to be there in one more.
pub(super) struct ConditionList<'a> {
    kind: Kind,
    metadata: &'a Metadata,
    told: Vec<Condition>,
    untold: usize,
}

impl<'a> ConditionList<'a> {
    pub fn new(kind: Kind, metadata: &'a Metadata) -> Self {
        Self { kind, metadata, told: Vec::new(), untold: 0 }
    }

    /// Says that a field has no effect; why, and what to write instead.
    pub fn ignore(&mut self, field: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) {
        if self.told.len() < MAX_TOLD {
            let condition = self.ignored(field, reason, fix);
            self.told.push(condition);
        } else {
            self.untold += 1;
        }
    }

    /// Says that, and what the status of a route says by it. The first of each such is told in any case:
    /// the status is made of it.
    pub fn ignore_for(
        &mut self,
        fault: RouteFault,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let is_first = self.told.iter().all(|known| known.route_fault != Some(fault));
        if is_first || self.told.len() < MAX_TOLD {
            let condition = self.ignored(field, reason, fix);
            self.told.push(Condition { route_fault: Some(fault), ..condition });
        } else {
            self.untold += 1;
        }
    }

    /// Notes that with what was told nothing of the object is in force.
    pub fn nothing_in_force(&mut self) {
        if let Some(first) = self.told.first_mut() {
            first.is_whole = true;
        }
    }

    /// Says the same, and that with it nothing of the object is in force: first of all.
    pub fn ignore_whole(
        &mut self,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let condition = self.ignored(field, reason, fix).nothing_in_force();
        self.told.insert(0, condition);
    }

    pub fn into_conditions(mut self) -> Vec<Condition> {
        let last = self.told.last().filter(|_| self.untold > 0).map(|last| last.field.clone());
        if let Some(field) = last {
            let reason = format!("and {} more like these", self.untold);
            let more = self.ignored(field, reason, "mend those that are named; the rest is named then");
            self.told.push(more);
        }
        self.told
    }

    fn ignored(
        &self,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Condition {
        Condition::new(self.kind, self.metadata, field, ConditionEffect::Ignored, (reason, fix))
    }
}

/// How what is enforced differs from what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConditionEffect {
    /// The field has no effect at all.
    Ignored,
    /// Less is let through than was written.
    Stricter,
    /// More is let through than was written.
    Weaker,
}

impl Condition {
    pub(super) fn new(
        kind: Kind,
        metadata: &Metadata,
        field: impl Into<String>,
        effect: ConditionEffect,
        (reason, fix): (impl Into<String>, impl Into<String>),
    ) -> Self {
        Self {
            kind,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            field: field.into(),
            effect,
            reason: reason.into(),
            fix: fix.into(),
            is_whole: false,
            route_fault: None,
        }
    }

    /// The same, and with it nothing of the resource is in force.
    pub(super) fn nothing_in_force(self) -> Self {
        Self { is_whole: true, ..self }
    }

    /// What the condition is about.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            ConditionEffect::Ignored => "ignored",
            ConditionEffect::Stricter => "stricter than written",
            ConditionEffect::Weaker => "weaker than written",
        };
        write!(f, "{}: {}: {effect}: {}", self.key(), self.field, self.reason)
    }
}
