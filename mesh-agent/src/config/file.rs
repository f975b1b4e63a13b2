//! The configuration file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::given_settings::Settings;

/// Least similarity of a name that is proposed (Jaro-Winkler, 1 is equal).
const ALIKE: f64 = 0.8;

/// Why a configuration file can't be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It can't be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// It is not a YAML mapping, or a value is not of its setting's kind.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// It has a key that is no setting.
    #[error("{}: unknown key `{key}`{}", path.display(), proposal(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The setting that was probably meant.
        nearest: Option<String>,
    },
}

/// Reads the settings in a file. Errors: see [`ConfigFileError`].
pub(super) fn read_settings(path: &Path) -> Result<Settings, ConfigFileError> {
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigFileError::Unreadable { path: path.to_owned(), error })?;
    parse_settings(path, &text)
}

pub(super) fn parse_settings(path: &Path, text: &str) -> Result<Settings, ConfigFileError> {
    let malformed = |error: serde_saphyr::Error| ConfigFileError::Malformed {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let said: Option<Map<String, Value>> = serde_saphyr::from_str(text).map_err(malformed)?;
    let known = known_keys();
    if let Some(key) = said.iter().flat_map(Map::keys).find(|key| !known.contains(key)) {
        let nearest = nearest(key, &known);
        return Err(ConfigFileError::UnknownKey { path: path.to_owned(), key: key.clone(), nearest });
    }
    let settings: Option<Settings> = serde_saphyr::from_str(text).map_err(malformed)?;
    Ok(settings.unwrap_or_default())
}

/// Returns the keys of all settings.
fn known_keys() -> Vec<String> {
    match serde_json::to_value(Settings::default()) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(key, _)| key).collect(),
        // A struct of options is an object.
        _ => Vec::new(),
    }
}

fn nearest(key: &str, known: &[String]) -> Option<String> {
    let likeness = |candidate: &String| strsim::jaro_winkler(&key.to_lowercase(), &candidate.to_lowercase());
    known
        .iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate.clone())
}

fn proposal(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"))
}
