//! What each command does.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::agent::{self, Refusal};
use crate::call::{Call, Configuration, Places, Pod, VERSIONS};
use crate::state::State;

/// How long a pod waits for the agent before its start has failed. The kubelet tries again after some
/// seconds, and as often as it takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a command failed, by the specification's numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    message: String,
    details: String,
}

/// `CNI_COMMAND` is none.
const INVALID_ENVIRONMENT: u32 = 4;
/// The pod's namespace can't be opened.
const IO_FAILURE: u32 = 5;
/// The configuration is no JSON.
const NOT_DECODED: u32 = 6;
/// It may work another time.
const TRY_AGAIN_LATER: u32 = 11;

impl Failure {
    fn new(code: u32, message: &str, details: impl Into<String>) -> Self {
        Self { code, message: message.to_owned(), details: details.into() }
    }

    /// As the runtime wants to read it, in the version that it speaks.
    pub fn to_json(&self, configuration: &str) -> String {
        #[derive(Serialize)]
        struct Told<'a> {
            #[serde(rename = "cniVersion")]
            version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let version = serde_json::from_str::<Configuration<'_>>(configuration).ok().and_then(|it| it.version);
        let version = version.as_deref().unwrap_or(VERSIONS[VERSIONS.len() - 1]);
        let told = Told { version, code: self.code, msg: &self.message, details: &self.details };
        serde_json::to_string(&told).unwrap_or_default()
    }
}

/// Does what is asked for; what goes to standard output.
pub fn run(call: &Call, configuration: &str) -> Result<String, Failure> {
    match call.command.as_str() {
        "ADD" => add(call, configuration),
        // There is nothing to take away: the agent hears from the API that a pod is gone. And what is broken
        // of ours must neither keep a pod from ending nor make its node unready.
        "DEL" | "CHECK" | "GC" | "STATUS" => Ok(String::new()),
        "VERSION" => Ok(versions()),
        other => {
            Err(Failure::new(INVALID_ENVIRONMENT, "no such command", format!("CNI_COMMAND is {other:?}")))
        }
    }
}

fn versions() -> String {
    json!({"cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS}).to_string()
}

/// Lets a pod start if it is not to be in the mesh, or is.
fn add(call: &Call, configuration: &str) -> Result<String, Failure> {
    let parsed: Configuration<'_> = serde_json::from_str(configuration).map_err(|error| {
        Failure::new(NOT_DECODED, "the configuration is not understood", error.to_string())
    })?;
    let places = Places::of(configuration);
    let wanted = || match State::read(&places.state) {
        Ok(state) => state.wants(call.pod()),
        Err(error) => {
            // The runtime logs it. Nobody knows of any pod that it is to be in the mesh.
            eprintln!(
                "nodemesh-cni: {}: {error}; the pod starts outside of the mesh",
                places.state.display()
            );
            false
        }
    };
    if wanted() {
        agent::wait(&places.socket, &call.netns, call.pod(), PATIENCE, wanted)
            .map_err(|refusal| failure(&refusal, call.pod(), &places))?;
    }
    Ok(result(&parsed))
}

/// The result of the plugins before this one, as it came.
fn result(configuration: &Configuration<'_>) -> String {
    let version = || configuration.version.as_deref().unwrap_or(VERSIONS[0]);
    match configuration.previous {
        Some(previous) => previous.get().to_owned(),
        None => json!({ "cniVersion": version() }).to_string(),
    }
}

fn failure(refusal: &Refusal, pod: Pod<'_>, places: &Places) -> Failure {
    let Pod { namespace, name, .. } = pod;
    match refusal {
        Refusal::NoUid => Failure::new(
            INVALID_ENVIRONMENT,
            "the container runtime does not tell the pod's uid (K8S_POD_UID in CNI_ARGS)",
            format!(
                "{namespace}/{name} is to be in the mesh; containerd 1.6 and CRI-O 1.19 and later tell it"
            ),
        ),
        Refusal::Netns(error) => Failure::new(
            IO_FAILURE,
            "the pod's network namespace can't be opened",
            format!("{namespace}/{name}: {error}"),
        ),
        Refusal::Agent(reason) => Failure::new(
            TRY_AGAIN_LATER,
            "the pod is to be in the mesh, and the node's mesh-agent has not taken it in",
            format!(
                "{namespace}/{name}: {reason}; agent at {}. If nodemesh was removed from the cluster, run \
                 `mesh-agent cleanup` on this node, or delete {}",
                places.socket.display(),
                places.state.display()
            ),
        ),
    }
}
