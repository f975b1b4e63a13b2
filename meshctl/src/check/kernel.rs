//! What a node says of itself, and whether an agent can run there.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::Finding;

/// The first Linux with all that the agent needs: cookies of network namespaces, `sk_lookup`.
const KERNEL: (u32, u32) = (5, 14);

/// A finding for each node that can't have an agent, or one that says that all can.
pub fn nodes(all: &[Node]) -> Vec<Finding> {
    let bad: Vec<_> = all.iter().filter_map(node).collect();
    if all.is_empty() {
        return vec![Finding::fail("nodes", "there is none", "add one: agents run on nodes")];
    }
    if !bad.is_empty() {
        return bad;
    }
    let mut kernels: Vec<_> = all.iter().map(|node| info(node).0).collect();
    kernels.sort();
    kernels.dedup();
    vec![Finding::ok("nodes", format!("{}, all can run an agent; Linux {}", all.len(), kernels.join(", ")))]
}

fn node(node: &Node) -> Option<Finding> {
    let (kernel, os, architecture) = info(node);
    let check = format!("node {}", node.name_any());
    if os != "linux" {
        return Some(Finding::warn(&check, format!("runs {os}"), "its pods stay outside of the mesh"));
    }
    if architecture != "amd64" {
        let found = format!("is of the architecture {architecture}");
        return Some(Finding::fail(
            &check,
            found,
            "the images are for amd64; keep the agents off it by agent.nodeSelector",
        ));
    }
    match version(&kernel) {
        Some(version) if version >= KERNEL => ready(node, &check),
        Some(_) => {
            let found = format!("has Linux {kernel}");
            Some(Finding::fail(&check, found, format!("the agent needs {}.{} or later", KERNEL.0, KERNEL.1)))
        }
        None => Some(Finding::warn(
            &check,
            format!("has the kernel {kernel:?}"),
            "see what `mesh-agent check` says there",
        )),
    }
}

fn ready(node: &Node, check: &str) -> Option<Finding> {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
    (!ready).then(|| Finding::warn(check, "is not ready", "an agent comes when it is"))
}

/// Kernel release, operating system, architecture.
fn info(node: &Node) -> (String, String, String) {
    let info = node.status.as_ref().and_then(|status| status.node_info.clone()).unwrap_or_default();
    (info.kernel_version, info.operating_system, info.architecture)
}

/// Major and minor number of a version such as `6.1.0-18-amd64`, `v1.34.2` or `29+`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

fn number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use serde_json::json;

    fn one(kernel: &str, os: &str, architecture: &str) -> Node {
        let text = json!({
            "metadata": {"name": "n"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {
                    "kernelVersion": kernel, "operatingSystem": os, "architecture": architecture,
                    "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "",
                    "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
                },
            },
        });
        serde_json::from_value(text).unwrap()
    }

    fn verdict(node: Node) -> Verdict {
        nodes(&[node])[0].result
    }

    #[test]
    fn old_kernels_and_other_architectures_fail() {
        assert_eq!(verdict(one("5.14.0-427.el9.x86_64", "linux", "amd64")), Verdict::Ok);
        assert_eq!(verdict(one("6.1.0", "linux", "amd64")), Verdict::Ok);
        assert_eq!(verdict(one("5.10.230", "linux", "amd64")), Verdict::Fail);
        assert_eq!(verdict(one("6.1.0", "linux", "arm64")), Verdict::Fail);
        assert_eq!(verdict(one("10.0.20348", "windows", "amd64")), Verdict::Warn);
        assert_eq!(nodes(&[])[0].result, Verdict::Fail);
    }

    #[test]
    fn versions_are_read_as_they_are_written() {
        assert_eq!(version("v1.34.2"), Some((1, 34)));
        assert_eq!(version("v1.29+gke.3"), Some((1, 29)));
        assert_eq!(version("6.1-rc1"), Some((6, 1)));
        assert_eq!(version("six"), None);
    }
}
