//! Services: a name and addresses for a set of pods.

use std::{collections::HashSet, net::IpAddr};

use serde::Deserialize;

use super::{
    Labels, Metadata, Readable, lenient,
    pod::{PortRef, Protocol},
};
use crate::document::{cursor::Findings, yaml_tree};

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// What is.
    pub status: ServiceStatus,
}

/// `status` of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What its load balancer has.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Where it is reached.
    pub ingress: Vec<Ingress>,
}

/// One address or name of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// Address.
    pub ip: String,
    /// Name, where there is no address.
    pub hostname: String,
}

/// `spec` of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`; empty means `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// First address, `None` for a headless service, empty until one is allocated.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; none means that its endpoints are written by hand.
    pub selector: Labels,
    /// Pods count whether ready or not.
    pub publish_not_ready_addresses: bool,
    /// Which endpoints in-cluster clients may use.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// Which endpoints clients should prefer.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Whether a client's connections go to the same endpoint.
    pub session_affinity: SessionAffinity,
    /// For how long.
    pub session_affinity_config: SessionAffinityConfig,
    /// Addresses outside of the cluster's own ranges that lead to it.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Address that its load balancer is to have.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    /// Address families, in order of preference.
    pub ip_families: Vec<IpFamily>,
    /// Whether addresses of both families are wanted.
    pub ip_family_policy: IpFamilyPolicy,
}

/// One port of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; needed if there are several.
    #[serde(default)]
    pub name: String,
    /// Port of the service.
    #[serde(deserialize_with = "lenient::port")]
    pub port: u16,
    /// Port of the pods; the same if absent.
    pub target_port: Option<PortRef>,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// What is spoken.
    #[serde(default)]
    pub app_protocol: String,
}

/// `sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SessionAffinity {
    /// Any endpoint for each connection.
    #[default]
    None,
    /// One endpoint for each client.
    ClientIP,
}

/// `sessionAffinityConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// What goes with `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}

/// `clientIP` of `sessionAffinityConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Seconds without a connection until the client may get another endpoint; absent: 10,800.
    pub timeout_seconds: Option<u32>,
}

/// `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum InternalTrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints on the client's node only.
    Local,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TrafficDistribution {
    /// The old name of `PreferSameZone`.
    PreferClose,
    /// Endpoints of the client's zone first.
    PreferSameZone,
    /// Endpoints of the client's node first.
    PreferSameNode,
}

/// One of `ipFamilies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// `ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum IpFamilyPolicy {
    /// One family.
    #[default]
    SingleStack,
    /// Both where the cluster has both.
    PreferDualStack,
    /// Both.
    RequireDualStack,
}

impl Readable for Service {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let spec: ServiceSpec = lenient::field(root, "spec", findings)?;
        let status = lenient::field(root, "status", findings)?;
        let service = Self { metadata, spec, status };
        service.check(root, findings);
        Some(service)
    }
}

impl Service {
    /// Has no address of its own: its name stands for its pods' addresses.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Stands for a name elsewhere, and is nothing to the mesh.
    pub fn is_external_name(&self) -> bool {
        self.spec.kind == "ExternalName"
    }

    /// Its virtual addresses, without repetition.
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let texts = std::iter::once(&self.spec.cluster_ip).chain(&self.spec.cluster_ips);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Addresses and names outside of the cluster's own ranges that lead to it, each field with its own.
    pub fn outside(&self) -> Vec<(&'static str, Vec<&str>)> {
        let ServiceSpec { external_ips, load_balancer_ip, .. } = &self.spec;
        let ingress = &self.status.load_balancer.ingress;
        let named = ingress.iter().flat_map(|it| [it.ip.as_str(), it.hostname.as_str()]);
        let named: Vec<_> = named.filter(|it| !it.is_empty()).collect();
        let wish = Some(load_balancer_ip.as_str()).filter(|it| !it.is_empty() && !named.contains(it));
        let external = external_ips.iter().map(String::as_str).collect();
        let fields = [
            ("spec.externalIPs", external),
            ("spec.loadBalancerIP", wish.into_iter().collect()),
            ("status.loadBalancer.ingress", named),
        ];
        fields.into_iter().filter(|(_, addresses): &(_, Vec<_>)| !addresses.is_empty()).collect()
    }

    fn check(&self, root: &yaml_tree::YamlNode, findings: &Findings) {
        let report = |path: &[&str], problem: &str, fix: &str| {
            lenient::report(root, path, problem, fix, findings);
        };
        let ports = &self.spec.ports;
        if ports.is_empty() && !self.is_headless() && !self.is_external_name() {
            report(
                &["spec", "ports"],
                "a Service needs at least one port",
                "add `ports`, such as `- port: 80`",
            );
        }
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        for (index, port) in ports.iter().enumerate() {
            let index = index.to_string();
            if port.name.is_empty() && ports.len() > 1 {
                let fix = "add `name` to each port, such as `http`";
                report(&["spec", "ports", &index], "a port needs a name if there are several", fix);
            } else if !names.insert(&port.name) {
                report(
                    &["spec", "ports", &index, "name"],
                    "another port has this name",
                    "choose another name",
                );
            }
            if !numbers.insert((port.port, port.protocol)) {
                report(
                    &["spec", "ports", &index, "port"],
                    "another port has this number",
                    "remove one of them",
                );
            }
        }
        for (key, address) in std::iter::once(("clusterIP", &self.spec.cluster_ip))
            .chain(self.spec.cluster_ips.iter().map(|address| ("clusterIPs", address)))
        {
            if !matches!(address.as_str(), "" | "None") && address.parse::<IpAddr>().is_err() {
                let problem = format!("{address:?} is not an IP address");
                report(&["spec", key], &problem, "write an IPv4 or IPv6 address, or `None`, or leave it out");
            }
        }
    }
}
