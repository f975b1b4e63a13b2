use prost::Message;

use super::*;
use crate::plan::fixture::{
    WEB_KEY, address_bytes, as_web_member, pod, pod_resource, policy_resource, service, service_resource,
    service_with_traffic_policies, store, web,
};
use crate::plan::{self, Workload};
use crate::wire::ext;
use crate::wire::security::{Authorization, Clause, Match, Rule};
use crate::wire::workload::{Extension, Locality, NetworkAddress, Port, TunnelProtocol};

fn apply(store: &mut Store, resources: Vec<Resource>) -> Vec<RejectedResource> {
    store.apply_response(type_url::ADDRESS, resources, Vec::new())
}

fn remove(store: &mut Store, name: &str) {
    assert_eq!(store.apply_response(type_url::ADDRESS, Vec::new(), vec![name.into()]), []);
}

fn names(resources: impl Iterator<Item = Resource>) -> Vec<String> {
    let mut names: Vec<_> = resources.map(|resource| resource.name).collect();
    names.sort();
    names
}

fn policy() -> Authorization {
    let one = Match { destination_ports: vec![80], ..Match::default() };
    Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        ..Authorization::default()
    }
}

#[test]
fn a_workload_is_read_as_sent() {
    let mut from = as_web_member(pod("a", &["10.244.1.1", "::ffff:10.0.0.1", "fd00::1"]), 8080);
    from.trust_domain = "example.org".into();
    from.service_account = String::new();
    from.locality = Some(Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() });
    from.capacity = Some(3);
    let labels = ext::Labels { labels: [("app".into(), "a".into())].into() };
    let config = Any { type_url: type_url::LABELS.into(), value: labels.encode_to_vec() };
    from.extensions.push(Extension { name: ext::LABELS.into(), config: Some(config) });
    let workload = Workload::try_from(from).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://example.org/ns/shop/sa/default");
    let addresses: Vec<_> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.244.1.1", "10.0.0.1", "fd00::1"]);
    assert_eq!(
        (&*workload.locality.region, &*workload.locality.zone, &*workload.locality.subzone),
        ("r", "z", "s")
    );
    assert_eq!((workload.capacity, workload.tunnel_protocol), (3, plan::TunnelProtocol::Hbone));
    assert_eq!(workload.port_mapping(WEB_KEY, 80).unwrap().target, Some(8080));
    assert_eq!(workload.labels["app"], "a");
    let bare = workload::Workload { uid: "u".into(), namespace: "n".into(), ..Default::default() };
    let bare = Workload::try_from(bare).unwrap();
    assert_eq!(bare.identity.to_string(), "spiffe://cluster.local/ns/n/sa/default");
    assert_eq!((bare.capacity, bare.tunnel_protocol), (1, plan::TunnelProtocol::Plain));
}

/// Each bad resource with the reason that is given for it.
#[test]
fn bad_addresses_are_rejected_with_a_reason() {
    type Spoil<T> = fn(&mut T);
    let workloads: [(&str, Spoil<workload::Workload>); 9] = [
        ("`uid` is missing", |w| w.uid.clear()),
        ("`namespace` is missing", |w| w.namespace.clear()),
        ("`addresses` has an address of 5 bytes; 4 and 16 are possible", |w| w.addresses.push(vec![1; 5])),
        ("`tunnel_protocol` is LEGACY_ISTIO_MTLS, which is not supported; use HBONE", |w| {
            w.tunnel_protocol = TunnelProtocol::LegacyIstioMtls.into();
        }),
        ("`tunnel_protocol` has the unknown value 9", |w| w.tunnel_protocol = 9),
        ("`status` has the unknown value 9", |w| w.status = 9),
        ("`network_mode` has the unknown value -1", |w| w.network_mode = -1),
        ("`services.target_port` has port 65536; 1 to 65535 are possible", |w| {
            *w = as_web_member(w.clone(), 65536);
        }),
        (
            "`spiffe://cluster.local/ns/shop/sa/a/b` is not a workload identity \
             (spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT): its segments are different",
            |w| w.service_account = "a/b".into(),
        ),
    ];
    for (reason, spoil) in workloads {
        let mut bad = pod("bad", &["10.0.0.2"]);
        spoil(&mut bad);
        expect_rejection(&pod_resource(bad), reason);
    }
    let services: [(&str, Spoil<workload::Service>); 8] = [
        ("`namespace` is missing", |s| s.namespace.clear()),
        ("`hostname` is missing", |s| s.hostname.clear()),
        ("`addresses` has an address of 0 bytes; 4 and 16 are possible", |s| {
            s.addresses.push(NetworkAddress::default());
        }),
        ("`addresses` has a prefix of 33 bits, which does not fit 10.0.0.0", |s| {
            let address = address_bytes("10.0.0.0");
            s.addresses.push(NetworkAddress { address, length: Some(33), ..Default::default() });
        }),
        ("`addresses` has a prefix of 300 bits, which does not fit fd00::", |s| {
            let address = address_bytes("fd00::");
            s.addresses.push(NetworkAddress { address, length: Some(300), ..Default::default() });
        }),
        ("`ports.service_port` has port 0; 1 to 65535 are possible", |s| s.ports.push(Port::default())),
        ("`ports.target_port` has port 70000; 1 to 65535 are possible", |s| s.ports[0].target_port = 70000),
        ("`ip_families` has the unknown value 4", |s| s.ip_families = 4),
    ];
    for (reason, spoil) in services {
        let mut bad = web(&[]);
        spoil(&mut bad);
        expect_rejection(&service_resource(bad), reason);
    }
}

#[test]
fn bad_traffic_policies_are_rejected_with_a_reason() {
    let of = |policy: ext::PortPolicy| ext::TrafficPolicy { default: Some(policy), ..Default::default() };
    let pool = |span: prost_types::Duration| ext::PortPolicy {
        pool: Some(ext::ConnectionPool { connect_timeout: Some(span), ..Default::default() }),
        ..Default::default()
    };
    let outlier = |max_ejection_percent| ext::PortPolicy {
        outlier: Some(ext::OutlierDetection { max_ejection_percent, ..Default::default() }),
        ..Default::default()
    };
    let at_port = |port| ext::TrafficPolicy {
        ports: [(port, ext::PortPolicy::default())].into(),
        ..Default::default()
    };
    let cases = [
        (of(ext::PortPolicy { lb: 5, ..Default::default() }), "`lb` has the unknown value 5"),
        (
            of(pool(prost_types::Duration { seconds: -1, nanos: 0 })),
            "`connect_timeout` is not a span of time",
        ),
        (of(outlier(101)), "`max_ejection_percent` is 101 %, more than 100 %"),
        (at_port(0), "`ports` has port 0; 1 to 65535 are possible"),
    ];
    for (policy, reason) in cases {
        expect_rejection(&service_resource(service_with_traffic_policies(web(&[]), vec![policy])), reason);
    }
}

#[test]
fn bad_wrappings_are_rejected_with_a_reason() {
    let good = pod_resource(pod("bad", &[]));
    let any = |type_url: &str, value: &[u8]| Some(Any { type_url: type_url.into(), value: value.into() });
    let cases = [
        (Resource { resource: None, ..good.clone() }, "it has no content"),
        (Resource { resource: any(type_url::ADDRESS, &[]), ..good.clone() }, "it has no content"),
        (
            Resource { resource: any(type_url::WORKLOAD, &[]), ..good.clone() },
            "its type is `type.googleapis.com/istio.workload.Workload`, \
             expected `type.googleapis.com/istio.workload.Address`",
        ),
        (
            Resource { name: "else".into(), ..good.clone() },
            "it is named otherwise than its content, which is `cluster//Pod/shop/bad`",
        ),
    ];
    for (bad, reason) in cases {
        expect_rejection(&bad, reason);
    }
    let garbage = Resource { resource: any(type_url::ADDRESS, b"\xff\xff\xff garbage"), ..good.clone() };
    let rejected = apply(&mut Store::default(), vec![garbage]);
    assert!(rejected[0].reason.to_string().starts_with("it can't be decoded: "), "{}", rejected[0]);
    let other = Store::default().apply_response("type.googleapis.com/other", vec![good], vec!["x".into()]);
    let text = other[0].to_string();
    assert_eq!(text, "cluster//Pod/shop/bad: resources of type `type.googleapis.com/other` are not held");
}

/// The bad one is reported alone, and a good one beside it is taken.
fn expect_rejection(bad: &Resource, reason: &str) {
    let mut store = Store::default();
    let rejected = apply(&mut store, vec![bad.clone(), pod_resource(pod("good", &["10.0.0.1"]))]);
    let [only] = &*rejected else { panic!("{reason}: {rejected:?}") };
    assert_eq!((&*only.name, &*only.reason.to_string()), (&*bad.name, reason));
    assert_eq!(
        names(store.contents().resources(&XdsResourceType::ADDRESS)),
        ["cluster//Pod/shop/good"],
        "{reason}"
    );
    assert_eq!(store.snapshot().workload_count(), 1, "{reason}");
}

/// Cut off and altered at every byte: taken or rejected, but nothing panics, then or later.
#[test]
fn damaged_resources_do_no_harm() {
    let rule = ext::TrafficPolicy { default: Some(ext::PortPolicy::default()), ..Default::default() };
    let originals = [
        (type_url::ADDRESS, pod_resource(as_web_member(pod("a", &["10.0.0.1", "fd00::1"]), 80))),
        (
            type_url::ADDRESS,
            service_resource(service_with_traffic_policies(web(&["10.96.0.1", "10.97.0.0/16"]), vec![rule])),
        ),
        (type_url::AUTHORIZATION, policy_resource(&policy())),
    ];
    for (type_url, original) in originals {
        let bytes = original.resource.clone().unwrap().value;
        let cut = (0..bytes.len()).map(|end| bytes[..end].to_vec());
        let altered = (0..bytes.len()).flat_map(|at| {
            [0x01, 0x10, 0x80, 0xff].map(|mask| {
                let mut bytes = bytes.clone();
                bytes[at] ^= mask;
                bytes
            })
        });
        for value in cut.chain(altered) {
            let mut store = Store::default();
            let any = Any { type_url: type_url.into(), value };
            store.apply_response(
                type_url,
                vec![Resource { resource: Some(any), ..original.clone() }],
                Vec::new(),
            );
            let snapshot = store.snapshot();
            for workload in snapshot.workloads() {
                for ip in snapshot.addresses() {
                    let _ = plan::outbound::destination_of(&snapshot, &workload, (ip, 80).into()).to_string();
                }
            }
        }
    }
}

#[test]
fn a_bad_update_leaves_the_good_resource_in_force() {
    let mut store = store(vec![pod_resource(pod("a", &["10.0.0.1"]))], &[]);
    let mut bad = pod("a", &["10.0.0.2"]);
    bad.tunnel_protocol = TunnelProtocol::LegacyIstioMtls.into();
    assert_eq!(apply(&mut store, vec![Resource { version: "2".into(), ..pod_resource(bad) }]).len(), 1);
    assert!(store.snapshot().workload_by_address("10.0.0.1".parse().unwrap()).is_some());
    assert_eq!(store.resource_versions(&XdsResourceType::ADDRESS)["cluster//Pod/shop/a"], "1");
}

#[test]
fn removal_is_by_uid_or_by_service_name() {
    let mut store = store(
        vec![pod_resource(as_web_member(pod("a", &["10.0.0.1"]), 80)), service_resource(web(&["10.96.0.1"]))],
        &[policy()],
    );
    remove(&mut store, "nobody");
    remove(&mut store, "no/body");
    assert_eq!(store.resource_versions(&XdsResourceType::ADDRESS).len(), 2);
    remove(&mut store, WEB_KEY);
    let snapshot = store.snapshot();
    assert!(snapshot.service_by_vip("10.96.0.1".parse().unwrap(), "shop").is_none());
    assert_eq!((snapshot.service_count(), snapshot.workload_count()), (0, 1));
    remove(&mut store, "cluster//Pod/shop/a");
    let snapshot = store.snapshot();
    assert!(snapshot.workload_by_address("10.0.0.1".parse().unwrap()).is_none());
    assert_eq!((snapshot.workload_count(), snapshot.addresses().count()), (0, 0));
    assert!(store.resource_versions(&XdsResourceType::ADDRESS).is_empty());
    assert_eq!(store.apply_response(type_url::AUTHORIZATION, Vec::new(), vec!["shop/p".into()]), []);
    assert_eq!(store.snapshot().all_policies().len(), 0);
    assert!(store.resource_versions(&XdsResourceType::AUTHORIZATION).is_empty());
}

#[test]
fn a_generation_is_new_only_if_something_is() {
    let mut store = store(vec![pod_resource(pod("a", &["10.0.0.1"]))], &[policy()]);
    assert_eq!(Snapshot::default().generation(), 0);
    let first = store.snapshot();
    assert_eq!(first.generation(), 1);
    let again = Resource { version: "2".into(), ..pod_resource(pod("a", &["10.0.0.1"])) };
    assert_eq!(apply(&mut store, vec![again]), []);
    assert_eq!(store.apply_response(type_url::AUTHORIZATION, vec![policy_resource(&policy())], vec![]), []);
    assert_eq!(
        store.resource_versions(&XdsResourceType::ADDRESS)["cluster//Pod/shop/a"],
        "2",
        "the version is, all the same"
    );
    assert_eq!(store.snapshot().generation(), 1, "what a reconnect sends again is no change");
    assert_eq!(apply(&mut store, vec![pod_resource(pod("a", &["10.0.0.2"]))]), []);
    assert_eq!(store.snapshot().generation(), 2);
    assert!(
        first.workload_by_address("10.0.0.1".parse().unwrap()).is_some(),
        "an older snapshot stays as it is"
    );
}

#[test]
fn a_store_can_be_rebuilt_from_its_resources() {
    let mut original = store(
        vec![pod_resource(as_web_member(pod("a", &["10.0.0.1"]), 80)), service_resource(web(&["10.96.0.1"]))],
        &[policy()],
    );
    let faulty = Authorization { name: "q".into(), ..policy() };
    let mut faulty = policy_resource(&faulty);
    faulty.resource = policy_resource(&Authorization {
        name: "q".into(),
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![Match { destination_ports: vec![0], ..Match::default() }] }],
        }],
        ..policy()
    })
    .resource;
    assert_eq!(original.apply_response(type_url::AUTHORIZATION, vec![faulty], vec![]).len(), 1);
    assert_eq!(
        original.resource_versions(&XdsResourceType::AUTHORIZATION)["shop/q"],
        "",
        "held, but no version was accepted"
    );
    let mut copy = Store::default();
    for of in XdsResourceType::ALL {
        copy.apply_response(of.type_url, original.contents().resources(&of).collect(), Vec::new());
        assert_eq!(copy.resource_versions(&of), original.resource_versions(&of));
    }
    let (original, copy) = (original.snapshot(), copy.snapshot());
    let workloads = |snapshot: &Snapshot| {
        let pairs = snapshot.workloads().map(|it| (it.uid.clone(), it));
        pairs.collect::<BTreeMap<_, _>>()
    };
    let services = |snapshot: &Snapshot| {
        let pairs = snapshot.services().map(|it| (it.key.clone(), it));
        pairs.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(workloads(&original), workloads(&copy));
    assert_eq!(services(&original), services(&copy));
    let all = |snapshot: &Snapshot| {
        snapshot.all_policies().map(|policy| policy.namespaced_name().clone()).collect::<Vec<_>>().len()
    };
    assert_eq!((all(&original), all(&copy)), (2, 2));
}

#[test]
fn order_of_arrival_does_not_matter() {
    let workload = || pod_resource(as_web_member(pod("a", &["10.0.0.1"]), 80));
    for resources in [
        vec![workload(), service_resource(web(&["10.96.0.1"]))],
        vec![service_resource(web(&["10.96.0.1"])), workload()],
    ] {
        let mut store = Store::default();
        for resource in resources {
            assert_eq!(apply(&mut store, vec![resource]), []);
            store.snapshot();
        }
        let snapshot = store.snapshot();
        let service = snapshot.service_by_name("shop", "web.shop.svc.cluster.local").unwrap();
        assert_eq!(snapshot.workloads_of_service(&service).len(), 1);
        // A pod that leaves the service leaves its endpoints; one that is made anew is back.
        assert_eq!(apply(&mut store, vec![pod_resource(pod("a", &["10.0.0.1"]))]), []);
        assert_eq!(store.snapshot().workloads_of_service(&service).len(), 0);
        assert_eq!(apply(&mut store, vec![workload()]), []);
        assert_eq!(store.snapshot().workloads_of_service(&service).len(), 1);
    }
}

#[test]
fn an_address_is_the_healthy_claimants_then_the_latest_ones() {
    let owner = |store: &mut Store| {
        let snapshot = store.snapshot();
        snapshot.workload_by_address("10.0.0.1".parse().unwrap()).map(|workload| workload.name.to_string())
    };
    let ended = || workload::Workload { status: 1, ..pod("old", &["10.0.0.1"]) };
    let mut store = store(vec![pod_resource(pod("old", &["10.0.0.1"]))], &[]);
    assert_eq!(owner(&mut store).as_deref(), Some("old"));
    assert_eq!(apply(&mut store, vec![pod_resource(pod("new", &["10.0.0.1"]))]), []);
    assert_eq!(owner(&mut store).as_deref(), Some("new"));
    assert_eq!(apply(&mut store, vec![pod_resource(ended())]), []);
    assert_eq!(owner(&mut store).as_deref(), Some("new"), "what is about to end came last");
    remove(&mut store, "cluster//Pod/shop/new");
    assert_eq!(owner(&mut store).as_deref(), Some("old"));
    remove(&mut store, "cluster//Pod/shop/old");
    assert_eq!(owner(&mut store), None);
}

#[test]
fn hosts_resolve_as_in_a_pod() {
    let wildcard = workload::Service {
        hostname: "*.example.org".into(),
        canonical: false,
        ..service("ext", "star", &[])
    };
    let narrow = workload::Service { hostname: "*.eu.example.org".into(), ..service("ext", "narrow", &[]) };
    let plain = workload::Service { hostname: "API.example.org".into(), ..service("ext", "api", &[]) };
    let hidden = workload::Service { visibility: 1, ..service("ops", "secret", &[]) };
    let services = [web(&[]), service("ops", "web", &[]), wildcard, narrow, plain, hidden];
    let snapshot = store(services.map(service_resource).into(), &[]).snapshot();
    let cases = [
        ("web", "shop", Some("shop/web")),
        ("web", "ops", Some("ops/web")),
        ("web", "ext", None),
        ("web.ops", "shop", Some("ops/web")),
        ("web.ops.svc", "shop", Some("ops/web")),
        ("WEB.ops.svc.", "shop", Some("ops/web")),
        ("web.ops.svc.cluster.local", "shop", Some("ops/web")),
        ("web.ops.svc.cluster.local.", "shop", Some("ops/web")),
        ("web.ops.svc.other.domain", "shop", None),
        ("we.ops", "shop", None),
        ("secret.ops", "shop", None),
        ("secret.ops", "ops", Some("ops/secret")),
        ("api.example.org", "shop", Some("ext/api")),
        ("other.example.org", "shop", Some("ext/star")),
        ("a.eu.example.org", "shop", Some("ext/narrow")),
        ("example.org", "shop", None),
        (".example.org", "shop", None),
        ("", "shop", None),
        (".", "shop", None),
        ("...", "shop", None),
    ];
    for (name, namespace, expected) in cases {
        let found = snapshot.resolve_host(name, namespace);
        let found = found.map(|service| format!("{}/{}", service.namespace, service.name));
        assert_eq!(found.as_deref(), expected, "{name} in {namespace}");
    }
}

#[test]
fn known_addresses_are_listed() {
    let mut host = pod("host", &["172.30.0.11"]);
    host.network_mode = 1;
    let snapshot = store(
        vec![
            pod_resource(pod("a", &["10.0.0.1", "fd00::1"])),
            pod_resource(host),
            service_resource(web(&["10.96.0.1", "10.97.0.0/16"])),
        ],
        &[],
    )
    .snapshot();
    let mut addresses: Vec<_> = snapshot.addresses().map(|ip| ip.to_string()).collect();
    addresses.sort_unstable();
    assert_eq!(addresses, ["10.0.0.1", "10.96.0.1", "fd00::1"]);
    let ranges: Vec<_> = snapshot.service_vip_ranges().map(|range| range.to_string()).collect();
    assert_eq!(ranges, ["10.97.0.0/16"]);
}

/// Workloads and services share one space of names.
#[test]
fn a_name_is_a_workload_or_a_service_and_never_both() {
    let mut both = pod("a", &["10.244.1.1"]);
    both.uid = WEB_KEY.into();
    let (workload, service) = (pod_resource(both), service_resource(web(&["10.96.0.1"])));
    for (first, second) in [(&workload, &service), (&service, &workload)] {
        let mut store = Store::default();
        assert_eq!(apply(&mut store, vec![first.clone(), second.clone()]), []);
        let snapshot = store.snapshot();
        assert_eq!(snapshot.workload_count() + snapshot.service_count(), 1);
        remove(&mut store, WEB_KEY);
        let snapshot = store.snapshot();
        assert_eq!((snapshot.workload_count(), snapshot.service_count()), (0, 0));
    }
}
