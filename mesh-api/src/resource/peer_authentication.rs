//! `PeerAuthentication`: whether a workload's clients must use mutual TLS (Istio's `security.istio.io`).

use std::collections::BTreeMap;

use super::{LabelSelector, Metadata, Readable, selector};
use crate::document::{
    cursor::{Cursor, Findings},
    yaml_tree,
};

/// A peer authentication policy.
#[derive(Clone, Debug)]
pub struct PeerAuthentication {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Workloads that it applies to; `None` means all of the namespace, or of the mesh from the root
    /// namespace.
    pub selector: Option<LabelSelector>,
    /// Mode of all ports that have none of their own.
    pub mode: MtlsMode,
    /// Modes of ports of the workload (not of a service).
    pub port_modes: BTreeMap<u16, MtlsMode>,
}

/// Whether mutual TLS is required.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// As the next wider policy says.
    #[default]
    Unset,
    /// Plaintext only. The mesh cannot forbid its own transport: it is taken for [`MtlsMode::Permissive`].
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

const MODES: [(&str, MtlsMode); 4] = [
    ("UNSET", MtlsMode::Unset),
    ("DISABLE", MtlsMode::Disable),
    ("PERMISSIVE", MtlsMode::Permissive),
    ("STRICT", MtlsMode::Strict),
];

impl Readable for PeerAuthentication {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let mut policy =
            Self { metadata, selector: None, mode: MtlsMode::Unset, port_modes: BTreeMap::new() };
        let Some(spec) = Cursor::spec(root, findings) else { return Some(policy) };
        let fields = spec.fields(&["selector", "mtls", "portLevelMtls"]);
        policy.selector = fields.get("selector").and_then(|at| selector::read(&at));
        policy.mode = fields.get("mtls").map(|at| mode(&at)).unwrap_or_default();
        if let Some(at) = fields.get("portLevelMtls") {
            policy.port_modes = port_modes(&at);
            if policy.selector.is_none() && !policy.port_modes.is_empty() {
                at.error(
                    "modes of ports need a selector: ports mean something for chosen workloads only",
                    "add `selector: {matchLabels: …}`, or remove `portLevelMtls`",
                );
            }
        }
        Some(policy)
    }
}

fn mode(at: &Cursor<'_>) -> MtlsMode {
    let mode = at.fields(&["mode"]).get("mode");
    mode.and_then(|at| at.enum_value(&MODES)).unwrap_or_default()
}

fn port_modes(at: &Cursor<'_>) -> BTreeMap<u16, MtlsMode> {
    let mut modes = BTreeMap::new();
    for (key, at) in at.fields_with_any_key().all() {
        match key.parse::<u16>() {
            Ok(port) if port != 0 => {
                modes.insert(port, mode(&at));
            }
            _ => at.error(format!("{key:?} is not a port"), "write a number from 1 to 65535"),
        }
    }
    modes
}
