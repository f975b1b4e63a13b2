//! How answers look: a table for people, JSON and YAML for scripts.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// How an answer looks.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// JSON, with the names that the admin endpoints use
    Json,
    /// The same as YAML
    Yaml,
}

impl Format {
    /// Prints `value`, or what `table` makes of it.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
        match self {
            Self::Table => write(&table(value)),
            Self::Json => write(&(serde_json::to_string_pretty(value)? + "\n")),
            Self::Yaml => write(&serde_saphyr::to_string(value)?),
        }
    }
}

/// Writes to standard output. A reader that has had enough, such as `head`, is no error.
pub fn write(text: &str) -> Result<()> {
    Ok(mesh_log::write(text)?)
}

/// Rows under a heading, each column as wide as its widest cell. An empty cell shows as `-`.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with only its heading.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.rows.push(cells.collect());
    }

    /// The table, or a line that says it is empty.
    pub fn render(&self) -> String {
        if self.rows.len() == 1 {
            return "none\n".to_owned();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Seconds as people say them: `59s`, `2m5s`, `3h20m`, `2d1h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// How long from now until a time given in seconds since 1970.
pub fn until(time: i64) -> String {
    let end = u64::try_from(time).unwrap_or_default();
    match (SystemTime::UNIX_EPOCH + Duration::from_secs(end)).duration_since(SystemTime::now()) {
        Ok(left) => age(left.as_secs()),
        Err(_) => "expired".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_date_is_called_expired() {
        assert_eq!(until(1), "expired");
        assert_eq!(until(-1), "expired");
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(&["NAME", "NODE"]);
        table.row(["a-long-name".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME         NODE\na-long-name  -\n");
        assert_eq!(Table::new(&["NAME"]).render(), "none\n");
    }

    #[test]
    fn ages_have_two_units() {
        let shown = [0, 59, 125, 12_000, 176_400].map(age);
        assert_eq!(shown, ["0s", "59s", "2m5s", "3h20m", "2d1h"]);
    }
}
