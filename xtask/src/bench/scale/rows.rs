//! The results, and what is demanded.

use serde_json::{Value, json};

/// Most that a metric may be.
const BARS: [(&str, f64); 4] = [
    ("scale.control_rss", 500.0),
    ("scale.agent_rss", 60.0),
    ("scale.agent_rss_churned", 60.0),
    ("scale.change_p99_ms", 1000.0),
];

/// Values in the order in which they were measured.
#[derive(Default)]
pub struct Rows(Vec<(String, &'static str, f64)>);

impl Rows {
    /// Adds a value with its unit.
    pub fn add(&mut self, metric: &str, unit: &'static str, value: f64) {
        say!("{metric} {value:.1} {unit}");
        self.0.push((metric.to_owned(), unit, value));
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("\n{:<28}  {:>10}  {:<12}  bar\n", "metric", "value", "unit");
        for (metric, unit, value) in &self.0 {
            let bar = bar(metric).map_or_else(String::new, |bar| {
                format!("≤ {bar:.0} {}", if *value <= bar { "met" } else { "missed" })
            });
            text += format!("{metric:<28}  {value:>10.1}  {unit:<12}  {bar}").trim_end();
            text += "\n";
        }
        text
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        self.0
            .iter()
            .map(|(metric, unit, value)| json!({"metric": metric, "unit": unit, "value": value}))
            .collect()
    }
}

fn bar(metric: &str) -> Option<f64> {
    BARS.iter().find(|(name, _)| *name == metric).map(|(_, bar)| *bar)
}
