//! Whose an address is that the mesh does not know: a Service's or a pod's after all, by a way that goes past
//! the mesh.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::explain::Explanation;
use crate::cluster::Cluster;
use crate::reason::reason;
use crate::source::Mesh;

/// Adds it to the notes. What can't be found out is told on standard error.
pub async fn add(explanation: &mut Explanation, mesh: &Mesh) {
    let Mesh::Cluster(cluster) = mesh else { return };
    for way in explanation.routes.iter_mut().filter(|way| way.is_outside) {
        match whose(cluster, way.address).await {
            Ok(Some(owner)) => {
                let note = way.note.take().unwrap_or_default();
                way.note = Some(format!("{note}; {owner}, which the mesh does not take"));
            }
            Ok(None) => {}
            Err(error) => remark!("warning: whose {} is is not known: {}", way.address, reason(&error)),
        }
    }
}

async fn whose(cluster: &Cluster, address: SocketAddr) -> Result<Option<String>> {
    let services: Api<Service> = Api::all(cluster.client.clone());
    let services = services.list(&ListParams::default()).await.context("can't list the services")?.items;
    if let Some(found) = services.iter().find_map(|service| of_service(service, address.ip())) {
        return Ok(Some(found));
    }
    let nodes = cluster.nodes().await?;
    let Some(node) = nodes.iter().find(|node| has_address(node, address.ip())).map(ResourceExt::name_any)
    else {
        return Ok(None);
    };
    if let Some(found) = services.iter().find_map(|service| of_node_port(service, &node, address.port())) {
        return Ok(Some(found));
    }
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = pods.list(&of_node).await.context("can't list the node's pods")?;
    Ok(pods.iter().find_map(|pod| of_pod(pod, &node, address)))
}

/// An address that a Service has besides those in the cluster's own ranges.
fn of_service(service: &Service, ip: IpAddr) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = ingress.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let is_it = |text: &String| text.parse::<IpAddr>().is_ok_and(|it| it.to_canonical() == ip);
    let what = if spec.external_ips.iter().flatten().any(is_it) {
        "an external address"
    } else if spec.load_balancer_ip.iter().chain(ingress.filter_map(|it| it.ip.as_ref())).any(is_it) {
        "the load balancer's address"
    } else {
        return None;
    };
    Some(format!("it is {what} of Service {}", title(service)))
}

fn of_node_port(service: &Service, node: &str, port: u16) -> Option<String> {
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    let found = ports.filter_map(|it| it.node_port).any(|it| it == i32::from(port));
    found.then(|| format!("it is a node port, on {node}, of Service {}", title(service)))
}

/// A port of the node that leads to a pod with a network of its own.
fn of_pod(pod: &Pod, node: &str, address: SocketAddr) -> Option<String> {
    let spec = pod.spec.as_ref().filter(|spec| !spec.host_network.unwrap_or_default())?;
    let everywhere = |ip: &String| ip.is_empty() || ip.parse::<IpAddr>().is_ok_and(|it| it.is_unspecified());
    let leads_there = |ip: &String| everywhere(ip) || ip.parse() == Ok(address.ip());
    let mut ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let found = ports.any(|port| {
        port.host_port == Some(i32::from(address.port())) && port.host_ip.as_ref().is_none_or(leads_there)
    });
    found.then(|| format!("it is a hostPort, on {node}, of Pod {}", title(pod)))
}

fn has_address(node: &Node, ip: IpAddr) -> bool {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    addresses.filter_map(|it| it.address.parse::<IpAddr>().ok()).any(|it| it.to_canonical() == ip)
}

fn title(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: &Value, ingress: &Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .unwrap()
    }

    #[test]
    fn a_services_further_addresses_are_known() {
        let of =
            |spec: &Value, ingress: &Value| of_service(&service(spec, ingress), "192.0.2.1".parse().unwrap());
        let external = of(&json!({"externalIPs": ["192.0.2.1"]}), &json!([]));
        assert_eq!(external.as_deref(), Some("it is an external address of Service shop/web"));
        let balancer = Some("it is the load balancer's address of Service shop/web");
        assert_eq!(of(&json!({"loadBalancerIP": "192.0.2.1"}), &json!([])).as_deref(), balancer);
        let ingress = json!([{"hostname": "lb.example"}, {"ip": "192.0.2.1"}]);
        assert_eq!(of(&json!({}), &ingress).as_deref(), balancer);
        assert_eq!(of(&json!({"clusterIP": "192.0.2.1", "externalIPs": ["192.0.2.2"]}), &json!([])), None);
    }

    #[test]
    fn a_nodes_port_is_a_services_or_a_pods() {
        let node = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.7"}]}});
        let node: Node = serde_json::from_value(node).unwrap();
        assert!(has_address(&node, "10.0.0.7".parse().unwrap()));
        assert!(!has_address(&node, "10.0.0.8".parse().unwrap()));
        let web = service(&json!({"ports": [{"port": 80, "nodePort": 30080}]}), &json!([]));
        let found = of_node_port(&web, "n", 30080);
        assert_eq!(found.as_deref(), Some("it is a node port, on n, of Service shop/web"));
        assert_eq!(of_node_port(&web, "n", 80), None);
    }

    #[test]
    fn a_pods_host_port_counts_where_it_listens() {
        let of = |more: &Value, ip: &str| {
            let mut port = json!({"containerPort": 80, "hostPort": 8080});
            port["hostIP"] = more["hostIP"].clone();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": "shop"},
                "spec": {"hostNetwork": more["hostNetwork"], "containers": [{"name": "c", "ports": [port]}]},
            }))
            .unwrap();
            of_pod(&pod, "n", format!("{ip}:8080").parse().unwrap())
        };
        let found = Some("it is a hostPort, on n, of Pod shop/web-1");
        assert_eq!(of(&json!({}), "10.0.0.7").as_deref(), found);
        assert_eq!(of(&json!({"hostIP": "0.0.0.0"}), "10.0.0.7").as_deref(), found);
        assert_eq!(of(&json!({"hostIP": "10.0.0.7"}), "10.0.0.7").as_deref(), found);
        assert_eq!(of(&json!({"hostIP": "127.0.0.1"}), "10.0.0.7"), None);
        assert_eq!(of(&json!({"hostNetwork": true}), "10.0.0.7"), None);
    }
}
