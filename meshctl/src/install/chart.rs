//! The chart that this program was built with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Path below the chart, and content.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// The chart as files, in a directory that goes away with the answer.
pub fn unpack() -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("meshctl-chart-")
        .tempdir()
        .context("can't make a directory for the chart; TMPDIR says where")?;
    for (name, content) in FILES {
        write(&directory.path().join(name), content)
            .with_context(|| format!("can't write {name} of the chart"))?;
    }
    Ok(directory)
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_there_as_it_was_built_in() {
        let chart = unpack().unwrap();
        let description = fs::read_to_string(chart.path().join("Chart.yaml")).unwrap();
        assert!(description.contains("name: nodemesh"), "{description}");
        assert!(chart.path().join("templates").is_dir());
    }
}
