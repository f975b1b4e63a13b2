//! `fault`: requests are delayed or fail on purpose.

use std::time::Duration;

use http::StatusCode;

use super::{Percentage, direct_response, values};
use crate::document::cursor::{Cursor, Fields};

/// What is done to requests before they go anywhere. Delays come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Requests that wait. `None`: none does.
    pub delay: Option<Delay>,
    /// Requests that fail. `None`: none does.
    pub abort: Option<Abort>,
}

/// Requests that wait before they go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// For how long.
    pub fixed_delay: Duration,
    /// How many of them.
    pub percentage: Percentage,
}

/// Requests that fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// What the client is told.
    pub error: AbortError,
    /// How many of them.
    pub percentage: Percentage,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortError {
    /// With this status, from 200 to 599.
    Http(StatusCode),
    /// With this status of gRPC, from 0 to 16.
    Grpc(u8),
}

impl Fault {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["delay", "abort"]);
        if at.is_map() && fields.all().next().is_none() {
            at.error("it does nothing", "add `delay` or `abort`");
        }
        Self {
            delay: fields.get("delay").and_then(|at| Delay::read(&at)),
            abort: fields.get("abort").and_then(|at| Abort::read(&at)),
        }
    }
}

impl Delay {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["fixedDelay", "percentage", "percent", "exponentialDelay"]);
        if let Some(at) = fields.get("exponentialDelay") {
            at.error("it was never made, in Istio neither", "write `fixedDelay`");
            return None;
        }
        let percent = fields.get("percent");
        if let Some(at) = &percent {
            at.warn("`percent` is deprecated", "write `percentage: {value: …}`");
        }
        let percent = percent.and_then(|at| at.integer(0..=100)).map(Percentage::of_percent);
        let percentage = if percent.is_none() || fields.get("percentage").is_some() {
            percentage(at, &fields)
        } else {
            percent
        };
        fields.require("fixedDelay")?;
        Some(Self { fixed_delay: values::duration(&fields, "fixedDelay")?, percentage: percentage? })
    }
}

impl Abort {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        const ERRORS: [&str; 3] = ["httpStatus", "grpcStatus", "http2Error"];
        let fields = at.fields(&[&ERRORS[..], &["percentage"][..]].concat());
        let percentage = percentage(at, &fields);
        let given: Vec<_> = ERRORS.into_iter().filter_map(|key| Some((key, fields.get(key)?))).collect();
        let error = match given.as_slice() {
            [] => {
                at.warn(
                    "it does not say how requests fail, so none does",
                    "add `httpStatus` or `grpcStatus`",
                );
                None
            }
            [("httpStatus", at)] => direct_response::final_status(at).map(AbortError::Http),
            [("grpcStatus", at)] => grpc_status(at).map(AbortError::Grpc),
            [(_, at)] => {
                at.error("it was never made, in Istio neither", "write `httpStatus` or `grpcStatus`");
                None
            }
            [.., (key, at)] => {
                at.error(format!("a request fails in one way, and `{key}` is another"), "keep one of them");
                None
            }
        };
        Some(Self { error: error?, percentage: percentage? })
    }
}

/// Reads `percentage`, without which a fault is for no request.
fn percentage(at: &Cursor<'_>, fields: &Fields<'_>) -> Option<Percentage> {
    let Some(given) = fields.get("percentage") else {
        at.warn("without `percentage` it is for no request", "add `percentage: {value: …}`");
        return Some(Percentage::NONE);
    };
    Percentage::read(&given)
}

/// Reads the name of a status of gRPC, or its number.
fn grpc_status(at: &Cursor<'_>) -> Option<u8> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let numbered: Vec<_> = NAMES.into_iter().zip(0_u8..).collect();
    if let Ok(number) = at.text()?.parse::<u8>() {
        if number >= 17 {
            at.error(format!("{number} is not a status of gRPC"), "write one from 0 to 16, or its name");
        }
        return Some(number);
    }
    at.enum_value(&numbered)
}
