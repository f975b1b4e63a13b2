//! Clocks that are set, and machines that are suspended: the programs of the mesh run with a wall clock that
//! the test sets (libfaketime), while their timers go on as ever.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_lab::Options;

use crate::certificates::serial;
use crate::world::{PORT, World, control_binary, eventually};

/// A directory with the mesh's programs, whose clocks are off by what a file beside each says.
struct Clocks(tempfile::TempDir);

impl Clocks {
    fn new() -> Self {
        let clocks = Self(tempfile::tempdir().unwrap());
        let programs = control_binary().parent().unwrap().to_owned();
        for name in ["mesh-agent", "mesh-control"] {
            clocks.set(name, "+0");
            let program = clocks.0.path().join(name);
            fs::write(&program, wrapper(&programs.join(name), &clocks.file(name))).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        }
        clocks
    }

    fn file(&self, program: &str) -> PathBuf {
        self.0.path().join(format!("{program}.clock"))
    }

    /// Such as `+2d`.
    fn set(&self, program: &str, off_by: &str) {
        // It is read at any moment, so it is never half written.
        let next = self.0.path().join("next");
        fs::write(&next, off_by).unwrap();
        fs::rename(&next, self.file(program)).unwrap();
    }

    fn set_all(&self, off_by: &str) {
        self.set("mesh-control", off_by);
        self.set("mesh-agent", off_by);
    }
}

fn wrapper(program: &Path, clock: &Path) -> String {
    let (program, clock) = (program.display(), clock.display());
    format!(
        "#!/bin/sh\n\
         export LD_PRELOAD='/usr/$LIB/faketime/libfaketimeMT.so.1' FAKETIME_TIMESTAMP_FILE={clock}\n\
         export FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n\
         exec {program} \"$@\"\n"
    )
}

fn connects(world: &World) -> bool {
    world.client("app", "client", &["who", "server.app", PORT]).ok
}

#[test]
fn a_clock_that_is_set_costs_no_more_than_the_moment() {
    let clocks = Clocks::new();
    let world =
        World::with("clock", &Options { programs: Some(clocks.0.path().into()), ..Options::default() });

    // The nodes alone are wrong: nobody's certificate counts there, and the log says why, not every few
    // seconds.
    clocks.set("mesh-agent", "+2d");
    eventually("certificates have expired", || !connects(&world));
    let reason = "it has expired: connections are refused until there is a new one";
    let said = || {
        world.agent_log("node1").lines().filter(|it| it.contains(reason) && it.contains("/sa/client")).count()
    };
    eventually("the reason is told", || said() > 0);
    assert!(!connects(&world));
    assert!(!connects(&world), "more tries of the agent's have failed by now");
    assert_eq!(said(), 1);
    world.logged("node1", "certificate is not valid after");
    clocks.set("mesh-agent", "+0");
    let noticed = |node: &str| world.agent_log(node).matches("the clock was set").count() >= 2;
    eventually("noticed", || noticed("node1") && noticed("node2"));
    eventually("recovered", || connects(&world));

    // All of them at once, as after a machine was suspended: new certificates for everybody, the control
    // plane too.
    let before = serial(&world);
    clocks.set_all("+2d");
    eventually("new certificates", || serial(&world) != before && connects(&world));

    // Back to before the certificates in use were made: they do not count yet, and are replaced as well.
    let before = serial(&world);
    clocks.set_all("+1d");
    eventually("certificates for the time before", || serial(&world) != before && connects(&world));
}
