//! The configuration that is served: immutable, compiled, encoded, with a version for each resource.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use mesh_api::wire::security::Authorization;
use mesh_api::wire::workload::address::Type;
use mesh_api::wire::workload::{Address, NetworkAddress};
use prost::Message;

/// One state of everything that agents are told.
#[derive(Default)]
pub struct Configuration {
    /// Counts the states, from 1; 0 is the empty one before the first.
    pub generation: u64,
    /// Workloads and services.
    pub addresses: Resources,
    /// Policies.
    pub authorizations: Resources,
    /// Accounts with a pod, by node.
    pub accounts: Accounts,
    /// Objects that it was made of.
    pub objects: usize,
    /// When it was complete.
    pub built: Option<Instant>,
}

/// Service accounts (namespace and name) that have a pod, by node.
pub type Accounts = HashMap<String, HashSet<(String, String)>>;

impl Configuration {
    /// Whether `node` has a pod of that account.
    pub fn runs_on(&self, node: &str, namespace: &str, account: &str) -> bool {
        let accounts = self.accounts.get(node);
        accounts.is_some_and(|held| held.contains(&(namespace.to_owned(), account.to_owned())))
    }
}

/// The resources of one type.
#[derive(Default)]
pub struct Resources {
    entries: BTreeMap<Arc<str>, Entry>,
    /// Other names: addresses as `network/ip`.
    aliases: HashMap<String, Vec<Arc<str>>>,
    /// What is told along: a service's workloads, a workload's services.
    related: HashMap<Arc<str>, Vec<Arc<str>>>,
}

/// One resource, ready to be sent.
pub struct Entry {
    /// Hash of the content: the same whenever the content is.
    pub version: Arc<str>,
    /// The encoded message.
    pub encoded: Vec<u8>,
    /// Other names under which it can be asked for.
    pub aliases: Vec<String>,
}

impl Resources {
    /// Workloads and services, under their own names and their addresses.
    pub fn of_addresses(addresses: &BTreeMap<String, Address>) -> Self {
        let mut resources = Self::default();
        for (name, address) in addresses {
            resources.insert(name, address, aliases(address));
        }
        for (name, address) in addresses {
            if let Some(Type::Workload(workload)) = &address.r#type {
                resources.relate(name, workload.services.keys());
            }
        }
        resources
    }

    /// Policies.
    pub fn of_authorizations(policies: &BTreeMap<String, Authorization>) -> Self {
        let mut resources = Self::default();
        for (name, policy) in policies {
            resources.insert(name, policy, Vec::new());
        }
        resources
    }

    /// The resource of that very name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All of them, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter()
    }

    /// Names of what `key` means (a name or an address), and of what is told along; empty if nothing has it.
    pub fn resolve(&self, key: &str) -> BTreeSet<&Arc<str>> {
        let named = self.entries.get_key_value(key).map(|(name, _)| name);
        let direct: Vec<_> = named.into_iter().chain(self.aliases.get(key).into_iter().flatten()).collect();
        let related = direct.iter().filter_map(|name| self.related.get(*name)).flatten();
        related.chain(direct.iter().copied()).collect()
    }

    fn insert(&mut self, name: &str, message: &impl Message, aliases: Vec<String>) {
        let name: Arc<str> = name.into();
        for alias in &aliases {
            self.aliases.entry(alias.clone()).or_default().push(Arc::clone(&name));
        }
        let encoded = message.encode_to_vec();
        let entry = Entry { version: version(&encoded), encoded, aliases };
        self.entries.insert(name, entry);
    }

    fn relate<'a>(&mut self, workload: &str, services: impl Iterator<Item = &'a String>) {
        let Some((workload, _)) = self.entries.get_key_value(workload) else { return };
        for service in services {
            let Some((service, _)) = self.entries.get_key_value(service.as_str()) else { continue };
            self.related.entry(Arc::clone(service)).or_default().push(Arc::clone(workload));
            self.related.entry(Arc::clone(workload)).or_default().push(Arc::clone(service));
        }
    }
}

fn aliases(address: &Address) -> Vec<String> {
    match &address.r#type {
        Some(Type::Workload(workload)) => {
            workload.addresses.iter().filter_map(|bytes| key(&workload.network, bytes)).collect()
        }
        Some(Type::Service(service)) => service.addresses.iter().filter_map(network_key).collect(),
        None => Vec::new(),
    }
}

fn network_key(address: &NetworkAddress) -> Option<String> {
    let key = key(&address.network, &address.address)?;
    Some(match address.length {
        Some(length) => format!("{key}/{length}"),
        None => key,
    })
}

fn key(network: &str, bytes: &[u8]) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(format!("{network}/{ip}"))
}

/// 64 bits are enough: a version is only ever compared with another one of the same resource.
fn version(encoded: &[u8]) -> Arc<str> {
    let hash = digest(&SHA256, encoded);
    let word = hash.as_ref().iter().take(8).fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    format!("{word:016x}").into()
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_api::wire::workload::{PortList, Service, Workload};

    use super::*;

    pub fn workload(uid: &str, ip: [u8; 4], service: &str) -> Address {
        let services = BTreeMap::from([(service.to_owned(), PortList::default())]);
        let workload =
            Workload { uid: uid.into(), addresses: vec![ip.to_vec()], services, ..Workload::default() };
        Address { r#type: Some(Type::Workload(workload)) }
    }

    pub fn service(hostname: &str, ip: [u8; 4]) -> Address {
        let addresses = vec![NetworkAddress { address: ip.to_vec(), ..NetworkAddress::default() }];
        let service = Service { hostname: hostname.into(), addresses, ..Service::default() };
        Address { r#type: Some(Type::Service(service)) }
    }

    pub fn addresses(list: impl IntoIterator<Item = (&'static str, Address)>) -> Resources {
        Resources::of_addresses(&list.into_iter().map(|(name, a)| (name.to_owned(), a)).collect())
    }

    #[test]
    fn an_address_leads_to_the_service_and_its_workloads() {
        let resources = addresses([
            ("shop/web", service("web", [10, 96, 0, 1])),
            ("uid-1", workload("uid-1", [10, 244, 1, 1], "shop/web")),
            ("uid-2", workload("uid-2", [10, 244, 1, 2], "shop/gone")),
        ]);
        let names = |key| resources.resolve(key).into_iter().map(|name| &**name).collect::<Vec<_>>();
        assert_eq!(names("/10.96.0.1"), ["shop/web", "uid-1"]);
        assert_eq!(names("uid-1"), ["shop/web", "uid-1"]);
        assert_eq!(names("/10.244.1.2"), ["uid-2"]);
        assert!(names("/10.0.0.1").is_empty());
    }

    #[test]
    fn the_version_follows_the_content() {
        let of = |ip| addresses([("uid", workload("uid", ip, "a/b"))]).get("uid").unwrap().version.clone();
        assert_eq!(of([1, 2, 3, 4]), of([1, 2, 3, 4]));
        assert_ne!(of([1, 2, 3, 4]), of([1, 2, 3, 5]));
    }
}
