//! Turns `proto/*.proto` into the types of the `wire` module. The compiler is protox, so no `protoc` is
//! needed.

use std::error::Error;

const FILES: [&str; 7] = [
    "authorization.proto",
    "ca.proto",
    "discovery.proto",
    "ext.proto",
    "node.proto",
    "status.proto",
    "workload.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        // Ordered maps encode the same way every time, so a version can be a hash of the encoded resource.
        .btree_map(".istio")
        .btree_map(".nodemesh")
        .include_file("wire.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
