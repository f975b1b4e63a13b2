//! What the mesh is held to, by metric. A bar that is missed is shown and fails nothing: it depends on the machine.

use super::plan::{RSS_IDLE, unit};

/// Resident memory that an idle agent may have, in megabytes.
const IDLE_MEMORY: f64 = 15.0;

/// One demand on the mesh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Its value over Envoy's, where more is better.
    AtLeast(f64),
    /// Its value over Envoy's, where less is better.
    AtMost(f64),
    /// Its value itself, where less is better.
    Within(f64),
}

impl Bar {
    /// The demand on a metric: never worse than Envoy, and clearly better where that is the point of the design.
    pub fn of(metric: &str) -> Self {
        if metric == RSS_IDLE {
            return Self::Within(IDLE_MEMORY);
        }
        let (_, more_is_better) = unit(metric);
        match metric.rsplit_once('.').map_or(metric, |(_, name)| name) {
            "conn_rate" => Self::AtLeast(3.0),
            "cpu_s_per_100k" => Self::AtMost(0.7),
            // With one request under way at a time this is a latency, and its bar is a latency's: most of it is the
            // kernel waking one process after the other, whoever they are.
            "rps_1" => Self::AtLeast(1.0),
            name if name.starts_with("rps_") => Self::AtLeast(1.3),
            _ if more_is_better => Self::AtLeast(1.0),
            _ => Self::AtMost(1.0),
        }
    }

    /// The demand and whether it is met; nothing of the second where the value or ratio was not measured.
    pub fn text(self, value: Option<f64>, ratio: Option<f64>) -> String {
        let (demand, met) = match self {
            Self::AtLeast(bar) => (format!("≥ {bar:.1}"), ratio.map(|ratio| ratio >= bar)),
            Self::AtMost(bar) => (format!("≤ {bar:.1}"), ratio.map(|ratio| ratio <= bar)),
            Self::Within(bar) => (format!("≤ {bar:.0} MB"), value.map(|value| value <= bar)),
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
        assert_eq!(Bar::of("cross.rps_16"), Bar::AtLeast(1.3));
        assert_eq!(Bar::of("cross.rps_1"), Bar::AtLeast(1.0));
        assert_eq!(Bar::of("same.conn_rate"), Bar::AtLeast(3.0));
        assert_eq!(Bar::of("cross.throughput_8"), Bar::AtLeast(1.0));
        assert_eq!(Bar::of("cross.cpu_s_per_100k"), Bar::AtMost(0.7));
        assert_eq!(Bar::of("cross.cpu_s_per_gb"), Bar::AtMost(1.0));
        assert_eq!(Bar::of("cross.p99_128"), Bar::AtMost(1.0));
        assert_eq!(Bar::of(RSS_IDLE), Bar::Within(15.0));
    }

    #[test]
    fn tells_whether_it_is_met() {
        assert_eq!(Bar::AtLeast(1.3).text(None, Some(1.3)), "≥ 1.3 met");
        assert_eq!(Bar::AtMost(0.7).text(Some(0.1), Some(0.71)), "≤ 0.7 missed");
        assert_eq!(Bar::Within(15.0).text(Some(16.0), Some(0.2)), "≤ 15 MB missed");
        assert_eq!(Bar::AtLeast(1.0).text(Some(9.0), None), "≥ 1.0");
    }
}
