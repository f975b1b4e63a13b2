//! What the runtime says: the environment, and the configuration on standard input (CNI specification 1.1.0,
//! section 2).

use std::env;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Versions of the specification that a network list may have. What passes through is not looked at, so there
/// is no difference between them but the commands.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The environment.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_NETNS`: a path that leads to the pod's network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS`: `KEY=VALUE;…`. The names of the pod's parts are a convention of Kubernetes' runtimes.
    pub args: String,
}

/// The parts of the configuration that count. Everything else in it is left alone.
#[derive(Deserialize)]
pub struct Configuration<'a> {
    /// Version of the list.
    #[serde(rename = "cniVersion", default)]
    pub version: Option<String>,
    /// What the plugins before this one have made of the pod's network.
    #[serde(rename = "prevResult", borrow, default)]
    pub previous: Option<&'a RawValue>,
}

/// Where the agent is asked and what is decided by: our own part of the configuration.
#[derive(Debug, Deserialize)]
pub struct Places {
    /// The agent's socket.
    pub socket: PathBuf,
    /// What the agent last knew.
    pub state: PathBuf,
}

/// A pod, as the runtime names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid: of a static pod the one that the kubelet gave it.
    pub uid: &'a str,
}

impl Call {
    /// As this process was started. A variable that is missing or no text is empty.
    pub fn from_environment() -> Self {
        let text = |name| env::var(name).unwrap_or_default();
        Self { command: text("CNI_COMMAND"), netns: text("CNI_NETNS").into(), args: text("CNI_ARGS") }
    }

    /// The pod. Parts that the runtime does not tell are empty.
    pub fn pod(&self) -> Pod<'_> {
        let value = |key| {
            let mut pairs = self.args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map_or("", |(_, value)| value)
        };
        Pod { namespace: value("K8S_POD_NAMESPACE"), name: value("K8S_POD_NAME"), uid: value("K8S_POD_UID") }
    }
}

impl Places {
    /// As the configuration says. One that says something else than it should is taken for one that says
    /// nothing: what is broken of ours must not keep other pods from starting.
    pub fn of(configuration: &str) -> Self {
        serde_json::from_str(configuration).unwrap_or_else(|_| Self {
            socket: format!("/run/nodemesh/{}", crate::SOCKET).into(),
            state: format!("/var/lib/nodemesh/{}", crate::STATE).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_in_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1;X";
        let call = Call { args: args.into(), ..Call::default() };
        assert_eq!(call.pod(), Pod { namespace: "shop", name: "web-1", uid: "u-1" });
        assert_eq!(Call::default().pod(), Pod { namespace: "", name: "", uid: "" });
    }

    #[test]
    fn what_is_broken_of_ours_is_as_if_nothing_was_said() {
        for broken in [r#"{"socket": 7, "state": "/s"}"#, r#"{"state": "/s"}"#, "{"] {
            assert_eq!(Places::of(broken).state, PathBuf::from("/var/lib/nodemesh/cni.json"), "{broken}");
        }
        assert_eq!(Places::of(r#"{"socket": "/a", "state": "/s"}"#).socket, PathBuf::from("/a"));
    }
}
