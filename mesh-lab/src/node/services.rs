//! Services for whoever is not in the mesh: address translation in the node's namespace, as a kube-proxy does
//! it.
//!
//! What the mesh takes over never gets here, since it is redirected inside the pod's namespace.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use mesh_api::{
    manifest::Kind,
    resource::{Endpoint, EndpointSlice, Object, Service, pod::Protocol},
};

use super::{Node, inside};
use crate::{cluster::Store, host::program};

/// Keeps the rules in step for as long as the lab runs.
pub async fn run(node: &Node) {
    let mut changes = node.store.changes();
    let mut loaded = String::new();
    loop {
        changes.borrow_and_update();
        let rules = rules(&table(&node.store));
        if rules != loaded {
            let script = rules.clone();
            match inside(node.paths.netns(), move || program::nft(&script)).await {
                Ok(()) => loaded = rules,
                Err(error) => {
                    tracing::error!(node = node.name, %error, "the rules for Services are out of date");
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Frontend {
    address: IpAddr,
    port: u16,
    protocol: &'static str,
    /// The same client always gets the same endpoint.
    sticky: bool,
}

/// Every Service port with an address, and its ready endpoints.
type Table = BTreeMap<Frontend, Vec<SocketAddr>>;

fn table(store: &Store) -> Table {
    let slices = store.list(Kind::EndpointSlice);
    let slices: Vec<&EndpointSlice> = slices
        .iter()
        .filter_map(
            |stored| if let Object::EndpointSlice(slice) = &stored.object { Some(&**slice) } else { None },
        )
        .collect();
    let mut table = Table::new();
    for stored in store.list(Kind::Service) {
        let Object::Service(service) = &stored.object else { continue };
        let sticky = stored.raw["spec"]["sessionAffinity"] == "ClientIP";
        let own = slices.iter().copied().filter(|slice| belongs(slice, service));
        let own: Vec<&EndpointSlice> = own.collect();
        for address in service.cluster_ips() {
            for port in &service.spec.ports {
                let Some(protocol) = protocol(port.protocol) else { continue };
                let frontend = Frontend { address, port: port.port, protocol, sticky };
                table.insert(frontend, endpoints(&own, &port.name, port.protocol, address));
            }
        }
    }
    table
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    slice.metadata.namespace == service.metadata.namespace
        && slice.service_name() == Some(service.metadata.name.as_str())
}

/// The ready ones; where there is none, those that are about to end and serve still.
fn endpoints(slices: &[&EndpointSlice], name: &str, protocol: Protocol, address: IpAddr) -> Vec<SocketAddr> {
    let ready = endpoints_that(slices, name, protocol, address, Endpoint::is_ready);
    if ready.is_empty() {
        return endpoints_that(slices, name, protocol, address, Endpoint::is_last_resort);
    }
    ready
}

fn endpoints_that(
    slices: &[&EndpointSlice],
    name: &str,
    protocol: Protocol,
    address: IpAddr,
    wanted: fn(&Endpoint) -> bool,
) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|port| port.name == name && port.protocol == protocol);
        for port in ports.filter_map(|port| port.port) {
            let fits = slice.endpoints.iter().filter(|endpoint| wanted(endpoint));
            let first = fits.filter_map(|endpoint| endpoint.ip_addresses().into_iter().next());
            let same_family = first.filter(|ip| ip.is_ipv4() == address.is_ipv4());
            found.extend(same_family.map(|ip| SocketAddr::new(ip, port)));
        }
    }
    found.sort();
    found
}

fn protocol(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Tcp => Some("tcp"),
        Protocol::Udp => Some("udp"),
        Protocol::Sctp => None,
    }
}

/// The rules as one script, which takes effect as a whole.
fn rules(table: &Table) -> String {
    let (mut translate, mut refuse, mut hairpin) = (String::new(), String::new(), String::new());
    for (frontend, endpoints) in table {
        let Frontend { address, port, protocol, .. } = frontend;
        let ip = family(*address);
        let matches = format!("{ip} daddr {address} {protocol} dport {port}");
        if endpoints.is_empty() {
            let answer = if *protocol == "tcp" { "reject with tcp reset" } else { "reject" };
            push(&mut refuse, format_args!("    {matches} {answer}"));
            continue;
        }
        push(&mut translate, format_args!("    {matches} {}", dnat(frontend, endpoints)));
        for endpoint in endpoints {
            // A pod that reaches itself through a Service would see its own address as the peer's, and answer
            // without the translation being undone.
            let pod = endpoint.ip();
            push(
                &mut hairpin,
                format_args!("    {ip} saddr {pod} {ip} daddr {pod} ct status dnat masquerade"),
            );
        }
    }
    format!(
        "add table inet services
delete table inet services
table inet services {{
  chain translate {{
{translate}  }}
  chain refuse {{
{refuse}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    jump translate
  }}
  chain output {{
    type nat hook output priority -100
    jump translate
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
{hairpin}  }}
  chain forward {{
    type filter hook forward priority filter
    jump refuse
  }}
  chain local {{
    type filter hook output priority filter
    jump refuse
  }}
}}
"
    )
}

fn dnat(frontend: &Frontend, endpoints: &[SocketAddr]) -> String {
    let ip = family(frontend.address);
    let count = endpoints.len();
    let choice = if frontend.sticky {
        format!("jhash {ip} saddr mod {count}")
    } else {
        format!("numgen random mod {count}")
    };
    let map: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(n, endpoint)| format!("{n} : {} . {}", endpoint.ip(), endpoint.port()))
        .collect();
    format!("dnat {ip} to {choice} map {{ {} }}", map.join(", "))
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(address: &str, sticky: bool) -> Frontend {
        Frontend { address: address.parse().unwrap(), port: 80, protocol: "tcp", sticky }
    }

    #[test]
    fn ready_endpoints_are_chosen_from_and_none_is_refused() {
        let table = Table::from([
            (
                frontend("10.96.0.10", false),
                vec!["10.244.1.2:8080".parse().unwrap(), "10.244.2.3:8081".parse().unwrap()],
            ),
            (frontend("fd00:96::a", true), vec!["[fd00:244:1::2]:8080".parse().unwrap()]),
            (frontend("10.96.0.11", false), vec![]),
        ]);
        let rules = rules(&table);
        for line in [
            "ip daddr 10.96.0.10 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.3 . 8081 }",
            "ip6 daddr fd00:96::a tcp dport 80 dnat ip6 to jhash ip6 saddr mod 1 map { 0 : fd00:244:1::2 . 8080 }",
            "ip daddr 10.96.0.11 tcp dport 80 reject with tcp reset",
            "ip saddr 10.244.2.3 ip daddr 10.244.2.3 ct status dnat masquerade",
        ] {
            assert!(rules.contains(line), "{line}\nnot in\n{rules}");
        }
    }
}
