//! The node's name server: Services' names, and nothing else.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use mesh_api::{
    manifest::Kind,
    resource::{Object, Service},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    cluster::{Store, key},
    host::{During, HostError},
    layout::NodeNumber,
};

/// Seconds that an answer may be kept. Short, since headless Services' answers change with their pods.
const TTL: u32 = 5;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// The longest that a UDP question can be.
const LONGEST: usize = 4096;

/// The bound sockets of a name server.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Binds port 53 of the node's gateway addresses. To be called on the node's thread.
    pub async fn bind(node: NodeNumber) -> Result<Self, HostError> {
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in node.gateway() {
            let doing = || format!("serve names on {address}");
            sockets.udp.push(UdpSocket::bind((address, 53)).await.during(doing)?);
            sockets.tcp.push(TcpListener::bind((address, 53)).await.during(doing)?);
        }
        Ok(sockets)
    }

    /// Answers from now on, for as long as the runtime runs.
    pub fn serve(self, store: &Arc<Store>) {
        for socket in self.udp {
            tokio::spawn(udp(socket, store.clone()));
        }
        for listener in self.tcp {
            tokio::spawn(tcp(listener, store.clone()));
        }
    }
}

async fn udp(socket: UdpSocket, store: Arc<Store>) {
    let mut buffer = [0; LONGEST];
    loop {
        // An error is an earlier answer's that could not be delivered; the socket goes on.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = answer(&buffer[..length], Limit::Datagram, &store) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

async fn tcp(listener: TcpListener, store: Arc<Store>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, store.clone()))),
            // Out of descriptors: wait for some to come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Questions and answers, each behind its length (RFC 1035, 4.2.2), until the client leaves or falls silent.
async fn converse(mut stream: TcpStream, store: Arc<Store>) -> io::Result<()> {
    while let Ok(length) = timeout(IDLE, stream.read_u16()).await {
        let mut question = vec![0; length?.into()];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let Some(answer) = answer(&question, Limit::None, &store) else { break };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// What the client said that it takes; 512 bytes if it said nothing.
    Datagram,
    None,
}

/// The answer to a question, or nothing if it is none.
fn answer(question: &[u8], limit: Limit, store: &Store) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = question.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    match look_up(&query.name().to_ascii(), store) {
        Answer::Addresses(addresses) => {
            response.metadata.authoritative = true;
            let records = addresses.into_iter().filter_map(|ip| record(ip, query.query_type()));
            response.add_answers(records.map(|data| Record::from_rdata(query.name().clone(), TTL, data)));
        }
        Answer::NoSuchName => {
            response.metadata.authoritative = true;
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        Answer::NotOurs => response.metadata.response_code = ResponseCode::Refused,
    }
    let bytes = response.to_vec().ok()?;
    if limit == Limit::Datagram && bytes.len() > usize::from(question.max_payload()) {
        return response.truncate().to_vec().ok();
    }
    Some(bytes)
}

fn record(address: IpAddr, wanted: RecordType) -> Option<RData> {
    match (address, wanted) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The name is there; it may have no address of the family asked for.
    Addresses(Vec<IpAddr>),
    NoSuchName,
    NotOurs,
}

fn look_up(name: &str, store: &Store) -> Answer {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let Some(rest) = name.strip_suffix("cluster.local") else { return Answer::NotOurs };
    if !rest.is_empty() && !rest.ends_with('.') {
        return Answer::NotOurs;
    }
    let labels: Vec<&str> = rest.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        ["" | "svc"] => Answer::Addresses(Vec::new()),
        [namespace, "svc"] if store.find(&key(Kind::Namespace, "", namespace)).is_some() => {
            Answer::Addresses(Vec::new())
        }
        [service, namespace, "svc"] => match store.find(&key(Kind::Service, namespace, service)).as_deref() {
            Some(stored) => match &stored.object {
                Object::Service(service) if !service.is_external_name() => {
                    Answer::Addresses(addresses(service, store))
                }
                _ => Answer::NoSuchName,
            },
            None => Answer::NoSuchName,
        },
        _ => Answer::NoSuchName,
    }
}

/// A Service's own addresses or, if it is headless, those of its ready pods.
fn addresses(service: &Service, store: &Store) -> Vec<IpAddr> {
    if !service.is_headless() {
        return service.cluster_ips();
    }
    let mut found = Vec::new();
    for stored in store.in_namespace(&service.metadata.namespace) {
        let Object::EndpointSlice(slice) = &stored.object else { continue };
        if slice.service_name() == Some(&service.metadata.name) {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.is_ready());
            found.extend(ready.flat_map(mesh_api::resource::Endpoint::ip_addresses));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use hickory_proto::{op::Query, rr::Name};
    use serde_json::json;

    use super::*;

    /// A store with the Services `shop/web` (addresses of its own) and `shop/each` (headless, `count` pods).
    fn store(directory: &std::path::Path, count: u8) -> Store {
        let store = Store::new(directory.to_owned());
        let service = |name: &str, ip: &str, ips: &[&str]| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"clusterIP": ip, "clusterIPs": ips, "ports": [{"port": 80}]}})
        };
        let endpoints = (1..=count)
            .map(|n| json!({"addresses": [format!("10.244.1.{n}")], "conditions": {"ready": n != 1}}));
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
            service("web", "10.96.0.10", &["10.96.0.10", "fd00:96::a"]),
            service("each", "None", &["None"]),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "each-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "each"}},
                "endpoints": endpoints.collect::<Vec<_>>(), "ports": [{"port": 80}]}),
        ] {
            store.put(object, None).unwrap();
        }
        store
    }

    fn ask(store: &Store, name: &str, kind: RecordType, limit: Limit) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let id = question.metadata.id;
        let bytes = answer(&question.to_vec().unwrap(), limit, store).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, id);
        message
    }

    #[test]
    fn services_have_names_and_nothing_else_has() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 3);
        for (name, kind, expected) in [
            ("web.shop.svc.cluster.local.", RecordType::A, &["10.96.0.10"][..]),
            ("WEB.shop.svc.Cluster.local.", RecordType::AAAA, &["fd00:96::a"]),
            ("each.shop.svc.cluster.local.", RecordType::A, &["10.244.1.2", "10.244.1.3"]),
            ("each.shop.svc.cluster.local.", RecordType::AAAA, &[]),
            ("shop.svc.cluster.local.", RecordType::A, &[]),
        ] {
            let message = ask(&store, name, kind, Limit::Datagram);
            let found: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(
                (message.metadata.response_code, found.as_slice()),
                (ResponseCode::NoError, &expected.iter().map(ToString::to_string).collect::<Vec<_>>()[..]),
                "{name} {kind}"
            );
        }
        for (name, code) in [
            ("nothing.shop.svc.cluster.local.", ResponseCode::NXDomain),
            ("web.other.svc.cluster.local.", ResponseCode::NXDomain),
            ("web.shop.svc.cluster.local.shop.svc.cluster.local.", ResponseCode::NXDomain),
            ("web.shop.", ResponseCode::Refused),
            ("notcluster.local.", ResponseCode::Refused),
            ("example.com.", ResponseCode::Refused),
        ] {
            assert_eq!(ask(&store, name, RecordType::A, Limit::None).metadata.response_code, code, "{name}");
        }
    }

    #[test]
    fn an_answer_too_long_for_a_datagram_sends_the_client_to_tcp() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 200);
        let name = "each.shop.svc.cluster.local.";
        let datagram = ask(&store, name, RecordType::A, Limit::Datagram);
        assert!(datagram.metadata.truncation && datagram.answers.is_empty(), "{datagram}");
        assert_eq!(ask(&store, name, RecordType::A, Limit::None).answers.len(), 199);
    }

    #[test]
    fn garbage_gets_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 0);
        for garbage in [&b""[..], b"x", &[0xff; 40], &[0; 12]] {
            assert_eq!(answer(garbage, Limit::None, &store), None, "{garbage:?}");
        }
    }
}
