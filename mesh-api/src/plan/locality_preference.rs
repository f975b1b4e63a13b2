//! Which endpoints a client prefers, by the localities of both.

use std::sync::Arc;

use super::field_parsing::{self, Invalid};
use crate::wire::workload as wire;
use crate::wire::workload::load_balancing::{Mode, Scope};

/// Where a workload runs. Unknown parts are empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Network.
    pub network: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
    /// Node.
    pub node: Arc<str>,
}

impl Locality {
    pub(super) fn of(from: &wire::Workload) -> Self {
        let locality = from.locality.as_ref();
        let part = |select: fn(&wire::Locality) -> &str| locality.map_or("", select).into();
        Self {
            network: from.network.as_str().into(),
            cluster: from.cluster_id.as_str().into(),
            region: part(|locality| &locality.region),
            zone: part(|locality| &locality.zone),
            subzone: part(|locality| &locality.subzone),
            node: from.node.as_str().into(),
        }
    }

    fn shares(&self, other: &Self, scope: Scope) -> bool {
        match scope {
            Scope::UnspecifiedScope => true,
            Scope::Region => self.region == other.region,
            Scope::Zone => self.zone == other.zone,
            Scope::Subzone => self.subzone == other.subzone,
            Scope::Node => self.node == other.node,
            Scope::Cluster => self.cluster == other.cluster,
            Scope::Network => self.network == other.network,
        }
    }
}

/// How a service prefers endpoints by locality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalityPreference {
    /// Any endpoint will do.
    None,
    /// Endpoints that share all of these scopes with the client; no others.
    Strict(Box<[Scope]>),
    /// Endpoints that share most of these scopes, counted up to the first that differs.
    Failover(Box<[Scope]>),
    /// No endpoint: the address that the client used.
    Passthrough,
}

impl LocalityPreference {
    pub(super) fn of(from: &wire::LoadBalancing) -> Result<Self, Invalid> {
        let scopes = from
            .routing_preference
            .iter()
            .map(|scope| field_parsing::parse_enum("routing_preference", *scope));
        let scopes = scopes.collect::<Result<Box<[Scope]>, _>>()?;
        Ok(match field_parsing::parse_enum("load_balancing.mode", from.mode)? {
            Mode::UnspecifiedMode => Self::None,
            Mode::Strict => Self::Strict(scopes),
            Mode::Failover => Self::Failover(scopes),
            Mode::Passthrough => Self::Passthrough,
        })
    }

    /// Returns the preferred candidates, in their order.
    pub(super) fn filter_preferred<T>(
        &self,
        client: &Locality,
        candidates: Vec<T>,
        locality: impl Fn(&T) -> &Locality,
    ) -> Vec<T> {
        let (scopes, wanted) = match self {
            Self::None | Self::Passthrough => return candidates,
            Self::Strict(scopes) => (scopes, Some(Rank::full(scopes))),
            Self::Failover(scopes) => (
                scopes,
                candidates.iter().map(|candidate| Rank::of(scopes, client, locality(candidate))).max(),
            ),
        };
        let kept = |candidate: &T| Some(Rank::of(scopes, client, locality(candidate))) == wanted;
        candidates.into_iter().filter(kept).collect()
    }
}

/// How much two localities have in common. A network as first scope weighs more than all others together: if
/// it differs the others still count, but below everything in the client's own network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    network: bool,
    shared: usize,
}

impl Rank {
    fn of(scopes: &[Scope], client: &Locality, endpoint: &Locality) -> Self {
        let (network, rest) = match scopes {
            [Scope::Network, rest @ ..] => (client.shares(endpoint, Scope::Network), rest),
            all => (true, all),
        };
        Self { network, shared: rest.iter().take_while(|scope| client.shares(endpoint, **scope)).count() }
    }

    fn full(scopes: &[Scope]) -> Self {
        Self { network: true, shared: scopes.len() - usize::from(scopes.first() == Some(&Scope::Network)) }
    }
}
