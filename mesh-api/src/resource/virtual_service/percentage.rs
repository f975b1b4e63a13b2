//! `percentage: {value: …}`: how many of the requests something is for.

use crate::document::cursor::Cursor;

/// The least share that is not none, in percent, as in Envoy.
const LEAST: f64 = 0.0001;

/// A share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage {
    /// In millionths of all, so at most 1,000,000.
    pub parts_per_million: u32,
}

impl Percentage {
    /// No request.
    pub const NONE: Self = Self { parts_per_million: 0 };
    /// Every request.
    pub const ALL: Self = Self { parts_per_million: 1_000_000 };

    /// A whole number of percent.
    pub(super) fn of_percent(percent: u32) -> Self {
        Self { parts_per_million: percent * 10_000 }
    }

    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["value"]);
        let Some(value) = fields.get("value") else {
            at.warn("without `value` it is for no request", "add `value`, from 0 to 100");
            return Some(Self::NONE);
        };
        let percent = value.number(0.0..=100.0)?;
        if percent > 0.0 && percent < LEAST {
            value.error("it is less than one request in a million", "write at least 0.0001, or 0 for none");
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to 1,000,000"
        )]
        let parts_per_million = (percent * 10_000.0).round() as u32;
        Some(Self { parts_per_million })
    }
}
