//! Values that several parts of a route are made of.

use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::metadata::{is_label, is_subdomain};

/// The group of the kinds that references name unless they say another.
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The items of a list, which may have so many.
pub(super) fn items<'a>(fields: &Fields<'a>, key: &str, most: usize) -> Vec<Cursor<'a>> {
    let Some(at) = fields.get(key) else { return Vec::new() };
    let items = at.items();
    if items.len() > most {
        at.error(format!("it has more than {most} items"), "write fewer, in a second object if need be");
        return Vec::new();
    }
    items
}

/// A text that may be empty, or what stands for an absent one.
pub(super) fn text_or(fields: &Fields<'_>, key: &str, absent: &str) -> Option<String> {
    match fields.get(key) {
        None => Some(absent.to_owned()),
        Some(at) => at.text().map(str::to_owned),
    }
}

/// The name of an object, which must be there.
pub(super) fn object_name(fields: &Fields<'_>) -> Option<String> {
    let at = fields.require("name")?;
    let name = at.non_empty_string()?;
    if !is_subdomain(name) {
        at.error(format!("{} is not a name", quoted(name)), "write the name of an object");
    }
    Some(name.to_owned())
}

/// The namespace of an object, if the field is there.
pub(super) fn namespace(fields: &Fields<'_>) -> Option<String> {
    let at = fields.get("namespace")?;
    let name = at.non_empty_string()?;
    if !is_label(name) {
        at.error(format!("{} is not a namespace", quoted(name)), "write the name of a namespace");
    }
    Some(name.to_owned())
}

/// A host for a request or a redirect.
pub(super) fn hostname(fields: &Fields<'_>) -> Option<String> {
    let at = fields.get("hostname")?;
    let host = at.non_empty_string()?;
    if !is_subdomain(host) {
        let fix = "write a host's name in lower case, without a port";
        at.error(format!("{} is not a host", quoted(host)), fix);
    }
    Some(host.to_owned())
}
