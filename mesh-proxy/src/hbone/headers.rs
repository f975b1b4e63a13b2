//! What a `CONNECT` request says besides its target: that of [`mesh_api::hbone`], and `traceparent` (W3C).

use http::header::{HeaderName, HeaderValue};
pub use mesh_api::hbone::{
    BadTarget, baggage, client, forwarded, forwarded_client, forwarded_host, service, target,
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A new trace of one span.
pub fn traceparent() -> (HeaderName, Option<HeaderValue>) {
    let text = format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    (TRACEPARENT, HeaderValue::try_from(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_the_standard_form() {
        let (_, value) = traceparent();
        let value = value.unwrap();
        let parts: Vec<&str> = value.to_str().unwrap().split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    }
}
