//! The types of resources that an agent subscribes to, each in one place: how the store inserts one, and how
//! it lists them (docs/wire.md, Discovery).

use std::collections::HashMap;

use super::field_parsing::Invalid;
use super::store::{Store, StoredResources};
use crate::wire::type_url;
use crate::wire::xds::Resource;

/// A type of resources in a discovery stream.
#[derive(Clone, Copy, Debug)]
pub struct XdsResourceType {
    /// Type URL.
    pub type_url: &'static str,
    /// Whether nothing is in force before the first response of this type. True for types that protect or
    /// hide something. False for a type that only some control planes serve: an agent of the others would
    /// never be ready.
    pub required: bool,
    /// Inserts a resource. On an error the one held under its name stays, unless that could allow too much.
    pub(super) insert: fn(&mut Store, &Resource) -> Result<(), Invalid>,
    /// Removes a resource by its name, if it is held.
    pub(super) remove: fn(&mut Store, &str),
    /// Returns name and version of all that are held.
    pub(super) versions: fn(&Store) -> HashMap<String, String>,
    /// Iterates over all that are held, in no order.
    pub(super) resources: fn(&StoredResources) -> Box<dyn Iterator<Item = Resource> + '_>,
}

impl XdsResourceType {
    /// Workloads and services. Connections to unknown ones would go past the mesh.
    pub const ADDRESS: Self = Self {
        type_url: type_url::ADDRESS,
        required: true,
        insert: Store::insert_address,
        remove: Store::remove_address,
        versions: Store::address_versions,
        resources: StoredResources::address_resources,
    };

    /// Policies of layer 4. Workloads without them would accept everybody.
    pub const AUTHORIZATION: Self = Self {
        type_url: type_url::AUTHORIZATION,
        required: true,
        insert: Store::insert_authorization,
        remove: Store::remove_authorization,
        versions: Store::authorization_versions,
        resources: StoredResources::authorization_resources,
    };

    /// Every type, in the order in which they are requested and written.
    pub const ALL: [Self; 2] = [Self::ADDRESS, Self::AUTHORIZATION];

    /// Returns the type of a type URL; none if it is not subscribed to.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource_type| resource_type.type_url == type_url)
    }
}
