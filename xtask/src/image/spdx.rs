//! Bills of materials: SPDX 2.3 in JSON.

use std::env;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::CommandExt;

/// Something by others, or a crate of ours, that is in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    /// What its makers call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// An SPDX licence expression, if it declares one.
    pub licence: Option<String>,
    /// Its package URL, by which scanners know it.
    pub purl: String,
}

/// The document for the image `reference` whose manifest has this digest.
pub fn document(reference: &str, digest: &str, materials: &[Material]) -> Result<Vec<u8>> {
    let created = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + source_date()?).to_string();
    let mut text = serde_json::to_vec_pretty(&describe(reference, digest, materials, &created))?;
    text.push(b'\n');
    Ok(text)
}

fn describe(reference: &str, digest: &str, materials: &[Material], created: &str) -> Value {
    let (name, version) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
    let short = name.rsplit('/').next().unwrap_or(name);
    let hex = digest.trim_start_matches("sha256:");
    let image = Material {
        name: name.into(),
        version: version.into(),
        licence: None,
        purl: format!("pkg:oci/{short}@{}?repository_url={name}&tag={version}", digest.replace(':', "%3A")),
    };
    let mut packages = vec![package("SPDXRef-image", &image)];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")];
    for (number, material) in materials.iter().enumerate() {
        let id = format!("SPDXRef-{}", number + 1);
        packages.push(package(&id, material));
        relationships.push(relationship("SPDXRef-image", "CONTAINS", &id));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": reference,
        "documentNamespace": format!("https://nodemesh.io/spdx/{short}-{version}-{hex}"),
        "creationInfo": { "created": created, "creators": ["Tool: cargo-xtask-image"] },
        "packages": packages,
        "relationships": relationships,
    })
}

fn package(id: &str, material: &Material) -> Value {
    json!({
        "SPDXID": id,
        "name": material.name,
        "versionInfo": material.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": material.licence.as_deref().unwrap_or("NOASSERTION"),
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": material.purl,
        }],
    })
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// `SOURCE_DATE_EPOCH` if it is given, else when the checkout was committed: the time of a run has no place
/// here. Sources without a history are of 1970, as the files of the images are.
fn source_date() -> Result<Duration> {
    let seconds = match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds,
        Err(_) => Command::new("git")
            .args(["log", "-1", "--format=%ct"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .captured()
            .unwrap_or_else(|_| "0".into()),
    };
    let seconds = seconds.trim().parse().with_context(|| format!("{seconds:?} is no date in seconds"))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_contains_its_materials() {
        let serde = Material {
            name: "serde".into(),
            version: "1.0.0".into(),
            licence: Some("MIT OR Apache-2.0".into()),
            purl: "pkg:cargo/serde@1.0.0".into(),
        };
        let document = describe("nodemesh.io/thing:1", "sha256:00", &[serde], "2026-01-01T00:00:00Z");
        assert_eq!(document["spdxVersion"], "SPDX-2.3");
        assert_eq!(document["documentNamespace"], "https://nodemesh.io/spdx/thing-1-00");
        assert_eq!(document["packages"][0]["licenseDeclared"], "NOASSERTION");
        assert_eq!(document["packages"][1]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(document["packages"][1]["externalRefs"][0]["referenceLocator"], "pkg:cargo/serde@1.0.0");
        assert_eq!(document["relationships"][1]["relatedSpdxElement"], "SPDXRef-1");
    }
}
