//! The types of resources that an agent subscribes to, each in one place: how the store takes one in, and how
//! it gives it out again (docs/wire.md, Discovery).

use std::collections::HashMap;

use super::decode::Invalid;
use super::store::{Contents, Store};
use crate::wire::type_url;
use crate::wire::xds::Resource;

/// A type of resources of a discovery stream.
#[derive(Clone, Copy, Debug)]
pub struct DiscoveryType {
    /// Its type URL.
    pub type_url: &'static str,
    /// Whether nothing that was received is in force before the first response of this type. It must be so
    /// for what protects or hides something. A type that only some control planes serve must not be: an
    /// agent of the others would never be ready.
    pub required: bool,
    /// Takes one in. On an error what was held under its name stays, unless to go on with that could allow
    /// too much.
    pub(super) insert: fn(&mut Store, &Resource) -> Result<(), Invalid>,
    /// Forgets one by its name, if it is held.
    pub(super) remove: fn(&mut Store, &str),
    /// Name and version of all that are held.
    pub(super) versions: fn(&Store) -> HashMap<String, String>,
    /// All that are held, in no order.
    pub(super) resources: fn(&Contents) -> Box<dyn Iterator<Item = Resource> + '_>,
}

impl DiscoveryType {
    /// Workloads and services. Connections to those that are not known yet would pass the mesh by.
    pub const ADDRESS: Self = Self {
        type_url: type_url::ADDRESS,
        required: true,
        insert: Store::insert_address,
        remove: Store::remove_address,
        versions: Store::address_versions,
        resources: Contents::addresses,
    };

    /// Policies of layer 4. Workloads without them would be open to everybody.
    pub const AUTHORIZATION: Self = Self {
        type_url: type_url::AUTHORIZATION,
        required: true,
        insert: Store::insert_authorization,
        remove: Store::remove_authorization,
        versions: Store::authorization_versions,
        resources: Contents::authorizations,
    };

    /// Every type, in the order in which they are asked for and written.
    pub const ALL: [Self; 2] = [Self::ADDRESS, Self::AUTHORIZATION];

    /// The type of a type URL; none if it is not one that is subscribed to.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|discovery_type| discovery_type.type_url == type_url)
    }
}
