//! `mirror` and `mirrors`: services that get copies of requests, whose responses nobody waits for.

use super::{Destination, Percentage, values};
use crate::document::cursor::{Cursor, Fields};

/// Who gets copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where they go.
    pub destination: Destination,
    /// Of how many requests.
    pub percentage: Percentage,
}

impl Mirror {
    /// Reads what a route says of it, in its old form or in the present one.
    pub(super) fn read_all(fields: &Fields<'_>) -> Vec<Self> {
        let percentage = old_percentage(fields);
        let mut mirrors = values::list(fields, "mirrors", Self::read);
        let Some(at) = fields.get("mirror") else {
            if let Some(at) = percentage.as_ref().map(|(at, _)| at) {
                at.warn("it is for `mirror`, which is not there", "move it into `mirrors`, or remove it");
            }
            return mirrors;
        };
        if fields.get("mirrors").is_some_and(|at| !at.is_empty_list()) {
            at.error("`mirror` and `mirrors` exclude each other", "move it into `mirrors`");
        }
        let percentage = percentage.map_or(Percentage::ALL, |(_, percentage)| percentage);
        mirrors.extend(Destination::read(&at).map(|destination| Self { destination, percentage }));
        mirrors
    }

    /// Reads one of `mirrors`.
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["destination", "percentage"]);
        let percentage = fields.get("percentage").map_or(Some(Percentage::ALL), |at| Percentage::read(&at));
        let destination = fields.require("destination").and_then(|at| Destination::read(&at));
        Some(Self { destination: destination?, percentage: percentage? })
    }
}

/// The share of requests that `mirror` gets, and where it stands. The first one that is there counts.
fn old_percentage<'a>(fields: &Fields<'a>) -> Option<(Cursor<'a>, Percentage)> {
    let mut found = fields.get("mirrorPercentage").and_then(|at| Some((at.clone(), Percentage::read(&at)?)));
    for key in ["mirrorPercent", "mirror_percent"] {
        let Some(at) = fields.get(key) else { continue };
        at.warn(format!("`{key}` is deprecated"), "write `mirrorPercentage: {value: …}`");
        let percent = at.integer(0..=100);
        found = found.or_else(|| Some((at, Percentage::of_percent(percent?))));
    }
    found
}
