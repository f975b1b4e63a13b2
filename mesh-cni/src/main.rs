//! `nodemesh-cni`, as a container runtime starts it: CNI's environment, a configuration on standard input, an
//! answer on standard output.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::process::ExitCode;

use mesh_cni::call::Call;
use mesh_cni::plugin;

/// A configuration with its previous result takes some kilobytes.
const LONGEST: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut configuration = String::new();
    // What can't be read is no configuration, and told as such.
    let _incomplete = io::stdin().take(LONGEST).read_to_string(&mut configuration);
    let (text, status) = match plugin::run(&Call::from_environment(), &configuration) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&configuration), ExitCode::FAILURE),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
