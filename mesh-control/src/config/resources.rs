//! The resources of one type, encoded, with the ways to find them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use mesh_api::persistent_table::{PersistentTable, hash_of};
use mesh_api::wire::security::Authorization;
use mesh_api::wire::type_url;
use mesh_api::wire::workload::address::Type;
use mesh_api::wire::workload::{Address, NetworkAddress, NetworkMode};
use mesh_api::wire::xds::Resource;
use prost::Message;
use prost_types::Any;

/// The resources of one type.
#[derive(Clone, Default)]
pub struct Resources {
    /// By name.
    entries: PersistentTable<Arc<Entry>>,
    /// By each other name: addresses as `network/ip`.
    aliases: PersistentTable<Arc<Entry>>,
    /// Workloads, by the name of each of their services.
    members: PersistentTable<Arc<Entry>>,
}

/// One resource, ready to be sent.
pub struct Entry {
    /// Its name.
    pub name: Arc<str>,
    /// Hash of the content: the same whenever the content is. 64 bits are enough: a version is only ever
    /// compared with another one of the same resource.
    pub version: u64,
    /// The [`Resource`], encoded.
    encoded: Box<[u8]>,
}

impl Entry {
    fn new(name: &str, type_url: &str, content: &impl Message, aliases: Vec<String>) -> Self {
        let value = content.encode_to_vec();
        let version = version(&value);
        let resource = Resource {
            version: format!("{version:016x}"),
            resource: Some(Any { type_url: type_url.to_owned(), value }),
            name: name.to_owned(),
            aliases,
        };
        Self { name: name.into(), version, encoded: resource.encode_to_vec().into() }
    }

    /// The resource, to be sent.
    pub fn resource(&self) -> Resource {
        // The very bytes were encoded here; and what is not, is nothing that an agent takes.
        Resource::decode(&*self.encoded).unwrap_or_default()
    }

    /// Bytes that it takes to send it.
    pub fn size(&self) -> usize {
        self.encoded.len()
    }

    /// Services of a workload.
    fn services(&self) -> Vec<String> {
        let content = self.resource().resource.map(|any| Address::decode(&*any.value));
        match content.and_then(Result::ok).and_then(|address| address.r#type) {
            Some(Type::Workload(workload)) => workload.services.into_keys().collect(),
            _ => Vec::new(),
        }
    }
}

impl Resources {
    /// Puts a workload or service in the place of what had its name, or takes that out. Returns whether that
    /// changed anything.
    pub fn set_address(&mut self, name: &str, address: Option<&Address>) -> bool {
        self.set(name, address.map(|it| Entry::new(name, type_url::ADDRESS, it, aliases(it))))
    }

    /// The same with a policy.
    pub fn set_authorization(&mut self, name: &str, policy: Option<&Authorization>) -> bool {
        self.set(name, policy.map(|it| Entry::new(name, type_url::AUTHORIZATION, it, Vec::new())))
    }

    /// The resource of that very name.
    pub fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.find(hash_of(name), |entry| *entry.name == *name)
    }

    /// All of them.
    pub fn entries(&self) -> &PersistentTable<Arc<Entry>> {
        &self.entries
    }

    /// Names of what `key` means (a name or an address), and of what is told along: a service's workloads, a
    /// workload's services. Empty if nothing has it.
    pub fn resolve(&self, key: &str) -> BTreeSet<Arc<str>> {
        let aliased = self.aliases.values_with_hash(hash_of(key));
        let aliased = aliased.filter(|entry| entry.resource().aliases.iter().any(|alias| alias == key));
        let direct: Vec<_> = self.get(key).into_iter().chain(aliased).collect();
        let mut names: BTreeSet<_> = direct.iter().map(|entry| entry.name.clone()).collect();
        for entry in direct {
            let workloads = self.members.values_with_hash(hash_of(&*entry.name));
            names.extend(workloads.map(|workload| workload.name.clone()));
            let services = entry.services();
            names.extend(services.iter().filter_map(|service| Some(self.get(service)?.name.clone())));
        }
        names
    }

    /// The namespace of the workload that has an address of its own; none where two of different namespaces
    /// have it, as for a moment when one ends and another has got its address.
    pub fn namespace_of(&self, ip: IpAddr) -> Option<String> {
        let alias = format!("/{}", ip.to_canonical());
        let mut namespaces = self.aliases.values_with_hash(hash_of(alias.as_str())).filter_map(|entry| {
            let resource = entry.resource();
            if !resource.aliases.contains(&alias) {
                return None;
            }
            let content = Address::decode(&*resource.resource?.value).ok()?;
            match content.r#type? {
                // A node's address is every process's there, and what is no pod may be anything.
                Type::Workload(it) if it.network_mode() == NetworkMode::Standard && !it.node.is_empty() => {
                    Some(it.namespace)
                }
                _ => None,
            }
        });
        let first = namespaces.next()?;
        namespaces.all(|other| other == first).then_some(first)
    }

    fn set(&mut self, name: &str, new: Option<Entry>) -> bool {
        let old = self.get(name);
        if old.map(|old| old.version) == new.as_ref().map(|new| new.version) {
            return false;
        }
        if let Some(old) = old.cloned() {
            self.entries.remove(hash_of(name), |entry| Arc::ptr_eq(entry, &old));
            for alias in old.resource().aliases {
                self.aliases.remove(hash_of(alias.as_str()), |entry| Arc::ptr_eq(entry, &old));
            }
            for service in old.services() {
                self.members.remove(hash_of(service.as_str()), |entry| Arc::ptr_eq(entry, &old));
            }
        }
        if let Some(new) = new.map(Arc::new) {
            for alias in new.resource().aliases {
                self.aliases.insert(hash_of(alias.as_str()), new.clone());
            }
            for service in new.services() {
                self.members.insert(hash_of(service.as_str()), new.clone());
            }
            self.entries.insert(hash_of(name), new);
        }
        true
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

fn version(encoded: &[u8]) -> u64 {
    let hash = digest(&SHA256, encoded);
    hash.as_ref().iter().take(8).fold(0u64, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

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
        let mut resources = Resources::default();
        list.into_iter().for_each(|(name, address)| assert!(resources.set_address(name, Some(&address))));
        resources
    }

    #[test]
    fn an_address_leads_to_the_service_and_its_workloads() {
        let mut resources = addresses([
            ("shop/web", service("web", [10, 96, 0, 1])),
            ("uid-1", workload("uid-1", [10, 244, 1, 1], "shop/web")),
            ("uid-2", workload("uid-2", [10, 244, 1, 2], "shop/gone")),
        ]);
        let names = |resources: &Resources, key| {
            resources.resolve(key).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(&resources, "/10.96.0.1"), ["shop/web", "uid-1"]);
        assert_eq!(names(&resources, "uid-1"), ["shop/web", "uid-1"]);
        assert_eq!(names(&resources, "/10.244.1.2"), ["uid-2"]);
        assert!(names(&resources, "/10.0.0.1").is_empty());
        assert!(resources.set_address("uid-1", Some(&workload("uid-1", [10, 244, 1, 7], ""))));
        assert_eq!(names(&resources, "/10.96.0.1"), ["shop/web"]);
        assert_eq!(names(&resources, "/10.244.1.7"), ["uid-1"]);
        assert!(names(&resources, "/10.244.1.1").is_empty());
    }

    #[test]
    fn an_address_is_of_a_namespace_if_it_is_of_one_alone() {
        let pod = |uid: &str, namespace: &str, ip: [u8; 4], mode: NetworkMode| {
            let mut address = workload(uid, ip, "");
            if let Some(Type::Workload(workload)) = &mut address.r#type {
                namespace.clone_into(&mut workload.namespace);
                workload.set_network_mode(mode);
                workload.node = "node1".to_owned();
            }
            address
        };
        let standard = NetworkMode::Standard;
        let mut resources = addresses([
            ("a", pod("a", "monitoring", [10, 244, 1, 1], standard)),
            ("b", pod("b", "shop", [10, 244, 1, 2], standard)),
            ("c", pod("c", "monitoring", [10, 0, 0, 1], NetworkMode::HostNetwork)),
            ("listed", workload("listed", [10, 0, 0, 2], "")),
            ("s", service("web", [10, 96, 0, 1])),
        ]);
        let of = |resources: &Resources, ip: [u8; 4]| resources.namespace_of(ip.into());
        assert_eq!(of(&resources, [10, 244, 1, 1]).as_deref(), Some("monitoring"));
        assert_eq!(of(&resources, [10, 244, 1, 2]).as_deref(), Some("shop"));
        assert_eq!(resources.namespace_of("::ffff:10.244.1.2".parse().unwrap()).as_deref(), Some("shop"));
        for other in [[10, 0, 0, 1], [10, 0, 0, 2], [10, 96, 0, 1], [10, 244, 1, 3]] {
            assert_eq!(of(&resources, other), None);
        }
        assert!(resources.set_address("b", Some(&pod("b", "shop", [10, 244, 1, 1], standard))));
        assert_eq!(of(&resources, [10, 244, 1, 1]), None);
    }

    #[test]
    fn the_version_follows_the_content() {
        let of = |ip| addresses([("uid", workload("uid", ip, "a/b"))]).get("uid").unwrap().version;
        assert_eq!(of([1, 2, 3, 4]), of([1, 2, 3, 4]));
        assert_ne!(of([1, 2, 3, 4]), of([1, 2, 3, 5]));
        let mut resources = addresses([("uid", workload("uid", [1, 2, 3, 4], "a/b"))]);
        assert!(!resources.set_address("uid", Some(&workload("uid", [1, 2, 3, 4], "a/b"))));
        assert!(resources.set_address("uid", None) && resources.get("uid").is_none());
    }
}
