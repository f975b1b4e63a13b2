//! What tasks say, and where.

use std::io::pipe;
use std::process::Command;

fn task(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    command
}

/// What `cargo xtask lab … -o json` says before the lab's answer would be in that answer.
#[test]
fn building_leaves_standard_output_to_what_is_asked_for() {
    let output = task(&["build-ebpf"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("eBPF object"), "{output:?}");
}

#[test]
fn a_task_whose_reader_has_gone_ends_quietly() {
    let gone = || {
        let (read, write) = pipe().unwrap();
        drop(read);
        write
    };
    let output = task(&["setup"]).stdout(gone()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
    let both = task(&["build-ebpf"]).stdout(gone()).stderr(gone()).status().unwrap();
    assert!(both.success(), "{both}");
}
