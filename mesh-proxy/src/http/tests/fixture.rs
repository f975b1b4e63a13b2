//! The service `web` with the subsets `v1` and `v2`, one server each, and a client that talks through the
//! proxy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use mesh_api::wire::ext::{self, http_route};
use mesh_api::wire::type_url;
use mesh_api::wire::workload::{AppProtocol, Extension, NetworkAddress, Port, PortList, Service, Workload};
use prost::Message;
use prost_types::Any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::http2_server::{Http2Server, is_http2, serve_http2_as};
use crate::connection_address_types::{ClientAddress, OriginalDestination};
use crate::fixture::{PlainSurroundings, WorkerWithPod, tcp_pair, workload_in_shop};
use crate::http::HttpConnection;
use crate::http::detect::ClientProtocol;
use crate::http::serve::serve_http;

/// Namespace and host name of the service.
pub const WEB: (&str, &str) = ("shop", "web.shop.svc.cluster.local");
const VIP: [u8; 4] = [10, 96, 0, 1];

/// What a server does with requests from now on.
#[derive(Clone, Debug)]
pub enum ServerAnswer {
    /// It says what it got.
    Describe,
    /// It sends back all bytes, after an upgrade.
    Echo,
    /// It sends these bytes.
    Bytes(String),
    /// It sends these bytes and closes.
    BytesAndClose(String),
    /// It sends nothing.
    Silence,
}

/// An HTTP server.
pub struct Server {
    name: &'static str,
    answer: RefCell<ServerAnswer>,
    connections: Cell<usize>,
    requests: RefCell<Vec<String>>,
    pub http2: Http2Server,
}

impl Server {
    pub fn answer(&self, answer: ServerAnswer) {
        *self.answer.borrow_mut() = answer;
    }

    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// The heads of the requests that it got.
    pub fn requests(&self) -> Vec<String> {
        self.requests.borrow().clone()
    }

    async fn serve(self: Rc<Self>, mut socket: TcpStream) {
        self.connections.set(self.connections.get() + 1);
        if socket.peek(&mut [0]).await.is_ok_and(|read| read == 1) && is_http2(&socket).await {
            return serve_http2_as(self.name, socket, &self.http2).await;
        }
        let mut input = String::new();
        while let Some(head) = read_head(&mut socket, &mut input).await {
            self.requests.borrow_mut().push(head.clone());
            let answer = self.answer.borrow().clone();
            let sent = match answer {
                ServerAnswer::Describe => {
                    let body = read_body(&mut socket, &mut input, &head).await;
                    socket.write_all(self.described(&head, body).as_bytes()).await
                }
                ServerAnswer::Echo => {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                    let _sent = socket.write_all(format!("{head}{input}").as_bytes()).await;
                    let (mut from, mut to) = socket.split();
                    let _end = tokio::io::copy(&mut from, &mut to).await;
                    return;
                }
                ServerAnswer::Bytes(bytes) => socket.write_all(bytes.as_bytes()).await,
                ServerAnswer::BytesAndClose(bytes) => {
                    let _sent = socket.write_all(bytes.as_bytes()).await;
                    return;
                }
                ServerAnswer::Silence => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn described(&self, head: &str, body: usize) -> String {
        let first = head.lines().next().unwrap_or_default();
        if first.contains("/chunked") {
            let chunks = "4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n";
            return format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        }
        let text = format!("{}: {first} body={body};", self.name);
        format!("HTTP/1.1 200 OK\r\nX-Server: {}\r\nContent-Length: {}\r\n\r\n{text}", self.name, text.len())
    }
}

async fn read_head(socket: &mut TcpStream, input: &mut String) -> Option<String> {
    loop {
        if let Some((head, rest)) = input.split_once("\r\n\r\n") {
            let (head, rest) = (head.to_owned(), rest.to_owned());
            *input = rest;
            return Some(head);
        }
        fill(socket, input).await?;
    }
}

/// The number of bytes in a message's body.
async fn read_body(socket: &mut TcpStream, input: &mut String, head: &str) -> usize {
    let value = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.and_then(|line| Some(line.split_once(": ")?.1.to_owned()))
    };
    if let Some(length) = value("content-length") {
        let length: usize = length.parse().unwrap();
        while input.len() < length {
            fill(socket, input).await.expect("the whole body");
        }
        input.drain(..length);
        return length;
    }
    let mut body = 0;
    while value("transfer-encoding").is_some() {
        while !input.contains("\r\n") {
            fill(socket, input).await.expect("a chunk's line");
        }
        let (size, rest) = input.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        *input = rest.to_owned();
        if size == 0 {
            while !input.starts_with("\r\n") && !input.contains("\r\n\r\n") {
                fill(socket, input).await.expect("the end");
            }
            let end = if input.starts_with("\r\n") { 2 } else { input.find("\r\n\r\n").unwrap() + 4 };
            input.drain(..end);
            break;
        }
        while input.len() < size + 2 {
            fill(socket, input).await.expect("a whole chunk");
        }
        input.drain(..size + 2);
        body += size;
    }
    body
}

async fn fill(socket: &mut TcpStream, input: &mut String) -> Option<()> {
    let mut bytes = vec![0; 65_536];
    let read = socket.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
    input.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
    Some(())
}

/// Who connects, and where to.
/// A worker with the client `a`, and the servers.
pub struct Mesh {
    pub node: WorkerWithPod,
    pub servers: HashMap<&'static str, Rc<Server>>,
    port: u16,
    policy: RefCell<ext::PortPolicy>,
    protocol: Cell<AppProtocol>,
}

impl Mesh {
    /// Everything goes to `v1`.
    pub async fn new() -> Self {
        let node = WorkerWithPod::new(PlainSurroundings::default());
        let first = TcpListener::bind("127.0.1.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind(("127.0.1.2", port)).await.unwrap();
        let mut servers = HashMap::new();
        for (name, listener) in [("v1", first), ("v2", second)] {
            let address = listener.local_addr().unwrap();
            let server = Rc::new(Server {
                name,
                answer: RefCell::new(ServerAnswer::Describe),
                connections: Cell::new(0),
                requests: RefCell::default(),
                http2: Http2Server::default(),
            });
            servers.insert(name, Rc::clone(&server));
            spawn_local(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    spawn_local(Rc::clone(&server).serve(socket));
                }
            });
            node.configuration.set_workload(member(name, address));
        }
        let mesh = Self { node, servers, port, policy: RefCell::default(), protocol: Cell::default() };
        mesh.set_routes(vec![to("v1", |_| ())]);
        mesh
    }

    /// The service and its subsets have this policy, whoever its endpoint is.
    pub fn set_policy(&self, policy: ext::PortPolicy) {
        *self.policy.borrow_mut() = policy;
        self.set_routes(vec![to("v1", |_| ())]);
    }

    /// The service's port declares a protocol.
    pub fn declare(&self, protocol: AppProtocol) {
        self.protocol.set(protocol);
        self.set_routes(vec![to("v1", |_| ())]);
    }

    /// The service has these routes from now on.
    pub fn set_routes(&self, routes: Vec<ext::HttpRoute>) {
        let source = "VirtualService shop/web".to_owned();
        let table = ext::HttpRouteTable { source, routes, ..ext::HttpRouteTable::default() };
        let subset = |name: &str| {
            let labels = [("version".to_owned(), name.to_owned())].into();
            let default = Some(self.policy.borrow().clone());
            (name.to_owned(), ext::Subset { labels, default, ..ext::Subset::default() })
        };
        let policy = ext::TrafficPolicy {
            subsets: ["v1", "v2"].into_iter().map(subset).collect(),
            default: Some(self.policy.borrow().clone()),
            ..ext::TrafficPolicy::default()
        };
        let extensions = vec![
            extension(ext::HTTP_ROUTES, type_url::HTTP_ROUTES, &ext::HttpRoutes { tables: vec![table] }),
            extension(
                ext::TRAFFIC_POLICIES,
                type_url::TRAFFIC_POLICIES,
                &ext::TrafficPolicies { policies: vec![policy] },
            ),
        ];
        self.node.configuration.set_service(Service {
            name: "web".to_owned(),
            namespace: WEB.0.to_owned(),
            hostname: WEB.1.to_owned(),
            addresses: vec![NetworkAddress { address: VIP.to_vec(), ..NetworkAddress::default() }],
            ports: vec![Port {
                service_port: 80,
                target_port: self.port.into(),
                app_protocol: self.protocol.get().into(),
            }],
            extensions,
            ..Service::default()
        });
    }

    /// A connection of the client to the service.
    pub async fn connect(&self) -> Client {
        let (socket, accepted) = tcp_pair().await;
        spawn_local(serve_http(ClientProtocol::Http1, self.origin().await, accepted));
        Client { socket, input: String::new() }
    }

    /// A connection of the client to the service in HTTP/2.
    pub async fn connect_http2(&self) -> SendRequest<Bytes> {
        let (socket, accepted) = tcp_pair().await;
        spawn_local(serve_http(ClientProtocol::Http2, self.origin().await, accepted));
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        spawn_local(connection);
        requests
    }

    async fn origin(&self) -> HttpConnection {
        let (worker, pod) = (Rc::clone(&self.node.worker), Arc::clone(&self.node.pod));
        let workload = worker.wait_for_workload(&pod).await.unwrap();
        let client = ClientAddress::new("10.0.0.1:1000".parse().unwrap());
        let original = OriginalDestination::new(SocketAddr::from((VIP, 80)));
        HttpConnection { worker, pod, workload, client, original }
    }
}

fn extension(name: &str, type_url: &str, content: &impl Message) -> Extension {
    let config = Any { type_url: type_url.to_owned(), value: content.encode_to_vec() };
    Extension { name: name.to_owned(), config: Some(config) }
}

fn member(version: &str, address: SocketAddr) -> Workload {
    let labels = ext::Labels { labels: [("version".to_owned(), version.to_owned())].into() };
    let mut workload = workload_in_shop(version, address.ip());
    let ports = vec![Port { service_port: 80, target_port: address.port().into(), app_protocol: 0 }];
    workload.services.insert(format!("{}/{}", WEB.0, WEB.1), PortList { ports });
    workload.extensions.push(extension(ext::LABELS, type_url::LABELS, &labels));
    workload
}

/// A destination with a weight.
pub fn destination(subset: &str, weight: u32) -> ext::HttpDestination {
    ext::HttpDestination {
        service: format!("{}/{}", WEB.0, WEB.1),
        host: WEB.1.to_owned(),
        subset: subset.to_owned(),
        weight,
        ..ext::HttpDestination::default()
    }
}

/// A route of all requests to a subset; empty: to both.
pub fn to(subset: &str, change: impl FnOnce(&mut ext::HttpForward)) -> ext::HttpRoute {
    let mut forward =
        ext::HttpForward { destinations: vec![destination(subset, 1)], ..ext::HttpForward::default() };
    change(&mut forward);
    route(http_route::Action::Forward(forward))
}

/// A route of all requests.
pub fn route(action: http_route::Action) -> ext::HttpRoute {
    ext::HttpRoute { action: Some(action), ..ext::HttpRoute::default() }
}

/// A route of the paths that begin with `prefix` to `v1`, which gets `uri` in its place.
pub fn rewriting(prefix: &str, uri: &str) -> ext::HttpRoute {
    let path = Some(ext::http_rewrite::Path::Uri(uri.to_owned()));
    let rewrite = ext::HttpRewrite { path, authority: String::new() };
    let mut route = to("v1", |forward| forward.rewrite = Some(rewrite));
    route.matches.push(prefix_match(prefix));
    route
}

/// Matches the paths that begin so.
pub fn prefix_match(prefix: &str) -> ext::HttpMatch {
    let path = Some(ext::StringMatch { form: Some(ext::string_match::Form::Prefix(prefix.to_owned())) });
    ext::HttpMatch { path, ..ext::HttpMatch::default() }
}

/// A span of time on the wire.
pub fn span(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap()
}

/// The client's end.
pub struct Client {
    socket: TcpStream,
    input: String,
}

impl Client {
    /// Sends no more.
    pub async fn close_writing(&mut self) {
        self.socket.shutdown().await.unwrap();
    }

    /// Goes away at once.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub async fn send(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next head.
    pub async fn head(&mut self) -> String {
        read_head(&mut self.socket, &mut self.input).await.expect("a head")
    }

    /// The next response, with a body of a known length.
    pub async fn response(&mut self) -> String {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let body = self.exactly(length.map_or(0, |length| length.parse().unwrap())).await;
        format!("{head}\r\n\r\n{body}")
    }

    /// So many bytes.
    pub async fn exactly(&mut self, bytes: usize) -> String {
        while self.input.len() < bytes {
            fill(&mut self.socket, &mut self.input).await.expect("more bytes");
        }
        self.input.drain(..bytes).collect()
    }

    /// What comes up to this text.
    pub async fn until(&mut self, end: &str) -> String {
        while !self.input.contains(end) {
            fill(&mut self.socket, &mut self.input).await.expect("more bytes");
        }
        let length = self.input.find(end).unwrap_or_default() + end.len();
        self.input.drain(..length).collect()
    }

    /// All that comes until the connection ends.
    pub async fn rest(&mut self) -> String {
        while fill(&mut self.socket, &mut self.input).await.is_some() {}
        std::mem::take(&mut self.input)
    }

    /// Whether the connection ends with a reset.
    pub async fn ends_with_reset(&mut self) -> bool {
        let mut bytes = [0; 1024];
        loop {
            match self.socket.read(&mut bytes).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Sends GET for a path with a field, and returns which server answered.
    pub async fn ask(&mut self, path: &str, field: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: web\r\n{field}\r\n")).await;
        let response = self.response().await;
        let server = response.lines().find_map(|line| line.strip_prefix("X-Server: "));
        server.unwrap_or_else(|| response.lines().next().unwrap_or_default()).to_owned()
    }
}
