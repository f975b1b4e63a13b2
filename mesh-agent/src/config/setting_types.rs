//! Types of single settings: each is parsed in the same way from a flag, a variable and the file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use http::Uri;
use mesh_common::veth::DirectPathMode;
use serde::{Deserialize, Serialize, Serializer};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How access log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// There are none.
    Off,
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How connections between meshed pods of one node go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNodeMode {
    /// From veth to veth, where nobody else reads or writes, if both pods' policies allow it and nothing
    /// needs the proxy; else over mutual TLS where other pods are on the way, and directly where none is.
    #[default]
    Auto,
    /// The same, but directly even where other pods are on the way.
    Direct,
    /// Over mutual TLS, as between nodes.
    Mtls,
}

impl SameNodeMode {
    /// Returns the same for the kernel.
    pub fn to_kernel_mode(self) -> DirectPathMode {
        match self {
            Self::Direct => DirectPathMode::Direct,
            Self::Auto | Self::Mtls => DirectPathMode::Auto,
        }
    }
}

/// How connections between nodes are framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// By the mesh's own protocol where the peer has it, and as HBONE otherwise.
    #[default]
    Auto,
    /// As HBONE always.
    Hbone,
}

impl From<Framing> for mesh_proxy::tunnel::AllowedFraming {
    fn from(setting: Framing) -> Self {
        match setting {
            Framing::Auto => Self::Auto,
            Framing::Hbone => Self::Hbone,
        }
    }
}

/// Whether connections to what is behind a waypoint, which the mesh leads no connection through, are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaypointMode {
    /// They are refused, since the waypoint's policy would not count.
    #[default]
    Refuse,
    /// They go past it.
    Ignore,
}

impl From<WaypointMode> for mesh_api::plan::WaypointHandling {
    fn from(setting: WaypointMode) -> Self {
        match setting {
            WaypointMode::Refuse => Self::Refuse,
            WaypointMode::Ignore => Self::Ignore,
        }
    }
}

/// Gives a type that is parsed from text a serde form as that text.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = <$name as FromStr>::Err;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

/// Where the node's pods are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PodSource {
    /// `kubernetes`: the API of the cluster.
    Kubernetes,
    /// `directory:PATH`: one JSON file for each pod and namespace.
    Directory(PathBuf),
}

impl FromStr for PodSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("directory", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            _ => Err(format!("`{text}` is not a pod source; write kubernetes or directory:PATH")),
        }
    }
}

impl fmt::Display for PodSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
        }
    }
}

as_text!(PodSource);

/// The control plane's URL, `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ControlPlaneUrl(Uri);

impl Default for ControlPlaneUrl {
    fn default() -> Self {
        Self(Uri::from_static("https://mesh-control.nodemesh-system.svc:15012"))
    }
}

impl FromStr for ControlPlaneUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address of a control plane; write https://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let complete = uri.scheme_str() == Some("https") && uri.port_u16().is_some();
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if complete && bare { Ok(Self(uri)) } else { Err(wrong()) }
    }
}

impl fmt::Display for ControlPlaneUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both parts were checked when it was parsed.
        let authority = self.0.authority().map_or("", http::uri::Authority::as_str);
        write!(f, "https://{authority}")
    }
}

as_text!(ControlPlaneUrl);

/// A duration, written like `5s` or `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(Duration);

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |error| format!("`{text}` is not a duration such as 5s or 1m 30s: {error}");
        humantime::parse_duration(text).map(Self).map_err(wrong)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

as_text!(HumanDuration);

/// Writes a duration as [`HumanDuration`] reads it.
pub(super) fn serialize_human_duration<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&HumanDuration(*duration))
}
