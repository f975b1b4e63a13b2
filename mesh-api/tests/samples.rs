//! Every sample can be applied.

use std::fs;
use std::path::Path;

use mesh_api::manifest;

#[test]
fn every_file_of_the_samples_can_be_read() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    let mut read = 0;
    for sample in fs::read_dir(samples).unwrap() {
        for file in fs::read_dir(sample.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let parsed = manifest::parse(&path.display().to_string(), &fs::read_to_string(&path).unwrap());
            assert!(parsed.errors.is_empty() && parsed.warnings.is_empty(), "{parsed:#?}");
            assert!(!parsed.objects.is_empty(), "{} says nothing", path.display());
            read += 1;
        }
    }
    assert!(read > 10, "{read} files");
}
