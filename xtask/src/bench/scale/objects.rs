//! A mesh that is made up: services of Deployments in a hundred namespaces, on nodes of a hundred pods.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

const NAMESPACES: usize = 100;
const PODS_OF_A_NODE: usize = 100;

/// The mesh, one file for each service.
pub struct Mesh {
    /// By service: numbers of its pods, each of which is used once.
    pods: Vec<Vec<usize>>,
    next: usize,
    nodes: usize,
}

/// Addresses of a pod.
pub type Pair = (Ipv4Addr, Ipv6Addr);

impl Mesh {
    /// So many services with so many pods each.
    pub fn new(services: usize, pods: usize) -> Self {
        let of = |service: usize| (service * pods..(service + 1) * pods).collect();
        let workloads = services * pods;
        Self {
            pods: (0..services).map(of).collect(),
            next: workloads,
            nodes: workloads.div_ceil(PODS_OF_A_NODE),
        }
    }

    /// Number of services.
    pub fn services(&self) -> usize {
        self.pods.len()
    }

    /// Number of workloads.
    pub fn workloads(&self) -> usize {
        self.pods.iter().map(Vec::len).sum()
    }

    /// Number of addresses: each has one of either family.
    pub fn addresses(&self) -> usize {
        2 * (self.workloads() + self.services())
    }

    /// An address of the last pod.
    pub fn last(&self) -> Ipv4Addr {
        addresses(self.next - 1).0
    }

    /// Writes everything to a new directory.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let root = directory.join("scale");
        if root.exists() {
            fs::remove_dir_all(&root).context("can't clear the last mesh away")?;
        }
        fs::create_dir_all(&root)?;
        put(&root.join("nodes.json"), &(0..self.nodes).map(node).collect::<Vec<_>>())?;
        for number in 0..NAMESPACES {
            fs::create_dir(root.join(namespace_name(number)))?;
            let file = root.join(namespace_name(number)).join("namespace.json");
            put(&file, &[namespace(number), policy(number)])?;
        }
        for service in 0..self.services() {
            self.write_service(&root, service)?;
        }
        Ok(root)
    }

    /// A service rolls: one of its pods gives way to a new one, whose addresses nobody had before.
    pub fn replace_pod(&mut self, root: &Path, service: usize, place: usize) -> Result<Pair> {
        let new = self.next;
        self.next += 1;
        let pods = &mut self.pods[service];
        let index = place % pods.len();
        pods[index] = new;
        self.write_service(root, service)?;
        Ok(addresses(new))
    }

    fn write_service(&self, root: &Path, service: usize) -> Result<()> {
        let pods = self.pods[service].iter().map(|number| pod(service, *number, number % self.nodes));
        let objects: Vec<_> = std::iter::once(service_object(service)).chain(pods).collect();
        put(&root.join(namespace_of(service)).join(format!("{}.json", name_of(service))), &objects)
    }
}

/// Renamed into place, as careful writers do.
fn put(file: &Path, objects: &[Value]) -> Result<()> {
    let text = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}"));
    fs::write(&temporary, text).with_context(|| format!("can't write {}", temporary.display()))?;
    fs::rename(&temporary, file).with_context(|| format!("can't write {}", file.display()))
}

fn namespace_name(number: usize) -> String {
    format!("team-{number:02}")
}

fn namespace_of(service: usize) -> String {
    namespace_name(service % NAMESPACES)
}

fn name_of(service: usize) -> String {
    format!("backend-{service}")
}

fn node_name(number: usize) -> String {
    format!("worker-{number}.example.internal")
}

fn addresses(pod: usize) -> Pair {
    // 10.64.0.0/10 and a prefix of our own, far from what the lab gives its pods.
    let number = u32::try_from(pod).unwrap_or(u32::MAX);
    (Ipv4Addr::from(0x0a40_0000 + number), Ipv6Addr::from(0xfd99_u128 << 112 | u128::from(number)))
}

fn namespace(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace_name(number), "labels": {"nodemesh.io/dataplane": "enabled"}},
    })
}

fn policy(number: usize) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "callers", "namespace": namespace_name(number)},
        "spec": {
            "selector": {"matchLabels": {"tier": "guarded"}}, "action": "ALLOW",
            "rules": [{"from": [{"source": {"namespaces": [namespace_name((number + 1) % NAMESPACES)]}}]}],
        },
    })
}

fn node(number: usize) -> Value {
    let zone = format!("region-1{}", ["a", "b", "c"][number % 3]);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(number), "labels": {
            "topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": zone,
        }},
    })
}

fn service_object(service: usize) -> Value {
    let number = u32::try_from(service).unwrap_or(u32::MAX);
    let v4 = Ipv4Addr::from(0x0a20_0000 + number);
    let v6 = Ipv6Addr::from(0xfd98_u128 << 112 | u128::from(number));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name_of(service), "namespace": namespace_of(service)},
        "spec": {
            "selector": {"app": name_of(service)}, "clusterIP": v4, "clusterIPs": [v4, v6],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "grpc", "port": 9090}],
        },
    })
}

fn pod(service: usize, number: usize, node: usize) -> Value {
    let (v4, v6) = addresses(number);
    let app = name_of(service);
    let hash = format!("{:010x}", service * 7919);
    let tier = if service.is_multiple_of(10) { "guarded" } else { "open" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{app}-{hash}-{number:05x}"), "namespace": namespace_of(service),
            "labels": {"app": app, "tier": tier, "pod-template-hash": hash},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "controller": true,
                "uid": format!("00000000-0000-0000-0000-{service:012}"),
            }],
        },
        "spec": {
            "nodeName": node_name(node), "serviceAccountName": app,
            "containers": [{
                "name": "main", "image": format!("registry.example/{app}:1.0"),
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 9090}],
            }],
        },
        "status": {
            "phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
