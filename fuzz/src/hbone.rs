//! What a peer's request makes us do before anything is connected: its target, its client, its service, and
//! whether the policy takes it.

use std::net::SocketAddr;
use std::sync::LazyLock;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use mesh_api::hbone_request;
use mesh_api::plan::Snapshot;
use mesh_api::plan::policy::{ConnectionAttributes, authorize};

use crate::agree::{self, Mesh};

/// Lines of text: method, authority, the address that connects, then headers. What HTTP/2 itself would refuse
/// is none.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (method, authority, peer) = (lines.next(), lines.next(), lines.next());
    let Some(method) = method.and_then(|line| Method::from_bytes(line).ok()) else { return };
    let uri = authority.and_then(|line| Uri::builder().authority(line).build().ok());
    let authority = uri.as_ref().and_then(Uri::authority).map(ToString::to_string);
    let peer = peer.and_then(|line| std::str::from_utf8(line).ok()?.parse::<SocketAddr>().ok());
    let peer = peer.unwrap_or_else(|| SocketAddr::from(([10, 244, 1, 1], 40_000)));
    let headers: HeaderMap = lines.filter_map(header).collect();
    request(&method, authority.as_deref(), peer, &headers);
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value.trim_ascii()).ok()?))
}

fn request(method: &Method, authority: Option<&str>, peer: SocketAddr, headers: &HeaderMap) {
    static MESH: LazyLock<(Snapshot, Mesh)> = LazyLock::new(agree::example);
    let (snapshot, mesh) = &*MESH;
    let claimed = hbone_request::parse_forwarded_client(headers);
    let client = hbone_request::believed_client(claimed, peer);
    assert_eq!(client.ip(), peer.ip().to_canonical(), "nobody speaks for another address");
    assert!(client.port() == peer.port() || claimed.is_some_and(|claimed| claimed.port() == client.port()));
    let (_, header) = hbone_request::forwarded_header(client, None);
    let again =
        HeaderMap::from_iter([(HeaderName::from_static("forwarded"), header.expect("an address is text"))]);
    let again = hbone_request::believed_client(
        hbone_request::parse_forwarded_client(&again),
        SocketAddr::new(peer.ip(), 1),
    );
    assert_eq!(again, client, "what we write we read");
    if let Some(host) = hbone_request::parse_forwarded_host(headers)
        && let Some(service) = hbone_request::service_by_hostname(&host, snapshot)
    {
        assert_eq!(host, *service.hostname);
    }
    let target = match hbone_request::parse_connect_target(method, authority) {
        Ok(target) => target,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(method, Method::CONNECT);
    assert_eq!(
        hbone_request::parse_connect_target(method, Some(&target.to_string())),
        Ok(target),
        "what is read is canonical"
    );
    let Some(workload) = snapshot.workload_by_address(target.ip()) else { return };
    for identity in mesh.identities() {
        let asking = ConnectionAttributes {
            identity: identity.as_ref(),
            source_ip: client.ip(),
            destination_ip: target.ip(),
            destination_port: target.port(),
        };
        let decision = authorize(snapshot, &workload, &asking);
        assert!(!decision.to_string().is_empty());
        assert_eq!(decision.is_allowed(), mesh.allows(&workload.uid, &asking), "{decision}");
    }
}
