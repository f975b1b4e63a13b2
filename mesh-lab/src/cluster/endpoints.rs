//! Endpoint slices, derived from Services' selectors and pods' readiness.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mesh_api::{
    manifest::Kind,
    resource::{LabelSelector, Object, Pod, Service, ServicePort, pod::PortRef, pod::Protocol},
};
use serde_json::{Value, json};

use super::{Store, complete, key, store::StoreError};

/// Marks the slices that are derived, and so may be changed and removed here.
const MANAGED: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "mesh-lab");

/// Makes the derived slices what they should be.
pub fn reconcile(store: &Store) -> Result<(), StoreError> {
    let (services, pods) = (store.list(Kind::Service), store.list(Kind::Pod));
    let pods: Vec<&Pod> = pods.iter().filter_map(|stored| stored.pod()).collect();
    let mut wanted: BTreeMap<(String, String), Value> = BTreeMap::new();
    for stored in &services {
        if let Object::Service(service) = &stored.object {
            for slice in slices(service, &pods) {
                let name = slice["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                wanted.insert((service.metadata.namespace.clone(), name), slice);
            }
        }
    }
    for old in store.list(Kind::EndpointSlice) {
        let metadata = old.object.metadata();
        if metadata.labels.get(MANAGED.0).is_none_or(|manager| manager != MANAGED.1) {
            continue;
        }
        match wanted.remove(&(metadata.namespace.clone(), metadata.name.clone())) {
            None => store.remove(&old.object.key(), None)?,
            Some(slice) => store.edit(&old.object.key(), |raw| {
                raw["endpoints"] = slice["endpoints"].clone();
                raw["ports"] = slice["ports"].clone();
            })?,
        }
    }
    for ((namespace, name), mut slice) in wanted {
        complete::metadata(&mut slice, &key(Kind::EndpointSlice, &namespace, &name), None);
        store.put(slice, None)?;
    }
    Ok(())
}

/// The slices of one Service: one per family and, where pods name their ports differently, per set of port
/// numbers.
fn slices(service: &Service, pods: &[&Pod]) -> Vec<Value> {
    if service.spec.selector.is_empty() || service.is_external_name() {
        return Vec::new();
    }
    let selector = LabelSelector { match_labels: service.spec.selector.clone() };
    let chosen = pods.iter().filter(|pod| {
        pod.metadata.namespace == service.metadata.namespace
            && !pod.is_terminal()
            && selector.matches(&pod.metadata.labels)
    });
    let mut groups: BTreeMap<Vec<Option<u16>>, Vec<&Pod>> = BTreeMap::new();
    for pod in chosen {
        let ports = service.spec.ports.iter().map(|port| target_port(port, pod)).collect();
        groups.entry(ports).or_default().push(pod);
    }
    if groups.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    let families = [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)];
    let wanted: BTreeSet<String> =
        service.spec.ip_families.iter().map(|family| format!("{family:?}")).collect();
    let families = families.into_iter().filter(|(family, _)| wanted.is_empty() || wanted.contains(*family));
    families
        .flat_map(|(family, fits)| {
            groups
                .iter()
                .enumerate()
                .map(move |(n, (ports, pods))| slice(service, family, fits, n, ports, pods))
        })
        .collect()
}

fn slice(
    service: &Service,
    family: &str,
    fits: fn(&IpAddr) -> bool,
    group: usize,
    ports: &[Option<u16>],
    pods: &[&Pod],
) -> Value {
    let name = &service.metadata.name;
    let suffix = if group == 0 { String::new() } else { format!("-{group}") };
    let endpoints: Vec<Value> = pods.iter().filter_map(|pod| endpoint(service, pod, fits)).collect();
    let ports: Vec<Value> = service
        .spec
        .ports
        .iter()
        .zip(ports)
        .filter_map(|(port, number)| {
            Some(json!({"name": port.name, "port": (*number)?, "protocol": protocol_name(port.protocol)}))
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-{}{suffix}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": name, MANAGED.0: MANAGED.1},
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

fn endpoint(service: &Service, pod: &Pod, fits: fn(&IpAddr) -> bool) -> Option<Value> {
    let address = pod.addresses().into_iter().find(fits)?;
    let serving = pod.is_ready() || service.spec.publish_not_ready_addresses;
    Some(json!({
        "addresses": [address],
        "conditions": {
            "ready": serving && !pod.is_terminating(), "serving": serving, "terminating": pod.is_terminating(),
        },
        "nodeName": pod.spec.node_name,
        "targetRef": {
            "kind": "Pod", "namespace": pod.metadata.namespace, "name": pod.metadata.name, "uid": pod.metadata.uid,
        },
    }))
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(PortRef::Number(number)) => Some(*number),
        Some(PortRef::Name(name)) => {
            let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
            let named = ports.clone().find(|p| p.name == *name && p.protocol == port.protocol);
            named.map(|p| p.container_port)
        }
    }
}

/// The protocol as manifests write it.
fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::manifest;

    use super::*;

    fn object(text: &str) -> Object {
        let mut parsed = manifest::parse("test", text);
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        parsed.objects.remove(0).value
    }

    fn service(spec: &str) -> Service {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {spec}}}"
        );
        let Object::Service(service) = object(&text) else { panic!("not a service") };
        *service
    }

    fn pod(name: &str, app: &str, port: u16, ready: &str) -> Pod {
        let host = name.len();
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
              spec: {{nodeName: node1, containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}, \
              status: {{podIP: 10.244.1.{host}, podIPs: [{{ip: 10.244.1.{host}}}, {{ip: 'fd00:244:1::{host}'}}], \
                conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
        );
        let Object::Pod(pod) = object(&text) else { panic!("not a pod") };
        *pod
    }

    /// Name, port and ready addresses of each slice.
    fn shape(slices: &[Value]) -> Vec<(String, Option<u64>, Vec<String>)> {
        let ready = |slice: &Value| {
            let all =
                slice["endpoints"].as_array().unwrap().iter().filter(|e| e["conditions"]["ready"] == true);
            all.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
        };
        let name = |slice: &Value| slice["metadata"]["name"].as_str().unwrap().to_owned();
        slices.iter().map(|slice| (name(slice), slice["ports"][0]["port"].as_u64(), ready(slice))).collect()
    }

    #[test]
    fn slices_follow_selector_readiness_and_named_ports() {
        let web = service("{selector: {app: web}, ports: [{port: 80, targetPort: http}]}");
        let pods = [
            pod("a", "web", 8080, "True"),
            pod("bb", "web", 8080, "False"),
            pod("ccc", "web", 9090, "True"),
            pod("dddd", "other", 8080, "True"),
        ];
        let pods: Vec<&Pod> = pods.iter().collect();
        let expect = |name: &str, port, ready: &[&str]| {
            (name.to_owned(), Some(port), ready.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            shape(&slices(&web, &pods)),
            [
                expect("web-ipv4", 8080, &["10.244.1.1"]),
                expect("web-ipv4-1", 9090, &["10.244.1.3"]),
                expect("web-ipv6", 8080, &["fd00:244:1::1"]),
                expect("web-ipv6-1", 9090, &["fd00:244:1::3"]),
            ]
        );
    }

    #[test]
    fn unready_pods_count_where_the_service_says_so_and_ending_ones_never() {
        let web = service(
            "{publishNotReadyAddresses: true, selector: {app: web}, ipFamilies: [IPv4], ports: [{port: 80}]}",
        );
        let mut ending = pod("bb", "web", 8080, "True");
        ending.metadata.deletion_timestamp = Some(std::time::SystemTime::now());
        let unready = pod("a", "web", 8080, "False");
        let slices = slices(&web, &[&unready, &ending]);
        assert_eq!(shape(&slices), [("web-ipv4".to_owned(), Some(80), vec!["10.244.1.1".to_owned()])]);
        assert_eq!(slices[0]["endpoints"][1]["conditions"]["terminating"], true);
    }

    #[test]
    fn a_service_without_a_selector_is_left_to_its_author() {
        assert!(slices(&service("{ports: [{port: 80}]}"), &[]).is_empty());
    }
}
