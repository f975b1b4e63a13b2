//! The first inputs of the fuzz targets, made of what the mesh really reads: `docs/fuzzing.md` says when to
//! run this.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_api::{
    compile::{self, Compiled, MeshConfig},
    manifest,
    wire::{
        type_url,
        xds::{DeltaDiscoveryResponse, Resource},
    },
};
use mesh_common::{
    address::Address,
    direct::{DirectEvent, DirectEventKind},
    fault::{Fault, FaultEvent},
    maps::AddressPort,
};
use prost::Message;
use prost_types::Any;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384,
    SanType,
};

const EXAMPLE: &str = include_str!("../../fuzz/src/example.yaml");

#[test]
#[ignore = "writes into the tree: the first inputs of the fuzz targets"]
fn write() {
    manifests();
    discovery();
    certificates();
    requests();
    records();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn put(target: &str, name: &str, content: impl AsRef<[u8]>) {
    let directory = root().join("fuzz/corpus").join(target);
    fs::create_dir_all(&directory).expect("can be made");
    fs::write(directory.join(name), content).expect("can be written");
}

/// The samples, the example as a whole and kind by kind, and the same as JSON.
fn manifests() {
    put("manifest", "example", EXAMPLE);
    let parsed = manifest::parse("example.yaml", EXAMPLE);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    for object in &parsed.objects {
        let key = object.value.key();
        put("manifest", &format!("{}-{}.json", key.kind, key.name), object.raw.to_string());
    }
    for sample in fs::read_dir(root().join("deploy/samples")).expect("is there").flatten() {
        for file in fs::read_dir(sample.path()).expect("is there").flatten() {
            let name = format!("{}-{}", sample.file_name().display(), file.file_name().display());
            put("manifest", &name, fs::read(file.path()).expect("can be read"));
        }
    }
    for file in fs::read_dir(root().join("mesh-api/tests/broken")).expect("is there").flatten() {
        put("manifest", &file.file_name().display().to_string(), fs::read(file.path()).expect("can be read"));
    }
    put(
        "manifest",
        "broken",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: &a x, labels: *a}\nspec: [\n---\n- 1\n",
    );
    put(
        "manifest",
        "anchors",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: !!str 1\nd: |\n  text\n  more\ne: \"\\u0041\"\n",
    );
}

/// What the control plane sends of the example: all of it, then a change, then the end of it.
fn discovery() {
    let all = compiled(EXAMPLE);
    put("xds", "all", responses(&all, Vec::new()));
    let (first, _) = EXAMPLE.split_once("---\napiVersion: security").expect("policies come last");
    let pods = compiled(first);
    put("xds", "without-policies", responses(&pods, Vec::new()));
    let names = pods.addresses.keys().cloned().collect();
    let policies = all.authorizations.keys().cloned().collect();
    let mut history = responses(&pods, Vec::new());
    history.extend(responses(&all, Vec::new()));
    history.extend(response(type_url::AUTHORIZATION, Vec::new(), policies));
    history.extend(response(type_url::ADDRESS, Vec::new(), names));
    put("xds", "history", history);
    for (number, (name, address)) in all.addresses.iter().enumerate() {
        let one = vec![resource(type_url::ADDRESS, name, address)];
        put("xds", &format!("one-{number}"), response(type_url::ADDRESS, one, Vec::new()));
    }
}

fn compiled(text: &str) -> Compiled {
    let parsed = manifest::parse("example.yaml", text);
    let objects = parsed.objects.into_iter().map(Arc::new);
    compile::compile(objects, &MeshConfig::default())
}

fn responses(compiled: &Compiled, removed: Vec<String>) -> Vec<u8> {
    let addresses = compiled.addresses.iter().map(|(name, of)| resource(type_url::ADDRESS, name, of));
    let policies =
        compiled.authorizations.iter().map(|(name, of)| resource(type_url::AUTHORIZATION, name, of));
    let mut bytes = response(type_url::ADDRESS, addresses.collect(), removed);
    bytes.extend(response(type_url::AUTHORIZATION, policies.collect(), Vec::new()));
    bytes
}

fn response(type_url: &str, resources: Vec<Resource>, removed_resources: Vec<String>) -> Vec<u8> {
    DeltaDiscoveryResponse {
        resources,
        removed_resources,
        type_url: type_url.to_owned(),
        nonce: "1".to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
    .encode_length_delimited_to_vec()
}

fn resource(type_url: &str, name: &str, content: &impl Message) -> Resource {
    let any = Any { type_url: type_url.to_owned(), value: content.encode_to_vec() };
    Resource { version: "1".to_owned(), resource: Some(any), name: name.to_owned(), aliases: Vec::new() }
}

/// Certificates as the mesh's authority makes them, and such as others may show.
fn certificates() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "nodemesh root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("signs itself");
    put("identity", "root", authority.der());
    let workload = SanType::URI("spiffe://cluster.local/ns/shop/sa/web".try_into().expect("IA5"));
    let other = SanType::URI("https://example.org/x".try_into().expect("IA5"));
    let dns = SanType::DnsName("web.shop.svc".try_into().expect("IA5"));
    let ip = SanType::IpAddress("10.0.0.1".parse().expect("an address"));
    let names = [
        ("workload", vec![workload.clone()]),
        ("several", vec![dns, other, workload.clone(), workload]),
        ("none", vec![]),
        ("address", vec![ip]),
    ];
    for (name, sans) in names {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let leaf = params.signed_by(&key, &*authority).expect("is signed");
        put("identity", name, leaf.der());
    }
}

fn requests() {
    let forwarded = "forwarded: for=\"10.244.1.1:40000\";host=web.shop.svc.cluster.local";
    for (name, text) in [
        ("own", format!("CONNECT\n10.244.1.2:8080\n10.244.1.1:5000\n{forwarded}\n")),
        ("six", format!("CONNECT\n[fd00:244:1::2]:9090\n[fd00:244:1::1]:5000\n{forwarded}\nbaggage: a=b\n")),
        (
            "mapped",
            "CONNECT\n[::ffff:10.244.2.2]:22\n10.0.9.9:1\nForwarded: For=unknown, for=_x\n".to_owned(),
        ),
        ("get", "GET\nweb:80\n\ntraceparent: 00-11-22-00\n".to_owned()),
    ] {
        put("hbone", name, text);
    }
    for (name, text) in [
        (
            "exact",
            "spiffe://cluster.local/ns/shop/sa/web\n10.0.0.1:80\ncluster.local/ns/shop/sa/web\n10.0.0.0/8\n80\nweb",
        ),
        ("ends", "spiffe://td/ns/a/sa/b\n[fd00::1]:8080\n*/sa/b\nfd00::/7\n8080\nanother"),
        ("mapped", "spiffe://td/ns/a/sa/b\n[::ffff:10.0.0.1]:1\ntd/*\n::ffff:10.0.0.0/104\n01\nx-y.z_1"),
        ("odd", "spiffe://TD\n10.0.0.1\n*\n10.0.0.1\n*\n*"),
    ] {
        put("addresses", name, text);
    }
}

fn records() {
    let endpoint = |last, port| AddressPort::new(Address::v4([10, 0, 0, last]), port);
    let event = FaultEvent { netns: 7, fault: Fault::DirectFull as u32, destination: endpoint(1, 80) };
    let mut bytes = [&event.netns.to_ne_bytes()[..], &event.fault.to_ne_bytes()].concat();
    bytes.extend(event.destination.address.0);
    bytes.extend([80, 0, 0, 0]);
    put("records", "event", bytes);
    let mut bytes = vec![0; size_of::<DirectEvent>()];
    bytes[..4].copy_from_slice(&(DirectEventKind::Closed as u32).to_ne_bytes());
    put("records", "direct", bytes);
}
