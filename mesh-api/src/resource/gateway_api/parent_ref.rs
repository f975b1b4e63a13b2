//! `parentRefs`: what a route is attached to.

use super::values;
use crate::document::cursor::{Cursor, Fields};
use crate::resource::virtual_service::values::port;

/// A Service whose clients a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// Where in `parentRefs` it stands.
    pub index: usize,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// The only port of the Service that the route is for. `None`: all, if `section_name` says no other.
    pub port: Option<u16>,
    /// The same by the port's name.
    pub section_name: Option<String>,
}

const MOST: usize = 32;

impl ParentRef {
    /// Reads those that are Services; others are other controllers'.
    pub(super) fn read_services(fields: &Fields<'_>, namespace: &str) -> Vec<Self> {
        let items = values::items(fields, "parentRefs", MOST).into_iter().enumerate();
        items.filter_map(|(index, at)| Self::read(&at, index, namespace)).collect()
    }

    fn read(at: &Cursor<'_>, index: usize, namespace: &str) -> Option<Self> {
        let fields = at.fields_with_any_key();
        let group = values::text_or(&fields, "group", values::GATEWAY_GROUP)?;
        if values::text_or(&fields, "kind", "Gateway")? != "Service" {
            return None;
        }
        if !is_core(&group) {
            let problem = format!("the group {group:?} has no kind Service, so that nobody follows this");
            at.warn(problem, "write `group: ''`, as Services have none");
            return None;
        }
        at.fields(&["group", "kind", "namespace", "name", "port", "sectionName"]);
        let section_name = fields.get("sectionName").and_then(|at| at.non_empty_string());
        Some(Self {
            index,
            namespace: values::namespace(&fields).unwrap_or_else(|| namespace.to_owned()),
            name: values::object_name(&fields)?,
            port: fields.get("port").and_then(|at| port(&at)),
            section_name: section_name.map(str::to_owned),
        })
    }
}

/// Whether a group is that of Services.
pub(super) fn is_core(group: &str) -> bool {
    group.is_empty() || group == "core"
}
