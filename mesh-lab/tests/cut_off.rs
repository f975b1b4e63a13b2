//! Programs whose reader goes away, as `head -1` does: they end as they would have ended, and do not panic.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::io::{pipe, read_to_string};
use std::path::Path;
use std::process::{Command, Stdio};

/// The programs, each with arguments that make it say something and need neither lab nor cluster. The control
/// plane's own tests have it rotate a root, those of xtask run tasks.
const PROGRAMS: [(&str, &[&str]); 9] = [
    ("mesh-lab", &["--name", "t-cut-off", "down"]),
    ("mesh-lab", &["--help"]),
    ("mesh-agent", &["check"]),
    ("mesh-agent", &["check", "--output", "json"]),
    ("mesh-control", &["--help"]),
    ("meshctl", &["completions", "bash"]),
    ("meshctl", &["--help"]),
    ("meshctl", &["version", "-o", "json"]),
    ("meshctl", &["--agent", "unix:/nonexistent/admin.sock", "workloads"]),
];

/// What reads one of a program's outputs.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Stays,
    Gone,
}

/// The exit status and what standard error said, where it was read.
fn end(name: &str, arguments: &[&str], output: Reader, error: Reader) -> (Option<i32>, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_mesh-lab")).with_file_name(name);
    let mut command = Command::new(&program);
    command.args(arguments);
    let (read, write) = pipe().unwrap();
    command.stdout(if output == Reader::Gone { gone() } else { Stdio::null() });
    command.stderr(if error == Reader::Gone {
        drop(write);
        gone()
    } else {
        write.into()
    });
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // Its copy of the writing end would keep what is read from ending.
    drop(command);
    let said = read_to_string(read).unwrap();
    (child.wait().unwrap().code(), said)
}

/// The writing end of a pipe that nobody reads.
fn gone() -> Stdio {
    let (read, write) = pipe().unwrap();
    drop(read);
    write.into()
}

#[test]
fn every_program_ends_quietly_when_its_reader_goes_away() {
    const PANICKED: Option<i32> = Some(101);
    for (name, arguments) in PROGRAMS {
        let what = format!("{name} {}", arguments.join(" "));
        let (whole, _) = end(name, arguments, Reader::Stays, Reader::Stays);
        let (cut, said) = end(name, arguments, Reader::Gone, Reader::Stays);
        assert_eq!((whole, said.contains("panicked")), (cut, false), "{what}: {said}");
        let (both, _) = end(name, arguments, Reader::Gone, Reader::Gone);
        assert!(both == whole && both != PANICKED && both.is_some(), "{what}: {both:?}, not {whole:?}");
    }
}
