//! Deployments: pods by the number.

use serde::Deserialize;

use super::{LabelSelector, Metadata, Readable, lenient, pod::PodSpec};
use crate::document::{cursor::Findings, yaml_tree};

/// A deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Name and labels.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: DeploymentSpec,
}

/// `spec` of a deployment.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentSpec {
    /// How many pods.
    #[serde(default = "one")]
    pub replicas: u32,
    /// Which pods are its own.
    #[serde(default)]
    pub selector: LabelSelector,
    /// What each pod is like.
    pub template: PodTemplate,
}

/// `spec.template` of a deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodTemplate {
    /// Labels and annotations of each pod.
    pub metadata: Metadata,
    /// `spec` of each pod.
    pub spec: PodSpec,
}

impl Readable for Deployment {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let spec: DeploymentSpec = lenient::required(root, "spec", findings)?;
        if !spec.selector.matches(&spec.template.metadata.labels) {
            let problem = "the pods of the template do not have the labels of `spec.selector`";
            let path = ["spec", "template", "metadata", "labels"];
            lenient::report(
                root,
                &path,
                problem,
                "give the template the labels of `spec.selector`",
                findings,
            );
        }
        Some(Self { metadata, spec })
    }
}

fn one() -> u32 {
    1
}
