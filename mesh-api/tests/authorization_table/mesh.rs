//! A small mesh to try policies on.
//!
//! Its servers are the pods `web` and `db` of the namespace `shop` and `web` of the namespace `other`; its
//! clients are in [`CLIENTS`].

use std::{net::IpAddr, sync::Arc};

use mesh_api::{
    compile::{self, Compiled, MeshConfig},
    identity::SpiffeId,
    manifest,
    plan::{
        Snapshot, Store,
        policy::{ConnectionAttributes, Decision, authorize},
    },
    wire::{type_url, xds::Resource},
};
use prost::Message;
use prost_types::Any;

/// Name, identity and address of each client.
const CLIENTS: [(&str, Option<&str>, &str); 6] = [
    ("front", Some("spiffe://cluster.local/ns/shop/sa/front"), "10.244.1.1"),
    ("back", Some("spiffe://cluster.local/ns/other/sa/back"), "10.244.2.2"),
    ("foreign", Some("spiffe://example.org/ns/shop/sa/front"), "10.244.1.4"),
    ("six", Some("spiffe://cluster.local/ns/shop/sa/front"), "fd00:244:1::1"),
    ("mapped", Some("spiffe://cluster.local/ns/shop/sa/front"), "::ffff:10.244.1.1"),
    ("plain", None, "10.244.3.3"),
];

const SERVERS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
status: {podIP: 10.244.9.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.244.9.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: other, labels: {app: web}}
status: {podIP: 10.244.9.3}
";

/// The mesh with some policies in force.
pub struct Mesh {
    snapshot: Snapshot,
    pub compiled: Compiled,
}

/// An `AuthorizationPolicy`, by `namespace/name` and the inside of its `spec`.
pub fn policy(name: &str, spec: &str) -> String {
    object("AuthorizationPolicy", name, spec)
}

/// A `PeerAuthentication`, by `namespace/name` and the inside of its `spec`.
pub fn mode(name: &str, spec: &str) -> String {
    object("PeerAuthentication", name, spec)
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
         spec: {{{spec}}}\n"
    )
}

impl Mesh {
    pub fn with(policies: &[String]) -> Self {
        let parsed = manifest::parse("case.yaml", &(SERVERS.to_owned() + &policies.concat()));
        assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
        let objects = parsed.objects.into_iter().map(Arc::new);
        let compiled = compile::compile(objects, &MeshConfig::default());
        let mut store = Store::default();
        let addresses = compiled.addresses.iter().map(|(name, of)| resource(type_url::ADDRESS, name, of));
        assert_eq!(store.apply_response(type_url::ADDRESS, addresses.collect(), Vec::new()), []);
        let policies =
            compiled.authorizations.iter().map(|(name, of)| resource(type_url::AUTHORIZATION, name, of));
        assert_eq!(store.apply_response(type_url::AUTHORIZATION, policies.collect(), Vec::new()), []);
        Self { snapshot: store.snapshot(), compiled }
    }

    /// Checks lines such as `front:80 allow` or `plain > shop/db:80 deny`; without a server `shop/web` is
    /// meant.
    #[track_caller]
    pub fn expect(&self, lines: &[&str]) -> &Self {
        for line in lines {
            let (asked, verdict) = line.rsplit_once(' ').expect("a verdict");
            let decision = self.ask(asked);
            assert_eq!(decision.is_allowed(), verdict == "allow", "{asked}: {decision}");
        }
        self
    }

    /// Puts a connection to the evaluator.
    pub fn ask(&self, asked: &str) -> Decision {
        let (who, port) = asked.rsplit_once(':').expect("a port");
        let (client, server) = who.split_once(" > ").unwrap_or((who, "shop/web"));
        let (_, identity, address) =
            CLIENTS.iter().find(|(name, ..)| *name == client).expect("a known client");
        let identity = identity.map(|text| text.parse::<SpiffeId>().expect("a valid id"));
        let workload = self.snapshot.workload(&format!("Kubernetes//Pod/{server}")).expect("a known server");
        let peer = ConnectionAttributes {
            identity: identity.as_ref(),
            source_ip: ip(address),
            destination_ip: workload.addresses[0],
            destination_port: port.parse().expect("a number"),
        };
        authorize(&self.snapshot, &workload, &peer)
    }
}

fn resource(type_url: &str, name: &str, message: &impl Message) -> Resource {
    Resource {
        version: String::new(),
        resource: Some(Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
