//! etcd, the API server, the controller manager and the scheduler, on this machine itself.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::access::{self, CERTIFICATE, PKI, TOKENS, kubeconfig_of};
use super::audit;
use super::cgroup::{Hierarchies, in_cgroup};
use super::kubectl::Kubectl;
use super::layout::{API_PORT, HOST, POD_CIDRS, SERVICE_CIDRS};
use super::process::Process;
use super::state::State;
use super::tools::Tools;
use super::wait::until;
use crate::command::CommandExt;

const SERVICE_ACCOUNT_KEY: &str = "pki/service-account.key";
/// Ports on loopback other than etcd's own, which something else may use.
const ETCD_CLIENTS: &str = "http://127.0.0.1:12379";
const ETCD_PEERS: &str = "http://127.0.0.1:12380";
const TO_SERVE: Duration = Duration::from_mins(1);

/// Starts all of it; returns when the API server is ready.
pub fn start(state: &State, cgroups: &Hierarchies, tools: &Tools, kubectl: &Kubectl) -> Result<()> {
    let cgroup = cgroups.control_plane()?;
    let command = |component: &str, flags| {
        let program = tools.kubernetes().display().to_string();
        in_cgroup(&cgroup, [program, component.to_owned()].into_iter().chain(flags))
    };
    make_service_account_key(state, tools)?;
    let mut processes = Vec::new();
    let mut api_server = api_server(state);
    api_server.extend(audit::flags(state)?.map(|(name, value)| flag(name, value)));
    for (name, flags) in [("etcd", etcd(state)), ("kube-apiserver", api_server)] {
        processes.push(state.spawn(name, &command(name, flags))?);
    }
    until("the API server to be ready", TO_SERVE, || ready(state, &processes, kubectl))
        .and_then(|early_end| early_end)?;
    for (name, flags) in
        [("kube-controller-manager", controller_manager(state)), ("kube-scheduler", scheduler(state))]
    {
        state.spawn(name, &command(name, flags))?;
    }
    Ok(())
}

/// Nothing while it is not ready; what ended before that will never be.
fn ready(state: &State, processes: &[Process], kubectl: &Kubectl) -> Result<Option<Result<()>>> {
    if let Err(ended) = processes.iter().try_for_each(|process| state.check(process)) {
        return Ok(Some(Err(ended)));
    }
    if !state.path(CERTIFICATE).exists() {
        return Ok(None);
    }
    kubectl.run(&["get", "--raw", "/readyz"]).map(|_| Some(Ok(())))
}

fn make_service_account_key(state: &State, tools: &Tools) -> Result<()> {
    let key = Command::new(tools.kubernetes()).arg("service-account-key").captured();
    state.write(SERVICE_ACCOUNT_KEY, &key.context("can't make a key for service accounts")?).map(drop)
}

fn etcd(state: &State) -> Vec<String> {
    vec![
        flag("name", "nodemesh"),
        flag("data-dir", state.path("etcd").display()),
        flag("listen-client-urls", ETCD_CLIENTS),
        flag("advertise-client-urls", ETCD_CLIENTS),
        flag("listen-peer-urls", ETCD_PEERS),
        flag("initial-advertise-peer-urls", ETCD_PEERS),
        flag("initial-cluster", format!("nodemesh={ETCD_PEERS}")),
        // What this cluster knows need not survive a crash of the machine.
        flag("unsafe-no-fsync", true),
        flag("log-level", "warn"),
    ]
}

fn api_server(state: &State) -> Vec<String> {
    vec![
        flag("etcd-servers", ETCD_CLIENTS),
        flag("bind-address", HOST),
        flag("advertise-address", HOST),
        flag("secure-port", API_PORT),
        flag("cert-dir", state.path(PKI).display()),
        flag("token-auth-file", state.path(TOKENS).display()),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", true),
        flag("service-cluster-ip-range", SERVICE_CIDRS),
        flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        flag("service-account-key-file", state.path(SERVICE_ACCOUNT_KEY).display()),
        flag("service-account-signing-key-file", state.path(SERVICE_ACCOUNT_KEY).display()),
        flag("kubelet-preferred-address-types", "InternalIP"),
    ]
}

fn controller_manager(state: &State) -> Vec<String> {
    let mut flags = vec![
        flag("kubeconfig", state.path(kubeconfig_of("kube-controller-manager")).display()),
        flag("allocate-node-cidrs", true),
        flag("cluster-cidr", POD_CIDRS),
        flag("service-cluster-ip-range", SERVICE_CIDRS),
        flag("service-account-private-key-file", state.path(SERVICE_ACCOUNT_KEY).display()),
        flag("root-ca-file", state.path(CERTIFICATE).display()),
        flag("use-service-account-credentials", true),
        // Made if it is not there; its default is in /usr.
        flag("flex-volume-plugin-dir", state.path("volume-plugins").display()),
    ];
    flags.extend(common());
    flags
}

fn scheduler(state: &State) -> Vec<String> {
    let mut flags = vec![flag("kubeconfig", state.path(kubeconfig_of("kube-scheduler")).display())];
    flags.extend(common());
    flags
}

/// One replica of each, with no port of its own, which scales a deployment to dozens without waiting for
/// itself.
fn common() -> [String; 4] {
    [
        flag("leader-elect", false),
        flag("secure-port", 0),
        flag("kube-api-qps", 200),
        flag("kube-api-burst", 400),
    ]
}

/// The kubectl of the cluster's administrator.
pub fn administrator(state: &State, tools: &Tools) -> Kubectl {
    Kubectl::new(tools.kubernetes(), state.path(access::KUBECONFIG))
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_and_its_controllers_agree() {
        let state = State::new();
        let (server, controllers) = (api_server(&state), controller_manager(&state));
        let services = flag("service-cluster-ip-range", SERVICE_CIDRS);
        assert!(server.contains(&services) && controllers.contains(&services));
        assert!(server.contains(&"--bind-address=172.31.0.1".into()));
        assert!(
            controllers.contains(&"--root-ca-file=/run/nodemesh-cluster/pki/apiserver.crt".into()),
            "{controllers:?}"
        );
    }

    #[test]
    fn etcd_stays_on_loopback() {
        assert!(etcd(&State::new()).iter().all(|flag| !flag.contains("http://0")));
        assert!(etcd(&State::new()).contains(&"--listen-client-urls=http://127.0.0.1:12379".into()));
    }
}
