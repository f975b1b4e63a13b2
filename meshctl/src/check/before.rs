//! Before an installation.

use std::env;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};

use super::{Finding, access, kernel, strangers};
use crate::cluster::Cluster;
use crate::install;

/// The first Kubernetes with all fields of the chart, and with tokens that name the node that they are bound
/// to.
const KUBERNETES: (u32, u32) = (1, 30);
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Looks at everything.
pub async fn check(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![api_server(&cluster.version)];
    findings.push(or_unknown("permissions", access::to_install(cluster).await));
    findings.push(or_unknown("port-forward", access::to_forward(cluster).await));
    match cluster.nodes().await {
        Ok(nodes) => findings.extend(kernel::nodes(&nodes)),
        Err(error) => findings.push(Finding::unknown("nodes", &error)),
    }
    findings.push(or_unknown("pod security", pod_security(cluster).await));
    match strangers::check(cluster).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::unknown("other meshes", &error)),
    }
    findings.push(or_unknown("installation", installation(cluster).await));
    findings.push(helm());
    findings
}

fn or_unknown(check: &str, found: Result<Finding>) -> Finding {
    found.unwrap_or_else(|error| Finding::unknown(check, &error))
}

fn api_server(version: &str) -> Finding {
    let check = "API server";
    match kernel::version(version) {
        Some(found) if found >= KUBERNETES => Finding::ok(check, version),
        _ => {
            let (major, minor) = KUBERNETES;
            let fix = format!(
                "nodemesh needs Kubernetes {major}.{minor} or later: older ones do not say which node an agent's token is of, \
                 and lack fields of the chart"
            );
            Finding::fail(check, version, fix)
        }
    }
}

async fn pod_security(cluster: &Cluster) -> Result<Finding> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = namespaces.get_opt(&cluster.namespace).await.context("can't read the namespace")?;
    Ok(of_namespace(&cluster.namespace, namespace.as_ref()))
}

fn of_namespace(name: &str, namespace: Option<&Namespace>) -> Finding {
    let check = "pod security";
    let Some(namespace) = namespace else {
        return Finding::ok(check, format!("the namespace {name} will be made for privileged pods"));
    };
    match namespace.labels().get(POD_SECURITY).map(String::as_str) {
        Some("privileged") => Finding::ok(check, format!("{name} takes privileged pods")),
        None => {
            Finding::ok(check, format!("{name} has no label {POD_SECURITY}; the cluster's default counts"))
        }
        Some(level) => Finding::fail(
            check,
            format!("{name} enforces {level}; agents use the host's network and paths"),
            format!("kubectl label namespace {name} --overwrite {POD_SECURITY}=privileged"),
        ),
    }
}

/// Refusals are the installation's own, so that what fails here is what fails there.
async fn installation(cluster: &Cluster) -> Result<Finding> {
    let check = "installation";
    if let Some(refusal) = install::refusal(cluster, install::RELEASE).await? {
        return Ok(Finding::fail(
            check,
            refusal,
            "`meshctl install` would refuse; it changes nothing that is not its own",
        ));
    }
    Ok(if cluster.daemon_set().await?.is_some() {
        let found = format!("a mesh is in {} already; an installation changes it", cluster.namespace);
        Finding::warn(check, found, "`meshctl check` without --pre looks at it")
    } else {
        Finding::ok(check, format!("none in {} yet", cluster.namespace))
    })
}

fn helm() -> Finding {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join("helm")).find(|file| file.is_file());
    match found {
        Some(file) => Finding::ok("helm", file.display().to_string()),
        None => Finding::fail(
            "helm",
            "not on PATH, and `meshctl install` renders the chart with it",
            "get version 3.14 or later: https://helm.sh/docs/intro/install",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use serde_json::json;

    #[test]
    fn an_old_api_server_fails() {
        assert_eq!(api_server("v1.29.9").result, Verdict::Fail);
        assert_eq!(api_server("v1.30.0").result, Verdict::Ok);
    }

    #[test]
    fn a_namespace_that_takes_no_agents_fails_with_the_command_that_changes_it() {
        let labelled = |level: &str| -> Namespace {
            let text = json!({"metadata": {"name": "m", "labels": {POD_SECURITY: level}}});
            serde_json::from_value(text).unwrap()
        };
        assert_eq!(of_namespace("m", None).result, Verdict::Ok);
        assert_eq!(of_namespace("m", Some(&labelled("privileged"))).result, Verdict::Ok);
        let refused = of_namespace("m", Some(&labelled("restricted")));
        assert_eq!(refused.result, Verdict::Fail);
        assert!(refused.fix.unwrap().starts_with("kubectl label namespace m"));
    }
}
