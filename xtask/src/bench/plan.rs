//! What is measured, under which names.

use std::fmt;

use anyhow::{Result, ensure};

/// Resident memory of the largest proxy before any load.
pub const RSS_IDLE: &str = "agent.rss_idle";
/// The same after all of it.
pub const RSS_LOADED: &str = "agent.rss_loaded";
/// What the largest proxy grows by for each idle connection to another node.
pub const IDLE_CONNECTION: &str = "agent.kb_per_idle_connection";
/// Metrics that are not of a probe.
const OF_THE_AGENT: [&str; 3] = [RSS_IDLE, IDLE_CONNECTION, RSS_LOADED];

/// How the client's bytes get to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Directly, in plaintext.
    None,
    /// Through nodemesh.
    Mesh,
    /// Through a pair of Envoys.
    Envoy,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Mesh, Self::Envoy];

    /// All of them, each round in another order, so that what drifts on the machine hits none of them alone.
    pub fn in_turn(round: u32) -> [Self; 3] {
        let mut order = Self::ALL;
        order.rotate_left(round as usize % Self::ALL.len());
        order
    }

    /// Its name in results, and the namespace of its pods.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mesh => "mesh",
            Self::Envoy => "envoy",
        }
    }
}

/// Where the server is, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On another node.
    Cross,
    /// On the same node.
    Same,
    /// On another node, with agents that are held to HBONE.
    Hbone,
    /// On the same node, with agents that encrypt there too.
    Mtls,
    /// On another node, each request routed.
    Http,
    /// The same, as the last of a thousand routes says.
    ManyRoutes,
    /// On the same node, each request routed.
    HttpSame,
    /// On another node, each call of gRPC routed.
    Grpc,
    /// On the network of another node: the mesh leaves such connections alone, and each packet is looked at.
    Unfiled,
}

/// How agents are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agents {
    /// As they are by themselves.
    Usual,
    /// Held to HBONE.
    Hbone,
    /// To encrypt between pods of one node.
    Mtls,
}

impl Agents {
    /// Those that need a lab of their own.
    pub const UNUSUAL: [Self; 2] = [Self::Hbone, Self::Mtls];

    /// Their argument, if they need one.
    pub fn argument(self) -> Option<&'static str> {
        match self {
            Self::Usual => None,
            Self::Hbone => Some("--tunnel=hbone"),
            Self::Mtls => Some("--same-node=mtls"),
        }
    }
}

impl Place {
    /// Where there are servers.
    pub const SERVERS: [Self; 2] = [Self::Cross, Self::Same];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cross => "cross",
            Self::Same => "same",
            Self::Http => "http",
            Self::ManyRoutes => "http_1000",
            Self::HttpSame => "http_same",
            Self::Grpc => "grpc",
            Self::Hbone => "hbone",
            Self::Mtls => "mtls",
            Self::Unfiled => "unfiled",
        }
    }

    /// The agents that it is measured with.
    fn agents(self) -> Agents {
        match self {
            Self::Cross
            | Self::Same
            | Self::Http
            | Self::ManyRoutes
            | Self::HttpSame
            | Self::Grpc
            | Self::Unfiled => Agents::Usual,
            Self::Hbone => Agents::Hbone,
            Self::Mtls => Agents::Mtls,
        }
    }

    /// Name of the server's pod.
    pub fn server(self) -> &'static str {
        match self {
            Self::Cross | Self::Hbone | Self::Http | Self::ManyRoutes | Self::Grpc => "cross",
            Self::Same | Self::Mtls | Self::HttpSame => "same",
            Self::Unfiled => "unfiled",
        }
    }

    /// Whether requests are routed there, one by one.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::ManyRoutes | Self::HttpSame | Self::Grpc)
    }

    /// What is measured there.
    fn loads(self) -> &'static [Load] {
        match self {
            Self::Cross => &[
                Load::Streams(1),
                Load::Streams(8),
                Load::Requests(1),
                Load::Requests(16),
                Load::Requests(128),
                Load::HalfOfEnvoy,
                Load::Connections,
                Load::Fairness,
            ],
            Self::Same => &[
                Load::Streams(1),
                Load::Streams(8),
                Load::Requests(1),
                Load::Requests(16),
                Load::Requests(128),
                Load::Connections,
                Load::Nobody,
            ],
            Self::Http => {
                &[Load::Requests(1), Load::Requests(16), Load::Requests(128), Load::Connections, Load::Bodies]
            }
            Self::ManyRoutes => &[Load::Requests(16)],
            Self::HttpSame => &[Load::Requests(1), Load::Requests(16), Load::Requests(128)],
            Self::Grpc => &[Load::Calls(16, 1), Load::Calls(4, 32)],
            Self::Hbone | Self::Unfiled => &[Load::Streams(1), Load::Requests(16), Load::Requests(128)],
            Self::Mtls => &[Load::Streams(1), Load::Requests(16), Load::Connections],
        }
    }
}

/// One kind of load. A run of it gives several metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// That many streams of bytes, as fast as they go.
    Streams(u32),
    /// Requests over that many kept connections, as fast as they are answered.
    Requests(u32),
    /// Calls of gRPC on that many connections, with that many streams open on each.
    Calls(u32, u32),
    /// Responses of 1 MiB, over eight connections.
    Bodies,
    /// Requests at half of the rate that Envoy can do at most.
    HalfOfEnvoy,
    /// Requests on a connection each.
    Connections,
    /// A few requests a second from one pod, alone and beside a stream of bytes from another pod of the same
    /// node.
    Fairness,
    /// `connect()` where nobody is. Envoy has no say in that.
    Nobody,
}

impl Load {
    fn metrics(self) -> Vec<String> {
        match self {
            Self::Streams(1) => vec!["throughput_1".into(), "cpu_s_per_gb".into()],
            Self::Streams(count) => vec![format!("throughput_{count}")],
            Self::Requests(count) => {
                let mut metrics = ["rps", "p50", "p99"].map(|metric| format!("{metric}_{count}")).to_vec();
                metrics.extend(cpu_metric(count).map(str::to_owned));
                metrics
            }
            Self::Calls(connections, streams) => {
                CALLS.map(|metric| format!("{metric}_{connections}x{streams}")).to_vec()
            }
            Self::Bodies => vec!["throughput_bodies".into()],
            Self::HalfOfEnvoy => vec!["p99_half".into()],
            Self::Connections => vec!["conn_rate".into()],
            Self::Fairness => FAIRNESS.map(str::to_owned).to_vec(),
            Self::Nobody => NOBODY.map(str::to_owned).to_vec(),
        }
    }
}

/// Metrics of [`Load::Calls`].
pub const CALLS: [&str; 4] = ["rps", "p50", "p99", "cpu_s_per_100k"];

/// Metrics of [`Load::Fairness`].
pub const FAIRNESS: [&str; 8] = [
    "p50_alone",
    "p99_alone",
    "throughput_alone",
    "p50_beside",
    "p99_beside",
    "throughput_beside",
    "slowdown_p50",
    "kept_throughput",
];

/// Metrics of [`Load::Nobody`]: of a service that nobody is behind, and of a port that a service does not
/// have.
pub const NOBODY: [&str; 4] = ["p50_service", "max_service", "p50_port", "max_port"];

/// Name of the CPU time for 100,000 requests over so many connections, where it is measured.
pub fn cpu_metric(connections: u32) -> Option<&'static str> {
    match connections {
        16 => Some("cpu_s_per_100k"),
        128 => Some("cpu_s_per_100k_128"),
        _ => None,
    }
}

/// One load at one place.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Where the server is.
    pub place: Place,
    /// What is done to it.
    pub load: Load,
}

impl Probe {
    /// Full name of one of its metrics.
    pub fn metric(self, name: impl fmt::Display) -> String {
        match self.load {
            Load::Fairness => format!("fair.{name}"),
            Load::Nobody => format!("nobody.{name}"),
            _ => format!("{}.{name}", self.place.name()),
        }
    }

    fn metrics(self) -> Vec<String> {
        self.load.metrics().into_iter().map(|name| self.metric(name)).collect()
    }
}

/// What somebody wants to know.
pub struct Plan {
    only: Vec<String>,
}

impl Plan {
    /// Everything, or what starts with one of `only`. An error if there is no such metric.
    pub fn of(only: &[String]) -> Result<Self> {
        let plan = Self { only: only.to_vec() };
        let probes = every_probe().flat_map(Probe::metrics);
        let all: Vec<_> = probes.chain(OF_THE_AGENT.map(str::to_owned)).collect();
        for wanted in only {
            let known = all.iter().any(|metric| metric.starts_with(wanted.as_str()));
            ensure!(known, "there is no metric {wanted}; there are {}", all.join(", "));
        }
        Ok(plan)
    }

    /// Whether a metric is asked for.
    pub fn wants(&self, metric: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| metric.starts_with(wanted.as_str()))
    }

    /// The probes that it takes with some agents.
    pub fn probes(&self, agents: Agents) -> Vec<Probe> {
        every_probe()
            .filter(|probe| probe.place.agents() == agents)
            .filter(|probe| probe.metrics().iter().any(|metric| self.wants(metric)))
            .collect()
    }

    /// Whether anything is asked for that needs agents as they are.
    pub fn wants_usual(&self) -> bool {
        !self.probes(Agents::Usual).is_empty() || OF_THE_AGENT.iter().any(|metric| self.wants(metric))
    }
}

fn every_probe() -> impl Iterator<Item = Probe> {
    let places = [
        Place::Cross,
        Place::Same,
        Place::Http,
        Place::ManyRoutes,
        Place::HttpSame,
        Place::Grpc,
        Place::Unfiled,
        Place::Hbone,
        Place::Mtls,
    ];
    places.into_iter().flat_map(|place| place.loads().iter().map(move |&load| Probe { place, load }))
}

/// Unit of a metric, and whether more of it is better.
pub fn unit(metric: &str) -> (&'static str, bool) {
    let name = metric.rsplit_once('.').map_or(metric, |(_, name)| name);
    match name.split('_').next().unwrap_or(name) {
        "throughput" => ("Gbit/s", true),
        "rps" => ("requests/s", true),
        "conn" => ("connections/s", true),
        "p50" | "p99" | "max" => ("ms", false),
        "rss" => ("MB", false),
        "kb" => ("kB", false),
        "slowdown" => ("×", false),
        "kept" => ("×", true),
        _ => ("CPU s", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_measured() {
        let plan = Plan::of(&["cross.p99_16".into()]).unwrap();
        let loads: Vec<_> = plan.probes(Agents::Usual).iter().map(|probe| probe.load).collect();
        assert_eq!(loads, [Load::Requests(16)]);
        assert!(plan.wants("cross.p99_16") && !plan.wants("cross.rps_16") && !plan.wants(RSS_IDLE));
        assert_eq!(Plan::of(&[]).unwrap().probes(Agents::Usual).len(), 29);
        assert!(Agents::UNUSUAL.iter().all(|agents| Plan::of(&[]).unwrap().probes(*agents).len() == 3));
        assert!(!Plan::of(&["hbone.rps_16".into()]).unwrap().wants_usual());
        assert!(Plan::of(&["cross.nothing".into()]).is_err());
    }

    #[test]
    fn each_path_leads_some_round() {
        let first: Vec<_> = (0..3).map(|round| Path::in_turn(round)[0]).collect();
        assert_eq!(first, Path::ALL);
    }

    #[test]
    fn units_follow_the_name() {
        assert_eq!(unit("cross.rps_16"), ("requests/s", true));
        assert_eq!(unit("same.p99_128"), ("ms", false));
        assert_eq!(unit("nobody.max_service"), ("ms", false));
        assert_eq!(unit("cross.cpu_s_per_gb"), ("CPU s", false));
        assert_eq!(unit(RSS_IDLE), ("MB", false));
    }
}
