//! Container images without a daemon: an OCI image layout in one tar file.
//!
//! ```ignore
//! let mut layer = Layer::new();
//! layer.file("usr/bin/thing", 0o755, &fs::read(program)?)?;
//! let config = Config { entrypoint: vec!["/usr/bin/thing".into()], ..Config::default() };
//! oci::write(Path::new("target/images/thing.tar"), "nodemesh.io/thing:0.1.0", &[layer], &config)?;
//! ```
//!
//! The same input gives the same bytes, and so the same digest: no clock, no user and no order of a directory
//! gets in. `ctr -n k8s.io images import`, `docker load` (of Docker 25 and later), `kind load image-archive`
//! and `skopeo copy oci-archive:…` take such a file. Layers are not compressed: the file goes to a container
//! runtime on the same machine, which would have to inflate them again; a tool that pushes to a registry
//! compresses on its own.

mod config;
mod digest;
mod layer;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub use config::Config;
pub use digest::{Digest, hex};
pub use layer::Layer;

use layer::add_file;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes the image `name` (with its tag: `nodemesh.io/pause:1`) to the tar file `path`, whose directory is
/// made.
///
/// An error means that a file could not be written; `path` then has its old content or none.
pub fn write(path: &Path, name: &str, layers: &[Layer], config: &Config) -> Result<()> {
    let bytes = archive(name, layers, config).with_context(|| format!("can't put image {name} together"))?;
    let directory = path.parent().context("an image needs a directory to go to")?;
    let fresh = path.with_extension("tar.new");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&fresh, bytes))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("can't write {}", path.display()))
}

fn archive(name: &str, layers: &[Layer], config: &Config) -> Result<Vec<u8>> {
    let mut blobs: Vec<Blob> = Vec::new();
    for layer in layers {
        blobs.push(Blob::new(LAYER, layer.archive()?));
    }
    let layer_descriptors: Vec<_> = blobs.iter().map(Blob::descriptor).collect();
    // A layer that is not compressed has its own digest as its diff ID.
    let diff_ids: Vec<_> = blobs.iter().map(|blob| blob.digest.to_string()).collect();
    let config = Blob::json(CONFIG, &config.document(&diff_ids))?;
    let manifest = Blob::json(MANIFEST, &manifest(&config, &layer_descriptors))?;
    let index = serde_json::to_vec(&index(name, &manifest))?;
    blobs.extend([config, manifest]);
    pack(&index, &blobs)
}

fn manifest(config: &Blob, layers: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": layers })
}

fn index(name: &str, manifest: &Blob) -> Value {
    let mut descriptor = manifest.descriptor();
    descriptor["annotations"] = json!({
        // containerd and Docker take the image's name from here,
        "io.containerd.image.name": name,
        // and tools of the OCI its tag.
        "org.opencontainers.image.ref.name": tag(name),
    });
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] })
}

/// What stands behind the colon of an image's name; a registry's port is no tag.
fn tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "latest",
    }
}

fn pack(index: &[u8], blobs: &[Blob]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    add_file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add_file(&mut tar, "index.json", 0o644, index)?;
    for (position, blob) in blobs.iter().enumerate() {
        // Two layers with the same content are one file.
        if blobs[..position].iter().all(|earlier| earlier.digest != blob.digest) {
            add_file(&mut tar, &format!("blobs/sha256/{}", blob.digest.hex()), 0o644, &blob.bytes)?;
        }
    }
    Ok(tar.into_inner()?)
}

/// One content-addressed file of an image.
struct Blob {
    media_type: &'static str,
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }

    fn json(media_type: &'static str, document: &Value) -> Result<Self> {
        Ok(Self::new(media_type, serde_json::to_vec(document)?))
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn every_descriptor_names_a_blob_of_its_size() {
        let files = unpack(&sample());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest_descriptor = &index["manifests"][0];
        assert_eq!(manifest_descriptor["annotations"]["io.containerd.image.name"], "nodemesh.io/thing:1");
        assert_eq!(manifest_descriptor["annotations"]["org.opencontainers.image.ref.name"], "1");
        let manifest = follow(&files, manifest_descriptor);
        let config = follow(&files, &manifest["config"]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Entrypoint"][0], "/thing");
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn layers_that_are_equal_are_kept_once() {
        let layer = || {
            let mut layer = Layer::new();
            layer.file("same", 0o644, b"same").unwrap();
            layer
        };
        let files = unpack(&archive("a:1", &[layer(), layer()], &Config::default()).unwrap());
        assert_eq!(files.len(), 2 + 3);
    }

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(tag("localhost:5000/thing"), "latest");
        assert_eq!(tag("localhost:5000/thing:2"), "2");
    }

    fn sample() -> Vec<u8> {
        let mut layer = Layer::new();
        layer.file("thing", 0o755, b"program").unwrap();
        let config = Config { entrypoint: vec!["/thing".into()], ..Config::default() };
        archive("nodemesh.io/thing:1", &[layer], &config).unwrap()
    }

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(files.insert(path, content).is_none(), "a file is there twice");
        }
        files
    }

    fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = &files[&digest.replace("sha256:", "blobs/sha256/")];
        assert_eq!(descriptor["size"], content.len());
        assert_eq!(Digest::of(content).to_string(), digest);
        serde_json::from_slice(content).unwrap()
    }
}
