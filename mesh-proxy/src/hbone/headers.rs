//! Headers of a `CONNECT` request: those of [`mesh_api::hbone_request`], and `traceparent` (W3C Trace
//! Context).

use std::net::SocketAddr;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Uri};
pub use mesh_api::hbone_request::{
    InvalidConnectTarget, baggage_header, believed_client, forwarded_header, parse_connect_target,
    parse_forwarded_client, parse_forwarded_host, service_by_hostname,
};
use mesh_api::plan::Workload;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Builds the request for a stream from the client `from` to `destination`. `host` is the service that it
/// addressed and `workload` is its own, as far as they are known. Errors: it is not valid HTTP, which no
/// address causes.
pub fn connect_request(
    from: SocketAddr,
    destination: SocketAddr,
    host: Option<&str>,
    workload: Option<&Workload>,
) -> Result<Request<()>, http::Error> {
    let authority = Uri::builder().authority(destination.to_string()).build()?;
    let mut request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
    let baggage = workload.map(baggage_header);
    let all = [Some(forwarded_header(from, host)), baggage, Some(new_traceparent())];
    *request.headers_mut() =
        all.into_iter().flatten().filter_map(|(name, value)| Some((name, value?))).collect();
    Ok(request)
}

/// Returns name and value of a `traceparent` header, of a new trace with one span. The value is never none.
pub fn new_traceparent() -> (HeaderName, Option<HeaderValue>) {
    let text = format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    (TRACEPARENT, HeaderValue::try_from(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_the_standard_form() {
        let (_, value) = new_traceparent();
        let value = value.unwrap();
        let parts: Vec<&str> = value.to_str().unwrap().split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    }
}
