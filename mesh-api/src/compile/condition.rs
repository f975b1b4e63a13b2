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
}

/// Most conditions of one object that are told, each of which goes into its status: its author decides how
/// many there are.
const MAX_TOLD: usize = 50;

/// The conditions of one object, all of which are that something is ignored. Those beyond the first are
/// counted, and said to be there in one more.
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
