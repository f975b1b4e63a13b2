//! How large the routes of one Service may be: each agent holds them, and gets them in one message. Any
//! namespace can attach routes to any Service, so each has a part of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::MadeRoute;
use super::attach::{Attachment, http_ports};
use crate::resource::Service;

/// Most bytes of the routes of the Service's own namespace, and of those of all others together.
const MAX_BYTES: usize = 8 << 20;
/// Most bytes of those of one other namespace.
const MAX_BYTES_OF_OTHER: usize = 1 << 20;

/// Returns the attachments to a service that are too many: the newest of their namespace. Each is the index
/// of a route, and that of the parent.
pub(super) fn beyond_budget(
    service: &Service,
    attached: &[(usize, &Attachment)],
    routes: &[MadeRoute<'_>],
) -> BTreeSet<(usize, usize)> {
    // Where one for the same clients names ports, each port may have a table of its own, with all that is for
    // it.
    let with_ports: BTreeSet<_> = attached
        .iter()
        .filter(|(_, attachment)| attachment.ports.is_some())
        .map(|(_, attachment)| attachment.client_namespace.as_deref())
        .collect();
    let mut left_by_namespace = BTreeMap::new();
    let mut left_for_others = MAX_BYTES;
    let mut beyond = BTreeSet::new();
    for (index, attachment) in attached {
        let other = attachment.client_namespace.as_deref();
        let all_ports = || if with_ports.contains(&other) { http_ports(service).count() } else { 1 };
        let tables = attachment.ports.as_ref().map_or_else(all_ports, BTreeSet::len);
        let cost = routes[*index].cost().saturating_mul(tables);
        let most = if other.is_some() { MAX_BYTES_OF_OTHER } else { MAX_BYTES };
        let left = left_by_namespace.entry(other).or_insert(most);
        if cost > *left || other.is_some() && cost > left_for_others {
            beyond.insert((*index, attachment.parent));
            continue;
        }
        *left -= cost;
        if other.is_some() {
            left_for_others -= cost;
        }
    }
    beyond
}
