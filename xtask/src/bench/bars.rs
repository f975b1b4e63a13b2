//! What the mesh is held to, by metric. A bar that is missed is shown and fails nothing: it depends on the
//! machine.

use super::plan::{IDLE_CONNECTION, RSS_IDLE, unit};

/// Resident memory that an idle agent may have, in megabytes.
const IDLE_MEMORY: f64 = 10.0;
/// And for each idle connection, in kilobytes.
const IDLE_CONNECTION_MEMORY: f64 = 6.0;

/// One demand on the mesh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Its value over Envoy's, where more is better.
    AtLeast(f64),
    /// Its value over Envoy's, where less is better.
    AtMost(f64),
    /// Its value itself, where less is better.
    Within(f64),
    /// Its value itself, where more is better.
    Reaches(f64),
    /// Its value over that of no mesh, where more is better.
    KeepsOfNone(f64),
    /// Its value over that of no mesh, where less is better.
    WithinOfNone(f64),
}

/// What was measured of the mesh.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// The median.
    pub value: Option<f64>,
    /// The same over Envoy's.
    pub to_envoy: Option<f64>,
    /// The same over that of no mesh.
    pub to_none: Option<f64>,
}

impl Bar {
    /// The demand on a metric: never worse than Envoy, and clearly better where that is the point of the
    /// design.
    pub fn of(metric: &str) -> Self {
        match metric {
            RSS_IDLE => return Self::Within(IDLE_MEMORY),
            IDLE_CONNECTION => return Self::Within(IDLE_CONNECTION_MEMORY),
            _ => {}
        }
        let (place, name) = metric.split_once('.').unwrap_or(("", metric));
        let own = match (place, name) {
            ("cross", "throughput_1" | "throughput_8") | ("hbone", "rps_16") => Some(Self::AtLeast(1.5)),
            ("cross", "rps_16") => Some(Self::AtLeast(1.7)),
            ("cross", "rps_128") => Some(Self::AtLeast(2.0)),
            ("cross", "p99_128") => Some(Self::AtMost(0.15)),
            ("cross", "p99_half" | "cpu_s_per_100k") => Some(Self::AtMost(0.5)),
            ("cross", "conn_rate") => Some(Self::AtLeast(5.0)),
            ("cross", "cpu_s_per_gb") => Some(Self::AtMost(0.65)),
            ("cross", "cpu_s_per_100k_128") => Some(Self::AtMost(0.35)),
            // Past bridge, routing and firewall it is faster than without a mesh.
            ("same", "throughput_1" | "throughput_8") => Some(Self::KeepsOfNone(1.1)),
            ("same", "rps_1" | "rps_16" | "rps_128") => Some(Self::KeepsOfNone(1.05)),
            ("same", "conn_rate") => Some(Self::KeepsOfNone(1.0)),
            ("same" | "unfiled", name) if name.starts_with("p50_") || name.starts_with("p99_") => {
                Some(Self::WithinOfNone(1.05))
            }
            ("unfiled", _) if unit(metric).1 => Some(Self::KeepsOfNone(0.97)),
            ("http" | "http_same" | "grpc", name) => Self::of_http(place, name),
            ("hbone", "throughput_1") => Some(Self::AtLeast(1.2)),
            ("hbone", "rps_128") => Some(Self::AtLeast(1.6)),
            // Init containers, happy eyeballs and drivers with several hosts wait for it.
            ("nobody", _) => Some(Self::Within(1.0)),
            ("fair", "p99_beside") => Some(Self::AtMost(0.1)),
            ("fair", "slowdown_p50") => Some(Self::Within(4.0)),
            ("fair", "kept_throughput") => Some(Self::Reaches(0.8)),
            _ => None,
        };
        own.unwrap_or_else(|| Self::usual(metric, name))
    }

    /// What routing each request is held to, beside Envoy's routers.
    fn of_http(place: &str, name: &str) -> Option<Self> {
        let bar = match (place, name) {
            ("http", "rps_16") => Self::AtLeast(2.5),
            ("http", "rps_128") => Self::AtLeast(2.2),
            ("http", "p50_1") | ("http_same", "cpu_s_per_100k") => Self::AtMost(0.45),
            ("http", "cpu_s_per_100k_128") | ("grpc", "p99_4x32") => Self::AtMost(0.35),
            ("http", "cpu_s_per_100k") | ("grpc", "cpu_s_per_100k_16x1") => Self::AtMost(0.3),
            ("http", "p99_128") | ("grpc", "p99_16x1") | ("http_same", "cpu_s_per_100k_128") => {
                Self::AtMost(0.5)
            }
            ("http_same", "rps_16") => Self::AtLeast(1.8),
            ("http_same", "rps_128") => Self::AtLeast(1.4),
            ("http_same", "p99_128") => Self::AtMost(0.8),
            ("grpc", "rps_16x1") => Self::AtLeast(2.4),
            ("grpc", "rps_4x32") => Self::AtLeast(3.5),
            ("grpc", "cpu_s_per_100k_4x32") => Self::AtMost(0.2),
            _ => return None,
        };
        Some(bar)
    }

    fn usual(metric: &str, name: &str) -> Self {
        let (_, more_is_better) = unit(metric);
        match name {
            "cpu_s_per_100k" => Self::AtMost(0.7),
            // With one request under way at a time this is a latency, and its bar is a latency's: most of it
            // is the kernel waking one process after the other, whoever they are.
            "rps_1" => Self::AtLeast(1.0),
            name if name.starts_with("rps_") => Self::AtLeast(1.3),
            _ if more_is_better => Self::AtLeast(1.0),
            _ => Self::AtMost(1.0),
        }
    }

    /// The demand and whether it is met; nothing of the second where what it is about was not measured.
    pub fn text(self, unit: &str, measured: Measured) -> String {
        let Measured { value, to_envoy, to_none } = measured;
        let (demand, met) = match self {
            Self::AtLeast(bar) => (format!("≥ {bar:.1}"), to_envoy.map(|ratio| ratio >= bar)),
            Self::AtMost(bar) => (format!("≤ {bar}"), to_envoy.map(|ratio| ratio <= bar)),
            Self::Within(bar) => (format!("≤ {bar:.0} {unit}"), value.map(|value| value <= bar)),
            Self::Reaches(bar) => (format!("≥ {bar} {unit}"), value.map(|value| value >= bar)),
            Self::KeepsOfNone(bar) => (format!("≥ {bar} of none"), to_none.map(|ratio| ratio >= bar)),
            Self::WithinOfNone(bar) => (format!("≤ {bar} of none"), to_none.map(|ratio| ratio <= bar)),
        };
        match met {
            Some(true) => demand + " met",
            Some(false) => demand + " missed",
            None => demand,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_its_bar() {
        assert_eq!(Bar::of("cross.rps_16"), Bar::AtLeast(1.7));
        assert_eq!(Bar::of("hbone.rps_16"), Bar::AtLeast(1.5));
        assert_eq!(Bar::of("same.rps_16"), Bar::KeepsOfNone(1.05));
        assert_eq!(Bar::of("same.p99_1"), Bar::WithinOfNone(1.05));
        assert_eq!(Bar::of("cross.rps_1"), Bar::AtLeast(1.0));
        assert_eq!(Bar::of("same.conn_rate"), Bar::KeepsOfNone(1.0));
        assert_eq!(Bar::of("same.throughput_8"), Bar::KeepsOfNone(1.1));
        assert_eq!(Bar::of("unfiled.rps_16"), Bar::KeepsOfNone(0.97));
        assert_eq!(Bar::of("same.cpu_s_per_100k"), Bar::AtMost(0.7));
        assert_eq!(Bar::of("same.cpu_s_per_gb"), Bar::AtMost(1.0));
        assert_eq!(Bar::of("cross.p99_128"), Bar::AtMost(0.15));
        assert_eq!(Bar::of("nobody.max_port"), Bar::Within(1.0));
        assert_eq!(Bar::of(RSS_IDLE), Bar::Within(10.0));
    }

    #[test]
    fn tells_whether_it_is_met() {
        let of = |value, to_envoy, to_none| Measured { value, to_envoy, to_none };
        assert_eq!(Bar::AtLeast(1.3).text("ms", of(None, Some(1.3), None)), "≥ 1.3 met");
        assert_eq!(Bar::AtMost(0.15).text("ms", of(Some(0.1), Some(0.71), None)), "≤ 0.15 missed");
        assert_eq!(Bar::Within(15.0).text("MB", of(Some(16.0), Some(0.2), None)), "≤ 15 MB missed");
        assert_eq!(
            Bar::KeepsOfNone(0.97).text("ms", of(None, Some(2.0), Some(0.9))),
            "≥ 0.97 of none missed"
        );
        assert_eq!(Bar::WithinOfNone(1.03).text("ms", of(None, None, Some(1.02))), "≤ 1.03 of none met");
        assert_eq!(Bar::AtLeast(1.0).text("ms", of(Some(9.0), None, None)), "≥ 1.0");
    }
}
