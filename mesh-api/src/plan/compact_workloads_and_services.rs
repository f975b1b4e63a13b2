//! Workloads and services as they are held: small, and decoded when the data path asks for them.
//!
//! Most of a workload is the same for all pods of its Deployment: that part, encoded, is a
//! [`WorkloadTemplate`] which they share. The rest takes some 200 bytes. A decoded [`Workload`] takes ten
//! times as much, so it lives only as long as somebody uses it.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ipnet::IpNet;
use prost::Message;
use prost_types::Any;

use super::intern::Interner;
use super::resource_version::ResourceVersion;
use super::service::Service;
use super::workload::{Health, NetworkMode, Workload};
use crate::persistent_table::{PersistentTable, hash_of};
use crate::plan::Invalid;
use crate::wire::type_url;
use crate::wire::workload as wire;
use crate::wire::xds::Resource;

/// A workload as it is held.
pub(super) struct CompactWorkload {
    template: Arc<WorkloadTemplate>,
    locality: Arc<NodeLocality>,
    /// The name, and behind it the uid, if that does not end with the name.
    text: Box<str>,
    name_length: u32,
    health: Health,
    addresses: Addresses,
    version: ResourceVersion,
    decoded: Mutex<Weak<Workload>>,
}

/// The part that many workloads have in common.
#[derive(Debug)]
pub(super) struct WorkloadTemplate {
    /// A [`wire::Workload`] without the fields that differ.
    encoded: Box<[u8]>,
    /// Beginning of a uid that ends with the name.
    uid_start: Option<Box<str>>,
    owns_addresses: bool,
    services: Box<[Arc<str>]>,
}

/// Where the workloads of one node run.
#[derive(Debug, PartialEq, Eq, Hash)]
struct NodeLocality {
    node: Box<str>,
    /// An encoded [`wire::Locality`]; empty if there is none.
    encoded: Box<[u8]>,
}

/// Addresses of a workload; nearly all have one of each family, or one.
#[derive(Debug, PartialEq, Eq)]
enum Addresses {
    None,
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Both(Ipv4Addr, Ipv6Addr),
    Other(Box<[IpAddr]>),
}

/// Interns what workloads have in common: see [`Interner`], which does so for texts.
#[derive(Debug, Default)]
pub(super) struct WorkloadPartsInterner {
    templates: PersistentTable<Arc<WorkloadTemplate>>,
    /// Number in use at the last sweep.
    templates_in_use: usize,
    localities: HashSet<Arc<NodeLocality>>,
    localities_in_use: usize,
}

/// Unused ones that are not worth a sweep.
const SLACK: usize = 256;

impl CompactWorkload {
    /// Checks a workload and encodes it. Errors: see [`Invalid`].
    pub(super) fn new(
        mut from: wire::Workload,
        version: &str,
        texts: &mut Interner,
        pool: &mut WorkloadPartsInterner,
    ) -> Result<Self, Invalid> {
        let checked = Workload::try_from(from.clone())?;
        let (uid, name) = (std::mem::take(&mut from.uid), std::mem::take(&mut from.name));
        let uid_start = uid.strip_suffix(name.as_str()).map(Box::from);
        let text = if uid_start.is_some() { name.clone() } else { name.clone() + &uid };
        let locality = pool.locality(NodeLocality {
            node: std::mem::take(&mut from.node).into(),
            encoded: from.locality.take().unwrap_or_default().encode_to_vec().into(),
        });
        from.addresses.clear();
        from.status = 0;
        let template = pool.template(from.encode_to_vec(), uid_start, &checked, texts);
        Ok(Self {
            template,
            locality,
            text: text.into(),
            name_length: u32::try_from(name.len()).unwrap_or(u32::MAX),
            health: checked.health,
            addresses: Addresses::from(&*checked.addresses),
            version: ResourceVersion::new(version),
            decoded: Mutex::default(),
        })
    }

    /// Returns the workload, which stays decoded as long as somebody holds it.
    pub(super) fn decode_cached(&self) -> Arc<Workload> {
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        decoded.upgrade().unwrap_or_else(|| {
            let workload = Arc::new(self.decode());
            *decoded = Arc::downgrade(&workload);
            workload
        })
    }

    /// Returns the workload for a look at it. Nothing of it stays, not even the room of a weak reference: so
    /// all workloads can be looked at.
    pub(super) fn decode_without_caching(&self) -> Arc<Workload> {
        let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        decoded.unwrap_or_else(|| Arc::new(self.decode()))
    }

    fn decode(&self) -> Workload {
        // The same content was checked when it came in.
        Workload::try_from(self.wire()).expect("a workload that was checked")
    }

    /// Returns the resource that it came as.
    pub(super) fn to_resource(&self) -> Resource {
        resource(self.uid(), &self.version, wire::address::Type::Workload(self.wire()))
    }

    fn wire(&self) -> wire::Workload {
        // The same bytes were encoded here.
        let common = wire::Workload::decode(&*self.template.encoded).expect("a workload that was encoded");
        wire::Workload {
            uid: self.uid(),
            name: self.name().to_owned(),
            node: self.locality.node.to_string(),
            locality: self.locality.wire(),
            addresses: self.addresses().map(octets).collect(),
            status: match self.health {
                Health::Healthy => wire::WorkloadStatus::Healthy,
                // The extensions tell which of the two.
                Health::Terminating | Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
            }
            .into(),
            ..common
        }
    }

    pub(super) fn uid(&self) -> String {
        let (start, end) = self.uid_parts();
        [start, end].concat()
    }

    pub(super) fn has_uid(&self, uid: &str) -> bool {
        let (start, end) = self.uid_parts();
        uid.strip_prefix(start) == Some(end)
    }

    /// Compares two workloads by uid.
    pub(super) fn cmp_uid(&self, other: &Self) -> std::cmp::Ordering {
        let ((start, end), (their_start, their_end)) = (self.uid_parts(), other.uid_parts());
        if start == their_start {
            return end.cmp(their_end);
        }
        start.bytes().chain(end.bytes()).cmp(their_start.bytes().chain(their_end.bytes()))
    }

    pub(super) fn node(&self) -> &str {
        &self.locality.node
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    pub(super) fn version(&self) -> &ResourceVersion {
        &self.version
    }

    /// Returns the keys of the services that it belongs to.
    pub(super) fn service_keys(&self) -> &[Arc<str>] {
        &self.template.services
    }

    /// Iterates over the addresses that it alone has.
    pub(super) fn owned_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses().filter(|_| self.template.owns_addresses)
    }

    /// Whether another workload is the same, apart from its version.
    pub(super) fn is_same_except_version(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.template, &other.template)
            && self.text == other.text
            && self.locality == other.locality
            && self.health == other.health
            && self.addresses == other.addresses
    }

    fn name(&self) -> &str {
        &self.text[..self.name_length as usize]
    }

    fn uid_parts(&self) -> (&str, &str) {
        match &self.template.uid_start {
            Some(start) => (start, self.name()),
            None => ("", &self.text[self.name_length as usize..]),
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6, other): (_, _, &[IpAddr]) = match &self.addresses {
            Addresses::None => (None, None, &[]),
            Addresses::V4(v4) => (Some(*v4), None, &[]),
            Addresses::V6(v6) => (None, Some(*v6), &[]),
            Addresses::Both(v4, v6) => (Some(*v4), Some(*v6), &[]),
            Addresses::Other(other) => (None, None, other),
        };
        v4.into_iter().map(IpAddr::V4).chain(v6.into_iter().map(IpAddr::V6)).chain(other.iter().copied())
    }
}

impl fmt::Debug for CompactWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uid())
    }
}

impl From<&[IpAddr]> for Addresses {
    fn from(list: &[IpAddr]) -> Self {
        match *list {
            [] => Self::None,
            [IpAddr::V4(v4)] => Self::V4(v4),
            [IpAddr::V6(v6)] => Self::V6(v6),
            [IpAddr::V4(v4), IpAddr::V6(v6)] => Self::Both(v4, v6),
            ref other => Self::Other(other.into()),
        }
    }
}

impl NodeLocality {
    fn wire(&self) -> Option<wire::Locality> {
        // The same bytes were encoded here.
        let decode = || wire::Locality::decode(&*self.encoded).expect("a locality that was encoded");
        (!self.encoded.is_empty()).then(decode)
    }
}

impl WorkloadPartsInterner {
    fn locality(&mut self, locality: NodeLocality) -> Arc<NodeLocality> {
        if let Some(held) = self.localities.get(&locality) {
            return held.clone();
        }
        let locality = Arc::new(locality);
        self.localities.insert(locality.clone());
        locality
    }

    fn template(
        &mut self,
        encoded: Vec<u8>,
        uid_start: Option<Box<str>>,
        of: &Workload,
        texts: &mut Interner,
    ) -> Arc<WorkloadTemplate> {
        let hash = hash_of(&(&encoded, &uid_start));
        let same = |held: &Arc<WorkloadTemplate>| *held.encoded == *encoded && held.uid_start == uid_start;
        if let Some(held) = self.templates.find(hash, same) {
            return held.clone();
        }
        let template = Arc::new(WorkloadTemplate {
            encoded: encoded.into(),
            uid_start,
            owns_addresses: of.network_mode == NetworkMode::Standard,
            services: of.services.keys().map(|key| texts.intern(key)).collect(),
        });
        self.templates.insert(hash, template.clone());
        template
    }

    /// Forgets parts that no workload has any more, once they may be the larger part.
    pub(super) fn sweep(&mut self) {
        if self.templates.len() > 2 * self.templates_in_use + SLACK {
            self.templates.retain(|template| Arc::strong_count(template) > 1);
            self.templates_in_use = self.templates.len();
        }
        if self.localities.len() > 2 * self.localities_in_use + SLACK {
            self.localities.retain(|locality| Arc::strong_count(locality) > 1);
            self.localities_in_use = self.localities.len();
        }
    }
}

/// A service as it is held.
pub(super) struct CompactService {
    pub(super) key: Arc<str>,
    /// Its virtual addresses.
    pub(super) addresses: Box<[IpNet]>,
    pub(super) version: ResourceVersion,
    encoded: Box<[u8]>,
    decoded: Mutex<Weak<Service>>,
}

impl CompactService {
    /// Checks a service and encodes it. Errors: see [`Invalid`].
    pub(super) fn new(from: wire::Service, version: &str, texts: &mut Interner) -> Result<Self, Invalid> {
        let encoded = from.encode_to_vec().into();
        let service = Service::try_from(from)?;
        Ok(Self {
            key: texts.intern(&service.key),
            addresses: service.addresses,
            encoded,
            version: ResourceVersion::new(version),
            decoded: Mutex::default(),
        })
    }

    /// Returns the service, which stays decoded as long as somebody holds it.
    pub(super) fn decode_cached(&self) -> Arc<Service> {
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        decoded.upgrade().unwrap_or_else(|| {
            let service = Arc::new(self.decode());
            *decoded = Arc::downgrade(&service);
            service
        })
    }

    /// Returns the service for a look at it: nothing of it stays.
    pub(super) fn decode_without_caching(&self) -> Arc<Service> {
        let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        decoded.unwrap_or_else(|| Arc::new(self.decode()))
    }

    fn decode(&self) -> Service {
        // The same content was checked when it came in.
        Service::try_from(self.wire()).expect("a service that was checked")
    }

    /// Returns the resource that it came as.
    pub(super) fn to_resource(&self) -> Resource {
        resource(self.key.to_string(), &self.version, wire::address::Type::Service(self.wire()))
    }

    /// Whether another service is the same, apart from its version.
    pub(super) fn is_same_except_version(&self, other: &Self) -> bool {
        self.encoded == other.encoded
    }

    fn wire(&self) -> wire::Service {
        // The same bytes were encoded here.
        wire::Service::decode(&*self.encoded).expect("a service that was encoded")
    }
}

impl fmt::Debug for CompactService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

fn resource(name: String, version: &ResourceVersion, of: wire::address::Type) -> Resource {
    let value = wire::Address { r#type: Some(of) }.encode_to_vec();
    Resource {
        version: version.to_string(),
        resource: Some(Any { type_url: type_url::ADDRESS.to_owned(), value }),
        name,
        aliases: Vec::new(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

// The size with which a mesh of 100,000 workloads fits into an agent.
const _: () = assert!(size_of::<CompactWorkload>() <= 96);
