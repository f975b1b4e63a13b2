//! `ServiceEntry`: hosts that no Service stands for (Istio's `networking.istio.io`). Nothing is done with it
//! yet; what is wrong in one is said all the same.

use std::collections::{BTreeMap, HashSet};

use ipnet::IpNet;

use super::{Labels, Metadata, Readable, export_to, host, lenient, network};
use crate::document::{
    cursor::{Cursor, Fields, Findings, quoted},
    yaml_tree,
};

/// A service entry.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Host names in lower case, without a dot at the end, of which each may begin with a wildcard (`*.x`,
    /// `*-x`, `*x`); at least one.
    pub hosts: Vec<String>,
    /// Addresses that stand for the hosts.
    pub addresses: Vec<IpNet>,
    /// Ports of the hosts, by number.
    pub ports: BTreeMap<u16, EntryPort>,
    /// Whether the hosts are of the mesh.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// The endpoints, if they are written out.
    pub endpoints: Vec<EntryEndpoint>,
    /// Labels of the workloads that are the endpoints, if these are not written out.
    pub workload_selector: Option<Labels>,
    /// Namespaces whose clients it is for; empty and `*` mean all, `.` its own, `~` none.
    pub export_to: Vec<String>,
    /// Names of which a server's certificate must have one.
    pub subject_alt_names: Vec<String>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Name, by which endpoints have ports of their own.
    pub name: String,
    /// What is spoken there; empty if that is not said.
    pub protocol: String,
    /// The endpoints' port, if it is another one.
    pub target_port: Option<u16>,
}

/// One of `spec.endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// An address or a host name; empty where the network's gateway stands for it.
    pub address: String,
    /// Ports by the name that the entry gives them.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: Labels,
    /// Name of its network.
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Its share of the connections, by comparison with the others'.
    pub weight: Option<u32>,
    /// The service account that it runs as.
    pub service_account: String,
}

/// `spec.location`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Location {
    /// Elsewhere.
    #[default]
    External,
    /// In the mesh.
    Internal,
}

/// `spec.resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// Connections go to the address that the client asked for.
    #[default]
    None,
    /// Endpoints have addresses.
    Static,
    /// The name system is asked, and all of its answers count.
    Dns,
    /// The same, and the first answer counts.
    DnsRoundRobin,
    /// The name system is asked for the host that the client asked for.
    DynamicDns,
}

impl Resolution {
    fn asks_the_name_system(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin | Self::DynamicDns)
    }
}

const LOCATIONS: [(&str, Location); 2] =
    [("MESH_EXTERNAL", Location::External), ("MESH_INTERNAL", Location::Internal)];

const RESOLUTIONS: [(&str, Resolution); 5] = [
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::DnsRoundRobin),
    ("DYNAMIC_DNS", Resolution::DynamicDns),
];

impl Readable for ServiceEntry {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            lenient::report(root, &["spec"], "`spec` is missing", "add `spec: {hosts: …}`", findings);
            return None;
        };
        let fields = spec.fields(&[
            "hosts",
            "addresses",
            "ports",
            "location",
            "resolution",
            "endpoints",
            "workloadSelector",
            "exportTo",
            "subjectAltNames",
        ]);
        let resolution =
            fields.get("resolution").map_or(Some(Resolution::default()), |at| at.enum_value(&RESOLUTIONS));
        refuse_what_excludes_itself(&fields, resolution);
        let texts =
            |at: Cursor<'_>| at.non_empty_strings().into_iter().map(|(_, text)| text.to_owned()).collect();
        Some(Self {
            metadata,
            hosts: fields.require("hosts").map(|at| hosts(&at)).unwrap_or_default(),
            addresses: fields.get("addresses").map(|at| addresses(&at, resolution)).unwrap_or_default(),
            ports: fields.get("ports").map(|at| ports(&at)).unwrap_or_default(),
            location: fields.get("location").and_then(|at| at.enum_value(&LOCATIONS)).unwrap_or_default(),
            resolution: resolution.unwrap_or_default(),
            endpoints: fields.get("endpoints").map(|at| endpoints(&at)).unwrap_or_default(),
            workload_selector: fields.get("workloadSelector").map(|at| workload_selector(&at)),
            export_to: fields.get("exportTo").map(|at| export_to::read(&at, true)).unwrap_or_default(),
            subject_alt_names: fields.get("subjectAltNames").map(texts).unwrap_or_default(),
        })
    }
}

fn refuse_what_excludes_itself(fields: &Fields<'_>, resolution: Option<Resolution>) {
    let Some(endpoints) = fields.get("endpoints").filter(|at| !at.is_empty_list()) else { return };
    if fields.get("workloadSelector").is_some() {
        endpoints.error("`endpoints` and `workloadSelector` exclude each other", "remove one of them");
    }
    if resolution == Some(Resolution::None) {
        let fix = "write `resolution: STATIC` or `DNS`, or remove `endpoints`";
        endpoints.error("without a `resolution` no endpoint is connected to", fix);
    }
}

fn hosts(at: &Cursor<'_>) -> Vec<String> {
    if at.is_empty_list() {
        at.error("`hosts` is empty", "name at least one host");
    }
    at.non_empty_strings().into_iter().filter_map(|(at, text)| host(&at, text)).collect()
}

fn host(at: &Cursor<'_>, text: &str) -> Option<String> {
    let host = host::parse(text);
    if host.is_none() {
        let fix = "write a full host name, or one that begins with `*.`";
        at.error(format!("{} is not a host", quoted(text)), fix);
    }
    host
}

fn addresses(at: &Cursor<'_>, resolution: Option<Resolution>) -> Vec<IpNet> {
    at.non_empty_strings().into_iter().filter_map(|(at, text)| address(&at, text, resolution)).collect()
}

fn address(at: &Cursor<'_>, text: &str, resolution: Option<Resolution>) -> Option<IpNet> {
    let net = network::parse(text);
    if net.is_none() {
        at.error(
            format!("{text:?} is not an address"),
            "write an IP address, or a network like `10.0.0.0/8`",
        );
    } else if text.contains('/') && resolution.is_some_and(Resolution::asks_the_name_system) {
        at.error(
            "a network has no name to ask for",
            "write `resolution: NONE` or `STATIC`, or single addresses",
        );
    }
    net
}

fn ports(at: &Cursor<'_>) -> BTreeMap<u16, EntryPort> {
    let (mut ports, mut names) = (BTreeMap::new(), HashSet::new());
    for at in at.items() {
        let fields = at.fields(&["number", "protocol", "name", "targetPort"]);
        let (number, name) = (fields.require("number"), fields.require("name"));
        let read = EntryPort {
            name: name.as_ref().and_then(Cursor::non_empty_string).unwrap_or_default().to_owned(),
            protocol: text(&fields, "protocol"),
            target_port: fields.get("targetPort").and_then(|at| port(&at)),
        };
        if let Some(at) = name.filter(|_| !read.name.is_empty() && !names.insert(read.name.clone())) {
            at.error("another port has this name", "choose another name");
        }
        let Some((at, number)) = number.and_then(|at| port(&at).map(|number| (at, number))) else { continue };
        if ports.insert(number, read).is_some() {
            at.error("this port is already there", "remove one of the two");
        }
    }
    ports
}

fn port(at: &Cursor<'_>) -> Option<u16> {
    at.integer(1..=65535).and_then(|port| u16::try_from(port).ok())
}

fn text(fields: &Fields<'_>, key: &str) -> String {
    fields.get(key).and_then(|at| at.non_empty_string()).unwrap_or_default().to_owned()
}

fn endpoints(at: &Cursor<'_>) -> Vec<EntryEndpoint> {
    at.items().iter().map(endpoint).collect()
}

fn endpoint(at: &Cursor<'_>) -> EntryEndpoint {
    let fields =
        at.fields(&["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"]);
    if fields.get("address").is_none() && fields.get("network").is_none() {
        at.error("an endpoint needs an `address` or a `network`", "add `address`");
    }
    let ports = fields.get("ports").map(|at| {
        let of_names = at.fields_with_any_key();
        of_names.all().filter_map(|(name, at)| Some((name.to_owned(), port(&at)?))).collect()
    });
    EntryEndpoint {
        address: text(&fields, "address"),
        ports: ports.unwrap_or_default(),
        labels: fields.get("labels").map(|at| at.string_map()).unwrap_or_default(),
        network: text(&fields, "network"),
        locality: text(&fields, "locality"),
        weight: fields.get("weight").and_then(|at| at.integer(0..=u32::MAX)),
        service_account: text(&fields, "serviceAccount"),
    }
}

/// Unlike other kinds' it has `labels` and no `matchLabels`.
fn workload_selector(at: &Cursor<'_>) -> Labels {
    let fields = at.fields(&["labels"]);
    let labels = fields.get("labels").map(|at| at.string_map()).unwrap_or_default();
    if labels.iter().any(|(key, value)| key.contains('*') || value.contains('*')) {
        at.error("a selector takes no `*`", "name the label and its value in full");
    }
    labels
}

#[cfg(test)]
mod tests {
    use crate::manifest::{ParsedManifest, parse};
    use crate::resource::Object;

    use super::*;

    fn parsed(version: &str, spec: &str) -> ParsedManifest {
        let head = format!("apiVersion: networking.istio.io/{version}\nkind: ServiceEntry");
        parse("entry.yaml", &format!("{head}\nmetadata: {{name: bank, namespace: shop}}\nspec: {spec}\n"))
    }

    #[test]
    fn every_field_of_every_version_is_read_and_nothing_is_done_with_it() {
        let spec = "{hosts: [api.bank.example, '*.bank.example'], addresses: [192.0.2.1, '2001:db8::/32'], \
                    ports: [{number: 443, name: https, protocol: TLS, targetPort: 8443}], \
                    location: MESH_INTERNAL, resolution: STATIC, exportTo: ['~'], subjectAltNames: [bank], \
                    endpoints: [{address: 198.51.100.1, ports: {https: 9443}, labels: {a: b}, network: n, \
                    locality: r/z, weight: 7, serviceAccount: bank}, {network: far}]}";
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let mut parsed = parsed(version, spec);
            assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
            let [warning] = &parsed.warnings[..] else { panic!("{:?}", parsed.warnings) };
            assert_eq!((warning.line, warning.field.as_deref()), (2, Some("kind")));
            assert!(warning.problem.starts_with("ServiceEntry is not used yet"), "{warning}");
            let Object::ServiceEntry(entry) = parsed.objects.remove(0).value else { panic!("another kind") };
            assert_eq!((entry.hosts.len(), entry.addresses.len(), entry.subject_alt_names.len()), (2, 2, 1));
            let port = EntryPort { name: "https".into(), protocol: "TLS".into(), target_port: Some(8443) };
            assert_eq!(entry.ports, [(443, port)].into());
            assert_eq!((entry.location, entry.resolution), (Location::Internal, Resolution::Static));
            assert_eq!((entry.endpoints[0].ports["https"], entry.endpoints[0].weight), (9443, Some(7)));
            assert_eq!(
                (entry.export_to.as_slice(), &entry.workload_selector),
                (&["~".to_owned()][..], &None)
            );
        }
    }

    #[test]
    fn hosts_are_read_in_the_form_in_which_they_are_compared() {
        let mut parsed = parsed("v1", "{hosts: [API.bank.example., '*-EU.bank.example', '*bank.example']}");
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        let Object::ServiceEntry(entry) = parsed.objects.remove(0).value else { panic!("another kind") };
        assert_eq!(entry.hosts, ["api.bank.example", "*-eu.bank.example", "*bank.example"]);
    }

    #[test]
    fn what_is_wrong_names_the_field_and_what_to_write() {
        for (spec, field, fix) in [
            ("{}", "spec", "add `hosts`"),
            ("{hosts: []}", "spec.hosts", "at least one"),
            ("{hosts: ['*']}", "spec.hosts[0]", "begins with `*.`"),
            ("{hosts: [a], adresses: []}", "spec.adresses", "did you mean `addresses`?"),
            ("{hosts: [a], addresses: [b]}", "spec.addresses[0]", "an IP address"),
            // It means 10 to some and 8 to others.
            ("{hosts: [a], addresses: [010.0.0.0/8]}", "spec.addresses[0]", "an IP address"),
            ("{hosts: [a], resolution: DNS, addresses: [10.0.0.0/8]}", "spec.addresses[0]", "`STATIC`"),
            ("{hosts: [a], ports: [{number: 0, name: a}]}", "spec.ports[0].number", "from 1 to 65535"),
            ("{hosts: [a], ports: [{number: 1}]}", "spec.ports[0]", "add `name`"),
            (
                "{hosts: [a], ports: [{number: 1, name: a}, {number: 1, name: b}]}",
                "spec.ports[1].number",
                "remove one",
            ),
            (
                "{hosts: [a], ports: [{number: 1, name: a}, {number: 2, name: a}]}",
                "spec.ports[1].name",
                "another name",
            ),
            ("{hosts: [a], location: MESH}", "spec.location", "`MESH_EXTERNAL`"),
            ("{hosts: [a, '']}", "spec.hosts[1]", "write a value"),
            (
                "{hosts: [a], resolution: STATICS, endpoints: [{address: b}]}",
                "spec.resolution",
                "did you mean `STATIC`?",
            ),
            ("{hosts: [a], endpoints: [{address: b}]}", "spec.endpoints", "`resolution: STATIC`"),
            ("{hosts: [a], resolution: DNS, endpoints: [{weight: 1}]}", "spec.endpoints[0]", "add `address`"),
            (
                "{hosts: [a], resolution: DNS, endpoints: [{address: b, port: 1}]}",
                "spec.endpoints[0].port",
                "did you mean `ports`?",
            ),
            (
                "{hosts: [a], resolution: DNS, endpoints: [{address: b}], workloadSelector: {labels: {c: d}}}",
                "spec.endpoints",
                "remove one",
            ),
            ("{hosts: [a], workloadSelector: {labels: {c: '*'}}}", "spec.workloadSelector", "in full"),
            ("{hosts: [a], exportTo: ['~', b]}", "spec.exportTo[0]", "`~` alone"),
        ] {
            let parsed = parsed("v1", spec);
            let [error] = &parsed.errors[..] else { panic!("{spec}: {:?}", parsed.errors) };
            assert_eq!(error.resource.as_deref(), Some("ServiceEntry shop/bank"), "{spec}");
            assert_eq!(error.field.as_deref(), Some(field), "{spec}: {error}");
            assert!(error.fix.contains(fix), "{spec}: {error}");
        }
    }
}
