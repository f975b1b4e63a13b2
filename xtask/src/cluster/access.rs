//! Who may talk to the API server: tokens, and the kubeconfig files that carry them.

use std::fs;
use std::io::Read;

use anyhow::{Context, Result};

use super::layout::{API_PORT, HOST, Node};
use super::state::State;
use crate::oci::hex;

/// Everything that the API server's certificate directory holds is made by itself.
pub const PKI: &str = "pki";
/// The API server's certificate, followed by the authority that signed it.
pub const CERTIFICATE: &str = "pki/apiserver.crt";
/// The API server's file of tokens.
pub const TOKENS: &str = "tokens.csv";
/// The administrator's kubeconfig.
pub const KUBECONFIG: &str = "kubeconfig";

/// Somebody with a token.
struct Identity {
    /// The name of the kubeconfig file.
    file: String,
    user: String,
    group: &'static str,
}

/// Makes a token for each part of the cluster, and its kubeconfig.
pub fn create(state: &State, nodes: &[Node]) -> Result<()> {
    let mut tokens = String::new();
    for identity in identities(nodes) {
        let token = random_token()?;
        state.write(&identity.file, &kubeconfig(&state.path(CERTIFICATE).display().to_string(), &token))?;
        tokens += &line(&token, &identity);
    }
    state.write(TOKENS, &tokens).map(drop)
}

/// The kubeconfig file of a part of the control plane or of a node.
pub fn kubeconfig_of(part: &str) -> String {
    format!("{part}.kubeconfig")
}

fn identities(nodes: &[Node]) -> Vec<Identity> {
    let component = |name: &str| Identity {
        file: kubeconfig_of(name),
        user: format!("system:{name}"),
        // The roles that every cluster starts with are bound to the user's name.
        group: "system:authenticated",
    };
    let mut all =
        vec![Identity { file: KUBECONFIG.into(), user: "kubernetes-admin".into(), group: "system:masters" }];
    all.extend(["kube-controller-manager", "kube-scheduler", "kube-proxy"].map(component));
    all.extend(nodes.iter().map(|node| Identity {
        file: kubeconfig_of(&node.name()),
        user: format!("system:node:{node}"),
        group: "system:nodes",
    }));
    all
}

fn line(token: &str, identity: &Identity) -> String {
    format!("{token},{user},{user},{}\n", identity.group, user = identity.user)
}

fn kubeconfig(certificate: &str, token: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
  - name: nodemesh
    cluster:
      server: https://{HOST}:{API_PORT}
      certificate-authority: {certificate}
users:
  - name: nodemesh
    user:
      token: {token}
contexts:
  - name: nodemesh
    context:
      cluster: nodemesh
      user: nodemesh
current-context: nodemesh
"
    )
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("can't read /dev/urandom")?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_an_identity_that_kubernetes_knows() {
        let identities = identities(&Node::first(2).unwrap());
        let lines: Vec<_> = identities.iter().map(|identity| line("0f", identity)).collect();
        assert_eq!(lines[0], "0f,kubernetes-admin,kubernetes-admin,system:masters\n");
        assert_eq!(lines[5], "0f,system:node:node2,system:node:node2,system:nodes\n");
        assert_eq!(identities[4].file, "node1.kubeconfig");
    }

    #[test]
    fn a_token_is_new_each_time() {
        let token = random_token().unwrap();
        assert_eq!(token.len(), 32);
        assert_ne!(token, random_token().unwrap());
    }

    #[test]
    fn a_kubeconfig_has_the_server_and_the_token() {
        let text = kubeconfig("/run/ca.crt", "0f");
        assert!(text.contains("server: https://172.31.0.1:6443\n"));
        assert!(text.contains("certificate-authority: /run/ca.crt\n"));
        assert!(text.contains("token: 0f\n"));
    }
}
