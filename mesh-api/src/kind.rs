//! The kinds that the mesh knows, in one table: by group and name, with what is done with their objects.
//!
//! Manifests, the compiler's objects, the watches of the cluster, conditions, events and `meshctl` go by it.
//! What can't, the chart and `docs/control-plane.md`, is held to it by `mesh-control/tests/kinds.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use self::Scope::{Cluster, Namespaced};
use self::Treatment::{
    Consulted, Followed, FromManifests, NotLookedFor, NotRead, ReadNotUsed, Used, UsedIfDefined,
};

/// What the mesh knows of a kind. Kinds are sorted as lists of them are: by plural, then by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownKind {
    /// What its objects are called in the API's paths and in rules of RBAC.
    pub plural: &'static str,
    /// Values of `apiVersion` under which it is served, all of one group; the preferred one first.
    pub api_versions: &'static [&'static str],
    /// The name that a manifest's `kind` has. Another group may have a kind of the same name.
    pub name: &'static str,
    /// Where its objects live.
    pub scope: Scope,
    /// What is done with them.
    pub treatment: Treatment,
    /// The kind, if the mesh reads it.
    pub kind: Option<Kind>,
}

/// Where the objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In no namespace.
    Cluster,
    /// In one.
    Namespaced,
}

/// What is done with the objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// The mesh is made of them. Every cluster has the kind.
    Followed,
    /// They are read in manifests alone; in a cluster the pods carry all that matters of them.
    FromManifests,
    /// They are written for the mesh, which does what they say. The chart brings the kind's definition, and
    /// conditions say what became of each.
    Used,
    /// The same, but the definition is others', and what became of each is said for each of its parents.
    UsedIfDefined,
    /// Others of the mesh count by what they say. They have no status, and the definition is others'.
    Consulted,
    /// They are written for a mesh, and this one does nothing with them yet: conditions say so, and what is
    /// wrong in each. The definition is others'.
    ReadNotUsed,
    /// They are written for a mesh, and this one does not read them: an event says so to each.
    NotRead,
    /// The same, but said only of those in manifests: no cluster is asked for them.
    NotLookedFor,
}

/// Makes [`Kind`] and [`KNOWN_KINDS`] of the table.
macro_rules! kinds {
    (
        read { $($(#[$doc:meta])* $kind:ident = $known:expr;)* }
        not_read { $($unread:expr;)* }
    ) => {
        /// A kind of object that the mesh reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];
        }

        /// Every kind that the mesh knows: first those that it reads, in the order of [`Kind`].
        pub const KNOWN_KINDS: &[KnownKind] = &[
            $(KnownKind { kind: Some(Kind::$kind), ..$known },)*
            $($unread,)*
        ];
    };
}

const V1: &[&str] = &["v1"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const NETWORKING: &[&str] =
    &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const TELEMETRY: &[&str] = &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];
const EXTENSIONS: &[&str] = &["extensions.istio.io/v1alpha1"];
const GATEWAY: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1beta1",
    "gateway.networking.k8s.io/v1alpha3",
    "gateway.networking.k8s.io/v1alpha2",
];
const ROUTES: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
const GRPC_ROUTES: &[&str] = &["gateway.networking.k8s.io/v1"];

kinds! {
    read {
        /// Core `Namespace`.
        Namespace = known("Namespace", "namespaces", V1, Cluster, Followed);
        /// Core `Node`.
        Node = known("Node", "nodes", V1, Cluster, Followed);
        /// Core `ServiceAccount`.
        ServiceAccount = known("ServiceAccount", "serviceaccounts", V1, Namespaced, FromManifests);
        /// Core `Pod`.
        Pod = known("Pod", "pods", V1, Namespaced, Followed);
        /// `apps` `Deployment`.
        Deployment = known("Deployment", "deployments", &["apps/v1"], Namespaced, FromManifests);
        /// Core `Service`.
        Service = known("Service", "services", V1, Namespaced, Followed);
        /// `discovery.k8s.io` `EndpointSlice`.
        EndpointSlice =
            known("EndpointSlice", "endpointslices", &["discovery.k8s.io/v1"], Namespaced, Followed);
        /// Istio `AuthorizationPolicy`.
        AuthorizationPolicy =
            known("AuthorizationPolicy", "authorizationpolicies", SECURITY, Namespaced, Used);
        /// Istio `PeerAuthentication`.
        PeerAuthentication = known("PeerAuthentication", "peerauthentications", SECURITY, Namespaced, Used);
        /// Istio `DestinationRule`.
        DestinationRule = known("DestinationRule", "destinationrules", NETWORKING, Namespaced, Used);
        /// Istio `ServiceEntry`.
        ServiceEntry = known("ServiceEntry", "serviceentries", NETWORKING, Namespaced, ReadNotUsed);
        /// Istio `VirtualService`.
        VirtualService = known("VirtualService", "virtualservices", NETWORKING, Namespaced, Used);
        /// The Gateway API's `HTTPRoute`.
        HTTPRoute = known("HTTPRoute", "httproutes", ROUTES, Namespaced, UsedIfDefined);
        /// The Gateway API's `GRPCRoute`.
        GRPCRoute = known("GRPCRoute", "grpcroutes", GRPC_ROUTES, Namespaced, UsedIfDefined);
        /// The Gateway API's `ReferenceGrant`.
        ReferenceGrant = known("ReferenceGrant", "referencegrants", ROUTES, Namespaced, Consulted);
    }
    // Of Istio's kinds and the Gateway API's those that say something about a mesh's connections.
    not_read {
        known("Gateway", "gateways", NETWORKING, Namespaced, NotRead);
        known("WorkloadEntry", "workloadentries", NETWORKING, Namespaced, NotRead);
        known("WorkloadGroup", "workloadgroups", NETWORKING, Namespaced, NotRead);
        known("Sidecar", "sidecars", NETWORKING, Namespaced, NotRead);
        known("EnvoyFilter", "envoyfilters", &["networking.istio.io/v1alpha3"], Namespaced, NotRead);
        known("ProxyConfig", "proxyconfigs", &["networking.istio.io/v1beta1"], Namespaced, NotRead);
        known("RequestAuthentication", "requestauthentications", SECURITY, Namespaced, NotRead);
        known("Telemetry", "telemetries", TELEMETRY, Namespaced, NotRead);
        known("WasmPlugin", "wasmplugins", EXTENSIONS, Namespaced, NotRead);
        known("TrafficExtension", "trafficextensions", EXTENSIONS, Namespaced, NotLookedFor);
        known("Gateway", "gateways", GATEWAY, Namespaced, NotRead);
        known("TCPRoute", "tcproutes", GATEWAY, Namespaced, NotRead);
    }
}

const fn known(
    name: &'static str,
    plural: &'static str,
    api_versions: &'static [&'static str],
    scope: Scope,
    treatment: Treatment,
) -> KnownKind {
    KnownKind { plural, api_versions, name, scope, treatment, kind: None }
}

impl KnownKind {
    /// The API group; empty for the core group.
    pub fn group(&self) -> &'static str {
        api_group(self.api_versions[0])
    }

    /// The name that its definition has in a cluster.
    pub fn crd_name(&self) -> String {
        format!("{}.{}", self.plural, self.group())
    }
}

impl Kind {
    /// Returns its row of the table.
    pub fn table_row(self) -> &'static KnownKind {
        &KNOWN_KINDS[self as usize]
    }

    /// Returns the kinds that are treated so.
    pub fn with_treatment(treatment: Treatment) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| kind.table_row().treatment == treatment)
    }

    /// Whether people write it for a mesh, so that the mesh writes its status.
    pub fn is_policy(self) -> bool {
        matches!(self.table_row().treatment, Used | UsedIfDefined | ReadNotUsed)
    }

    /// Returns the kinds for which [`Kind::is_policy`] holds.
    pub fn policies() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.is_policy())
    }

    /// Whether it is one of the Gateway API's routes, whose status is by parents.
    pub fn is_route(self) -> bool {
        self.table_row().treatment == UsedIfDefined
    }

    /// The name that a manifest's `kind` has.
    pub fn as_str(self) -> &'static str {
        self.table_row().name
    }

    /// Values of `apiVersion` under which the kind is served; the preferred one first.
    pub fn api_versions(self) -> &'static [&'static str] {
        self.table_row().api_versions
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.table_row().scope == Namespaced
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What tells one object from every other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds that have none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// The kind that a manifest with this `apiVersion` and `kind` is of, whichever version of its group that is.
pub fn find_kind(api_version: &str, name: &str) -> Option<&'static KnownKind> {
    KNOWN_KINDS.iter().find(|known| known.name == name && known.group() == api_group(api_version))
}

/// Whether the API group of `api_version` is one of Istio's.
pub(crate) fn is_istio_group(api_version: &str) -> bool {
    api_version.split('/').next().is_some_and(|group| group.ends_with(".istio.io"))
}

/// The group of an `apiVersion`; empty for the core group.
pub(crate) fn api_group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn group_and_name_tell_every_kind_from_every_other() {
        for known in KNOWN_KINDS {
            assert!(
                known.api_versions.iter().all(|version| api_group(version) == known.group()),
                "{known:?}"
            );
            assert_eq!(find_kind(known.api_versions[0], known.name), Some(known));
        }
        let [istio, api] = ["networking.istio.io/v1", "gateway.networking.k8s.io/v1"]
            .map(|version| find_kind(version, "Gateway").expect("both have one").crd_name());
        assert_eq!(
            (istio.as_str(), api.as_str()),
            ("gateways.networking.istio.io", "gateways.gateway.networking.k8s.io")
        );
        assert_eq!(find_kind("serving.knative.dev/v1", "Service"), None);
    }

    #[test]
    fn what_the_table_says_of_a_kind_is_said_of_that_kind() {
        for kind in Kind::ALL {
            assert_eq!(
                (kind.table_row().kind, kind.table_row().name),
                (Some(kind), format!("{kind:?}").as_str())
            );
            let is_read = !matches!(kind.table_row().treatment, NotRead | NotLookedFor);
            assert!(is_read, "{kind} has a reader, and the table says that it is not read");
        }
        let unread = KNOWN_KINDS.iter().filter(|known| known.kind.is_none());
        assert!(unread.into_iter().all(|known| matches!(known.treatment, NotRead | NotLookedFor)));
    }

    /// Messages say `Kind namespace/name`, and what is found is joined by that: if two kinds that are read
    /// are to share a name, `Display` has to tell their groups first.
    #[test]
    fn no_two_kinds_that_are_read_are_called_the_same_in_messages() {
        let names: BTreeSet<String> = Kind::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
