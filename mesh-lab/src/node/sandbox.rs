//! A pod's sandbox: its namespaces, held by a process that does nothing else, its cgroup, addresses and
//! files.

use std::{net::IpAddr, path::PathBuf, process::Stdio};

use mesh_api::resource::Pod;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Child,
};

use super::{Node, network};
use crate::{
    enter::{self, SANDBOX_READY},
    host::{During, HostError, cgroup, files},
};

/// Search domains and the five dots below which they are tried first are Kubernetes' own.
const DOMAIN: &str = "cluster.local";

/// A pod's sandbox. To be destroyed; a dropped one is cleaned up with the lab.
#[derive(Debug)]
pub struct Sandbox {
    pause: Child,
    pid: u32,
    cgroup: PathBuf,
}

impl Sandbox {
    /// Makes the sandbox of a pod.
    pub async fn create(node: &Node, pod: &Pod) -> Result<Self, HostError> {
        let uid = &pod.metadata.uid;
        let cgroup = node.paths.pod_cgroup(uid);
        cgroup::create(&cgroup.join("pause"))?;
        let made = Self::start(node, pod, cgroup.clone()).await;
        let result = match made {
            Ok(sandbox) if pod.spec.host_network => return Ok(sandbox),
            Ok(sandbox) => {
                let attached = network::attach_pod(node, uid, sandbox.pid, addresses(pod)).await;
                attached.map(|()| sandbox)
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The first error says more than what cleaning up might add.
            let _ = cgroup::destroy_async(&cgroup).await;
        }
        result
    }

    async fn start(node: &Node, pod: &Pod, cgroup: PathBuf) -> Result<Self, HostError> {
        let hostname = if pod.spec.host_network { &node.name } else { &pod.metadata.name };
        let sandbox = enter::Sandbox {
            cgroup: cgroup.join("pause"),
            // The kernel's limit; Kubernetes cuts longer names in the same way.
            hostname: hostname.chars().take(63).collect(),
            bind: write_files(node, pod, hostname)?,
            host_network: pod.spec.host_network,
        };
        let mut command = tokio::process::Command::from(sandbox.command());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut pause = command.spawn().during(|| "start a sandbox".to_owned())?;
        let mut line = String::new();
        if let Some(output) = pause.stdout.take() {
            BufReader::new(output).read_line(&mut line).await.during(|| "hear from a sandbox".to_owned())?;
        }
        match pause.id() {
            Some(pid) if line.trim() == SANDBOX_READY => Ok(Self { pause, pid, cgroup }),
            _ => Err(failure(pause).await),
        }
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The cgroup of one of the pod's containers.
    pub fn container_cgroup(&self, container: &str) -> PathBuf {
        self.cgroup.join(container)
    }

    /// Kills what is left of the pod and gives everything back. The links go with the namespace.
    pub async fn destroy(mut self) -> Result<(), HostError> {
        cgroup::destroy_async(&self.cgroup).await?;
        self.pause.wait().await.during(|| "wait for a sandbox to end".to_owned()).map(drop)
    }
}

async fn failure(mut pause: Child) -> HostError {
    let mut stderr = String::new();
    if let Some(mut errors) = pause.stderr.take() {
        let _ = errors.read_to_string(&mut stderr).await;
    }
    match pause.wait().await {
        Ok(status) => {
            HostError::Program { program: "internal-sandbox", status, stderr: stderr.trim().to_owned() }
        }
        Err(source) => HostError::Os { doing: "wait for a sandbox".to_owned(), source },
    }
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    let all = pod.addresses();
    let unset = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    // Placement gave the pod one of each family, in this order.
    [0, 1].map(|n| all.get(n).copied().unwrap_or(unset[n]))
}

/// Writes the pod's own `resolv.conf` and `hosts`, and says what they stand in for.
fn write_files(node: &Node, pod: &Pod, hostname: &str) -> Result<Vec<(PathBuf, PathBuf)>, HostError> {
    let directory = node.pod_directory(&pod.metadata.namespace, &pod.metadata.name);
    files::directory(&directory)?;
    files::shared_directory(&node.scratch(pod))?;
    let (resolv, hosts) = (directory.join("resolv.conf"), directory.join("hosts"));
    let [server, _] = node.number.gateway();
    let namespace = &pod.metadata.namespace;
    let search = format!("{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}");
    files::replace(&resolv, &format!("nameserver {server}\nsearch {search}\noptions ndots:5\n"))?;
    let own: Vec<String> = pod.addresses().iter().map(|ip| format!("{ip}\t{hostname}\n")).collect();
    let own = own.concat();
    files::replace(
        &hosts,
        &format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"),
    )?;
    Ok(vec![(resolv, "/etc/resolv.conf".into()), (hosts, "/etc/hosts".into())])
}
