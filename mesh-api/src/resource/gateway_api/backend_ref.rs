//! `backendRefs`: where requests go, and which share of them.

use super::filters::RouteFilter;
use super::parent_ref::is_core;
use super::values;
use crate::document::cursor::{Cursor, Fields};
use crate::resource::virtual_service::values::port;

/// An object that requests can go to, whether or not there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// API group; empty for Services.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace. `None`: the route's.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port. A Service has one here.
    pub port: Option<u16>,
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRef {
    /// Where they go.
    pub object: ObjectRef,
    /// Their share in the sum of all weights.
    pub weight: u32,
    /// What is done to them beside what the rule does.
    pub filters: Vec<RouteFilter>,
}

const MAX_WEIGHT: u32 = 1_000_000;
const MOST: usize = 16;

impl BackendRef {
    /// Reads `backendRefs` of a rule.
    pub(super) fn read_list(fields: &Fields<'_>) -> Vec<Self> {
        values::items(fields, "backendRefs", MOST).iter().filter_map(Self::read).collect()
    }

    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["group", "kind", "namespace", "name", "port", "weight", "filters"]);
        let weight = fields.get("weight").map_or(Some(1), |at| at.integer(0..=MAX_WEIGHT));
        let filters = RouteFilter::read_list(&fields);
        Some(Self { object: ObjectRef::of(at, &fields)?, weight: weight?, filters })
    }
}

impl ObjectRef {
    /// Reads `backendRef` of a filter.
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        Self::of(at, &at.fields(&["group", "kind", "namespace", "name", "port"]))
    }

    fn of(at: &Cursor<'_>, fields: &Fields<'_>) -> Option<Self> {
        let group = values::text_or(fields, "group", "")?;
        let read = Self {
            kind: values::text_or(fields, "kind", "Service")?,
            namespace: values::namespace(fields),
            name: values::object_name(fields)?,
            port: fields.get("port").and_then(|at| port(&at)),
            group: if is_core(&group) { String::new() } else { group },
        };
        if read.is_service() && fields.get("port").is_none() {
            at.error("it does not say which port of the Service", "add `port`");
        }
        Some(read)
    }

    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}
