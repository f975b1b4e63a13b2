//! The results: a table for people, JSON for scripts.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::bars::{Bar, Measured};
use super::plan::{Path, unit};

/// Values as they come in, each metric in the order in which it was first measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    metric: String,
    values: BTreeMap<Path, Vec<f64>>,
}

/// Least, middle and greatest of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Report {
    /// Adds one value.
    pub fn add(&mut self, metric: &str, path: Path, value: f64) {
        let known = self.rows.iter().position(|row| row.metric == metric);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row { metric: metric.to_owned(), values: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[index].values.entry(path).or_default().push(value);
    }

    /// Medians, in brackets least and greatest, the mesh's ratios to the others, and what is demanded of it.
    pub fn table(&self) -> String {
        let heading =
            ["metric", "unit", "none", "mesh", "envoy", "mesh/none", "mesh/envoy", "bar"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(heading).chain(self.rows.iter().map(Row::cells)).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let mut text = String::from(
            "\nMedians (least–greatest). CUBIC everywhere; bars are ratios to Envoy unless they say otherwise.\n",
        );
        for row in &rows {
            let cells: Vec<_> =
                row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column))).collect();
            text.extend([cells.join("  ").trim_end(), "\n"]);
        }
        text
    }

    /// The same with the machine that it was measured on.
    pub fn json(&self) -> Result<Value> {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        Ok(json!({"machine": machine()?, "rows": rows}))
    }
}

impl Row {
    fn spread(&self, path: Path) -> Option<Spread> {
        Spread::of(self.values.get(&path)?)
    }

    fn ratio(&self, to: Path) -> Option<f64> {
        let (mesh, other) = (self.spread(Path::Mesh)?.median, self.spread(to)?.median);
        (other > 0.0).then(|| mesh / other)
    }

    fn cells(&self) -> [String; 8] {
        let spread = |path| self.spread(path).map_or_else(|| "-".into(), Spread::text);
        let ratio = |to| self.ratio(to).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        let measured = Measured {
            value: self.spread(Path::Mesh).map(|spread| spread.median),
            to_envoy: self.ratio(Path::Envoy),
            to_none: self.ratio(Path::None),
        };
        [
            self.metric.clone(),
            unit(&self.metric).0.into(),
            spread(Path::None),
            spread(Path::Mesh),
            spread(Path::Envoy),
            ratio(Path::None),
            ratio(Path::Envoy),
            Bar::of(&self.metric).text(unit(&self.metric).0, measured),
        ]
    }

    fn json(&self) -> Value {
        let (unit, more_is_better) = unit(&self.metric);
        let mut paths = Map::new();
        for path in Path::ALL {
            if let Some(Spread { min, median, max }) = self.spread(path) {
                paths.insert(path.name().into(), json!({"min": min, "median": median, "max": max}));
            }
        }
        let mut ratios = Map::new();
        for to in [Path::None, Path::Envoy] {
            if let Some(ratio) = self.ratio(to) {
                ratios.insert(format!("mesh/{}", to.name()), json!(ratio));
            }
        }
        let better = if more_is_better { "higher" } else { "lower" };
        json!({"metric": self.metric, "unit": unit, "better": better, "paths": paths, "ratio": ratios})
    }
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { min, median, max })
    }

    fn text(self) -> String {
        let digits = if self.median >= 1000.0 {
            0
        } else if self.median >= 10.0 {
            1
        } else {
            3
        };
        let Self { min, median, max } = self;
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    }
}

fn machine() -> Result<Value> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("can't read {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(json!({
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease")?.trim(),
        "congestion_control": "cubic",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let mut report = Report::default();
        for (path, values) in [(Path::None, [100.0, 90.0, 500.0]), (Path::Mesh, [50.0, 40.0, 60.0])] {
            for value in values {
                report.add("cross.rps_16", path, value);
            }
        }
        let row = report.rows[0].json();
        assert_eq!(row["better"], "higher");
        assert_eq!(row["paths"]["none"], json!({"min": 90.0, "median": 100.0, "max": 500.0}));
        assert_eq!(row["ratio"], json!({"mesh/none": 0.5}));
        assert!(report.table().contains("50.0 (40.0–60.0)"));
    }

    #[test]
    fn an_even_count_has_its_median_between() {
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
