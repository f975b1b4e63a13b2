use super::*;

const NAMESPACE: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {nodemesh.io/dataplane: enabled}}\n";

fn service(spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// Service port and target port of `web` on a pod.
fn ports(workload: &Workload) -> Vec<(u32, u32)> {
    let list = workload.services.get("shop/web.shop.svc.cluster.local");
    list.map(|list| list.ports.iter().map(|port| (port.service_port, port.target_port)).collect())
        .unwrap_or_default()
}

#[test]
fn a_pod_becomes_a_workload() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: \
                {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}\n";
    let compiled = compiled(&(NAMESPACE.to_owned() + node + &pod("shop", "web", "10.244.1.5")));
    let workload = compiled.pod("shop", "web-1");
    assert_eq!(workload.addresses, [vec![10, 244, 1, 5]]);
    assert_eq!(workload.service_account, "web");
    assert_eq!(workload.node, "node1");
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(workload.status(), WorkloadStatus::Healthy);
    assert_eq!(workload.trust_domain, "", "Istio leaves its default away");
    assert_eq!(workload.cluster_id, "Kubernetes");
    let locality = workload.locality.as_ref().expect("the node is known");
    assert_eq!((locality.region.as_str(), locality.zone.as_str()), ("r1", "z1"));
}

#[test]
fn another_trust_domain_is_said() {
    let mesh = MeshConfig { trust_domain: "example.org".to_owned(), ..MeshConfig::default() };
    let compiled = compiled_for(&pod("shop", "web", "10.0.0.1"), &mesh);
    assert_eq!(compiled.pod("shop", "web-1").trust_domain, "example.org");
}

#[test]
fn only_enrolled_pods_are_reached_by_hbone() {
    let compiled = compiled(&(NAMESPACE.to_owned() + &pod("other", "web", "10.0.0.1")));
    assert_eq!(compiled.pod("other", "web-1").tunnel_protocol(), TunnelProtocol::None);
}

#[test]
fn pods_of_the_host_network_are_marked_and_never_enrolled() {
    let text = NAMESPACE.to_owned()
        + &pod("shop", "web", "172.30.0.11").replace("nodeName", "hostNetwork: true, nodeName");
    let compiled = compiled(&text);
    let workload = compiled.pod("shop", "web-1");
    assert_eq!(workload.network_mode(), NetworkMode::HostNetwork);
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::None);
}

#[test]
fn readiness_is_the_ready_condition_and_no_deletion() {
    let ready = pod("shop", "web", "10.0.0.1");
    let status = |text: &str| compiled(text).pod("shop", "web-1").status();
    assert_eq!(status(&ready), WorkloadStatus::Healthy);
    assert_eq!(status(&ready.replace("'True'", "'False'")), WorkloadStatus::Unhealthy);
    let ending =
        ready.replace("namespace: shop", "namespace: shop, deletionTimestamp: '2026-11-23T12:00:00Z'");
    assert_eq!(status(&ending), WorkloadStatus::Unhealthy);
}

#[test]
fn pods_that_ended_or_have_no_address_are_left_out() {
    let ready = pod("shop", "web", "10.0.0.1");
    for text in [
        ready.replace("Running", "Succeeded"),
        ready.replace("Running", "Failed"),
        ready.replace("10.0.0.1", "''"),
    ] {
        assert!(compiled(&text).addresses.is_empty(), "{text}");
    }
}

#[test]
fn both_addresses_of_a_pod_are_known() {
    let text =
        pod("shop", "web", "10.0.0.1").replace("phase:", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], phase:");
    let addresses = &compiled(&text).pod("shop", "web-1").addresses.clone();
    assert_eq!(addresses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16]);
}

#[test]
fn names_come_from_labels_then_from_the_owner() {
    let owned = |labels: &str, owner: &str| {
        let metadata = format!("labels: {{{labels}}}, ownerReferences: [{{{owner}, controller: true}}]");
        let text = pod("shop", "web", "10.0.0.1").replace("labels: {app: web}", &metadata);
        let compiled = compiled(&text);
        let workload = compiled.pod("shop", "web-1");
        [&workload.workload_name, &workload.canonical_name, &workload.canonical_revision].map(String::clone)
    };
    let set = "kind: ReplicaSet, name: front-5d4f";
    assert_eq!(owned("pod-template-hash: 5d4f", set), ["front", "front", "latest"]);
    assert_eq!(owned("x: y", set), ["front-5d4f", "front-5d4f", "latest"]);
    assert_eq!(owned("x: y", "kind: Job, name: report-29384756"), ["report", "report", "latest"]);
    assert_eq!(owned("x: y", "kind: StatefulSet, name: db"), ["db", "db", "latest"]);
    assert_eq!(owned("app: a, version: v2", set)[1..], ["a", "v2"]);
    assert_eq!(
        owned("app: a, app.kubernetes.io/name: b, app.kubernetes.io/version: v3", set)[1..],
        ["b", "v3"]
    );
    let canonical = "app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: r";
    assert_eq!(owned(canonical, set)[1..], ["c", "r"]);
}

#[test]
fn a_service_has_its_virtual_addresses_and_ports() {
    let spec = "clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7'], ipFamilies: [IPv4, IPv6], \
                ports: [{name: http, port: 80, targetPort: 8080}, {name: named, port: 81, targetPort: web}, \
                {name: dns, port: 53, protocol: UDP}]";
    let compiled = compiled(&service(spec));
    let service = compiled.service("shop/web.shop.svc.cluster.local");
    assert_eq!(service.addresses.len(), 2);
    assert_eq!(service.ip_families(), IpFamilies::Dual);
    assert!(service.canonical);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(80, 8080), (81, 0)], "a named target is each pod's own; UDP is not ours");
}

#[test]
fn headless_services_have_no_address_and_external_names_are_not_sent() {
    let compiled = compiled(&service("clusterIP: None, ports: [{port: 80}]"));
    assert!(compiled.service("shop/web.shop.svc.cluster.local").addresses.is_empty());
    let external = super::compiled(&service("type: ExternalName, externalName: example.org"));
    assert!(external.addresses.is_empty());
}

#[test]
fn a_selector_finds_pods_of_its_namespace_and_their_named_ports() {
    let spec = "selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 81, targetPort: http}, \
                {name: c, port: 82, targetPort: none}]";
    let named = pod("shop", "web", "10.0.0.1")
        .replace("name: c}", "name: c, ports: [{name: http, containerPort: 8080}]}");
    let compiled = compiled(
        &(service(spec) + &named + &pod("other", "web", "10.0.0.2") + &pod("shop", "db", "10.0.0.3")),
    );
    assert_eq!(ports(compiled.pod("shop", "web-1")), [(80, 80), (81, 8080)]);
    assert_eq!(ports(compiled.pod("other", "web-1")), []);
    assert_eq!(ports(compiled.pod("shop", "db-1")), []);
}

fn slice(endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-x, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         ports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
}

const SELECTING: &str = "selector: {app: web}, ports: [{name: http, port: 80}]";

#[test]
fn slices_decide_where_there_are_any() {
    let both = pod("shop", "web", "10.0.0.1") + &pod("shop", "db", "10.0.0.2");
    let only_db = slice("{addresses: [10.0.0.2], targetRef: {kind: Pod, name: db-1}}");
    let compiled = compiled(&(service(SELECTING) + &both + &only_db));
    assert_eq!(ports(compiled.pod("shop", "db-1")), [(80, 8080)]);
    assert_eq!(ports(compiled.pod("shop", "web-1")), []);
}

#[test]
fn a_slice_can_hold_back_a_pod_that_is_ready() {
    let held =
        slice("{addresses: [10.0.0.1], conditions: {ready: false}, targetRef: {kind: Pod, name: web-1}}");
    let text = |spec: &str| service(spec) + &pod("shop", "web", "10.0.0.1") + &held;
    assert_eq!(ports(compiled(&text(SELECTING)).pod("shop", "web-1")), []);
    let all = format!("publishNotReadyAddresses: true, {SELECTING}");
    assert_eq!(ports(compiled(&text(&all)).pod("shop", "web-1")), [(80, 8080)]);
}

/// As the endpoint slice controller writes of a pod that was told to end.
const ENDING: &str = "conditions: {ready: false, serving: true, terminating: true}";

#[test]
fn a_pod_that_ends_stays_a_member_and_is_told_as_such() {
    let ending =
        slice(&format!("{{addresses: [10.0.0.1], {ENDING}, targetRef: {{kind: Pod, name: web-1}}}}"));
    let web = pod("shop", "web", "10.0.0.1").replacen(
        "metadata: {",
        "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ",
        1,
    );
    for slices in [&*ending, ""] {
        let compiled = compiled(&(service(SELECTING) + &web + slices));
        let workload = compiled.pod("shop", "web-1");
        assert_eq!(ports(workload).len(), 1);
        assert_eq!(workload.status(), WorkloadStatus::Unhealthy);
        let names: Vec<_> = workload.extensions.iter().map(|extension| &*extension.name).collect();
        assert_eq!(names, [ext::TERMINATING]);
    }
}

#[test]
fn an_endpoint_that_is_no_pod_becomes_a_workload() {
    let text = service("ports: [{name: http, port: 80}]")
        + &slice(&format!(
            "{{addresses: [192.0.2.1]}}, {{addresses: [192.0.2.2], conditions: {{ready: false}}}}, \
             {{addresses: [192.0.2.3], {ENDING}}}"
        ));
    let compiled = compiled(&text);
    let workload = |address: &str| {
        compiled.workload(&format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-x/{address}"))
    };
    assert_eq!(ports(workload("192.0.2.1")), [(80, 8080)]);
    assert_eq!(workload("192.0.2.1").status(), WorkloadStatus::Healthy);
    assert_eq!(workload("192.0.2.2").status(), WorkloadStatus::Unhealthy);
    assert_eq!(workload("192.0.2.2").extensions, []);
    assert_eq!(workload("192.0.2.3").extensions[0].name, ext::TERMINATING);
    let Workload { node, service_account, .. } = workload("192.0.2.1");
    assert_eq!((node.as_str(), service_account.as_str()), ("", ""));
}

#[test]
fn an_address_written_by_hand_that_is_a_pods_means_the_pod() {
    let compiled = compiled(
        &(service("ports: [{name: http, port: 80}]")
            + &pod("shop", "web", "10.0.0.1")
            + &slice("{addresses: [10.0.0.1]}")),
    );
    assert_eq!(ports(compiled.pod("shop", "web-1")), [(80, 8080)]);
    assert_eq!(compiled.addresses.len(), 2);
}

#[test]
fn what_a_service_says_of_its_clients() {
    let of = |spec: &str| compiled(&service(&format!("ports: [{{port: 80}}]{spec}")));
    let affinity = |spec: &str| {
        let compiled = of(spec);
        let extensions = &compiled.service("shop/web.shop.svc.cluster.local").extensions;
        let found = extensions.iter().find(|extension| extension.name == ext::SESSION_AFFINITY)?;
        let config = found.config.as_ref().expect("a timeout");
        let decoded: ext::SessionAffinity = Message::decode(&*config.value).expect("a timeout");
        Some(decoded.timeout.map(|timeout| timeout.seconds))
    };
    assert_eq!(affinity(""), None);
    assert_eq!(affinity(", sessionAffinity: None"), None);
    assert_eq!(affinity(", sessionAffinity: ClientIP"), Some(None));
    let config = ", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    assert_eq!(affinity(config), Some(Some(60)));
}

#[test]
fn addresses_past_the_mesh_are_told_where_pods_of_the_mesh_are_behind_them() {
    let told = |label: &str, service: &str, pod: &str| {
        let text = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{label}}}}}\n{}{}",
            format_args!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n{service}\n"
            ),
            format_args!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-1, namespace: shop, labels: {{app: web}}}}\n{pod}\n\
                 status: {{podIP: 10.0.0.1, phase: Running}}\n"
            ),
        );
        compiled(&text).conditions.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let enrolled = "nodemesh.io/dataplane: enabled";
    let pod = "spec: {containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}";
    let service = |more: &str| format!("spec: {{selector: {{app: web}}, ports: [{{port: 80}}]{more}");
    let words = |field: &str, place: &str| {
        format!(
            "{field}: ignored: pods of the mesh that connect to {place} go past the mesh, in plaintext, and are refused \
             where the server is STRICT"
        )
    };
    let of_service = |field: &str, place: &str| format!("Service shop/web: {}", words(field, place));
    let balanced = service(", type: LoadBalancer, loadBalancerIP: 192.0.2.9, externalIPs: [192.0.2.1]}")
        + "\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {hostname: lb.example}]}}";
    assert_eq!(
        told(enrolled, &balanced, pod),
        [
            of_service("spec.externalIPs", "192.0.2.1"),
            of_service("spec.loadBalancerIP", "192.0.2.9"),
            of_service("status.loadBalancer.ingress", "192.0.2.2, lb.example"),
        ]
    );
    assert_eq!(told("", &balanced, pod), [""; 0], "its pods are not in the mesh");
    let others = balanced.replace("app: web", "app: other");
    assert_eq!(told(enrolled, &others, pod), [""; 0], "it has no pod");
    assert_eq!(told(enrolled, &service("}"), pod), [""; 0]);

    let ports = pod.replace("80}", "80, hostPort: 8080}, {containerPort: 53, hostPort: 53, protocol: UDP}");
    let of_pod =
        format!("Pod shop/web-1: {}", words("spec.containers.ports.hostPort", "port 8080 of its node"));
    assert_eq!(told(enrolled, &service("}"), &ports), [of_pod]);
    assert_eq!(told("", &service("}"), &ports), [""; 0], "it is not in the mesh");
    let host = ports.replace("spec: {", "spec: {hostNetwork: true, ");
    assert_eq!(told(enrolled, &service("}"), &host), [""; 0], "the node's ports are its own");
}

#[test]
fn what_a_service_says_of_its_endpoints() {
    let balancing = |spec: &str| {
        let compiled = compiled(&service(&format!("ports: [{{port: 80}}]{spec}")));
        compiled.service("shop/web.shop.svc.cluster.local").load_balancing.clone()
    };
    assert_eq!(balancing(""), None);
    let local = balancing(", internalTrafficPolicy: Local").expect("says something");
    assert_eq!((local.mode(), local.routing_preference.as_slice()), (Mode::Strict, &[4][..]));
    for zone in ["PreferClose", "PreferSameZone"] {
        let near = balancing(&format!(", trafficDistribution: {zone}")).expect("says something");
        assert_eq!((near.mode(), near.routing_preference.as_slice()), (Mode::Failover, &[6, 1, 2][..]));
    }
    let node = balancing(", trafficDistribution: PreferSameNode").expect("says something");
    assert_eq!(node.routing_preference, [6, 1, 2, 3, 4]);
    let all = balancing(", publishNotReadyAddresses: true").expect("says something");
    assert_eq!((all.mode(), all.health_policy()), (Mode::UnspecifiedMode, HealthPolicy::AllowAll));
}
