//! Names of gateways in `gateways`.

use crate::document::cursor::Cursor;
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
    /// Reads `mesh`, `name`, `./name`, `namespace/name`, or the old `name.namespace.svc.cluster.local`, in a
    /// virtual service of `own_namespace`.
    pub(super) fn read(at: &Cursor<'_>, own_namespace: &str) -> Option<Self> {
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
            at.error(format!("{text:?} is not a gateway"), "write `mesh`, `name` or `namespace/name`");
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
