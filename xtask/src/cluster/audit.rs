//! What the API server writes down of the mesh's own requests: the end-to-end tests hold the mesh's rights
//! against it.

use anyhow::Result;

use super::state::State;

/// In the state directory. One file for all runs of the API server.
const LOG: &str = "audit.log";
const POLICY: &str = "audit-policy.yaml";
/// Megabytes before the API server begins a new file; a run of the end-to-end tests writes a tenth of it.
const LARGEST: u32 = 500;

/// Who asked for what, and with which result, for the service accounts of the mesh's namespace; nothing of
/// others.
const RULES: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ['system:serviceaccounts:nodemesh-system']
  - level: None
";

/// Writes the policy; answers the API server's flags, without dashes.
pub fn flags(state: &State) -> Result<[(&'static str, String); 3]> {
    let policy = state.write(POLICY, RULES)?;
    Ok([
        ("audit-policy-file", policy.display().to_string()),
        ("audit-log-path", state.path(LOG).display().to_string()),
        ("audit-log-maxsize", LARGEST.to_string()),
    ])
}
