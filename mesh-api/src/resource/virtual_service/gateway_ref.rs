//! Names of gateways in `gateways`.

use std::collections::HashSet;

use super::values;
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::metadata::is_label;

/// Where routes are in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayRef {
    /// With every client in the mesh (`mesh`).
    Mesh,
    /// At a `Gateway`.
    Gateway {
        /// Its namespace; that of the virtual service if none was written.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl GatewayRef {
    /// Reads `gateways`. One that is repeated says nothing new.
    pub(super) fn read_list(fields: &Fields<'_>, own_namespace: &str) -> Vec<Self> {
        let mut seen = HashSet::new();
        values::list(fields, "gateways", |at| {
            let gateway = Self::read(at, own_namespace)?;
            seen.insert(gateway.clone()).then_some(gateway)
        })
    }

    /// Reads `mesh`, `name`, `./name`, `namespace/name`, or the old `name.namespace.svc.cluster.local`, in a
    /// virtual service of `own_namespace`.
    fn read(at: &Cursor<'_>, own_namespace: &str) -> Option<Self> {
        let text = at.non_empty_string()?;
        if text == "mesh" {
            return Some(Self::Mesh);
        }
        let (namespace, name) = match text.split_once('/') {
            Some((".", name)) => (own_namespace, name),
            Some(both) => both,
            None => old_form(text).unwrap_or((own_namespace, text)),
        };
        if !is_label(namespace) || !is_label(name) {
            at.error(
                format!("{} is not a gateway", quoted(text)),
                "write `mesh`, `name` or `namespace/name`",
            );
            return None;
        }
        if old_form(text).is_some() {
            at.warn("this form of a gateway's name is deprecated", format!("write `{namespace}/{name}`"));
        }
        Some(Self::Gateway { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Namespace and name in `name.namespace`, and what may be behind it.
fn old_form(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once('.').filter(|_| !text.contains('/'))?;
    Some((rest.split('.').next().unwrap_or_default(), name))
}
