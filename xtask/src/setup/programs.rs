//! The programs that the lab, the tests and the demo run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::find_program;

/// One program, known by its commands rather than by its package: it may come from anywhere.
pub struct Program {
    /// What a person calls it.
    pub name: &'static str,
    /// The commands that must all be there.
    commands: &'static [&'static str],
    /// Debian's packages of it.
    pub packages: &'static [&'static str],
    /// What this project uses it for.
    pub purpose: &'static str,
}

impl Program {
    /// Whether each of its commands is found.
    pub fn is_there(&self) -> bool {
        self.commands
            .iter()
            .all(|command| find_program(command).is_some() || in_postgresql(command) || in_cni(command))
    }
}

/// Everything that has to be there beside Rust.
pub const ALL: &[Program] = &[
    program("C compiler", &["cc"], &["gcc", "libc6-dev", "cmake"], "builds aws-lc, the mesh's cryptography"),
    program("iproute2", &["ip"], &["iproute2"], "looks into a lab's namespaces, links and routes"),
    program("nftables", &["nft"], &["nftables"], "Services for pods outside of the mesh"),
    program("iptables", &["iptables"], &["iptables"], "makes rules in tests such as others leave in pods"),
    program("procps", &["ps"], &["procps"], "looks at the processes of pods"),
    program("nginx", &["nginx"], &["nginx-light"], "web server in tests, the demo and benchmarks"),
    program("curl", &["curl"], &["curl"], "web client in tests and the demo"),
    program("redis", &["redis-server"], &["redis-server"], "server of a pipelined protocol in tests"),
    program("redis-cli", &["redis-cli"], &["redis-tools"], "its client"),
    program(
        "PostgreSQL",
        &["postgres", "psql"],
        &["postgresql"],
        "server that forks for each session, in tests",
    ),
    program("MariaDB", &["mariadbd"], &["mariadb-server"], "server that speaks first, in tests"),
    program("mariadb", &["mariadb"], &["mariadb-client"], "its client"),
    program("JDK", &["java", "javac"], &["default-jdk-headless"], "Java's HTTP server and client in tests"),
    program("Python", &["python3"], &["python3"], "small servers and clients in tests"),
    program("faketime", &["faketime"], &["faketime"], "sets the clock of the mesh's programs in tests"),
    program("iperf3", &["iperf3"], &["iperf3"], "throughput in tests and benchmarks"),
    program("wrk", &["wrk"], &["wrk"], "request rates in benchmarks"),
    program("h2load", &["h2load"], &["nghttp2-client"], "request rates over HTTP/2 in benchmarks"),
    program("nghttpd", &["nghttpd"], &["nghttp2-server"], "server of HTTP/2 in benchmarks"),
    program("tshark", &["tshark"], &["tshark"], "proves from a capture that nodes speak TLS only"),
    program("tcpdump", &["tcpdump"], &["tcpdump"], "captures on the link between nodes"),
];

/// What `cargo xtask cluster` runs beside that. Kubernetes itself is built, not installed.
pub const CLUSTER: &[Program] = &[
    program(
        "containerd",
        &["containerd", "ctr", "containerd-shim-runc-v2"],
        &["containerd"],
        "container runtime of a cluster's nodes",
    ),
    program("runc", &["runc"], &["runc"], "starts its containers"),
    program(
        "CNI plugins",
        &["host-local", "loopback"],
        &["containernetworking-plugins"],
        "join pods of a cluster to the network",
    ),
    program("util-linux", &["nsenter", "unshare"], &["util-linux"], "gives nodes namespaces of their own"),
    program("sysctl", &["sysctl"], &["procps"], "lets nodes forward what pods send"),
];

/// What `cargo xtask fuzz` builds with beside that.
pub const CPLUSPLUS: Program = program("C++ compiler", &["c++"], &["g++"], "builds libFuzzer");

/// Where Go has to come from the Python package index.
pub const PYTHON_VENV: Program =
    program("venv", &["python3"], &["python3-venv"], "environments for programs from Python's package index");

const fn program(
    name: &'static str,
    commands: &'static [&'static str],
    packages: &'static [&'static str],
    purpose: &'static str,
) -> Program {
    Program { name, commands, packages, purpose }
}

/// Debian keeps the server programs of `PostgreSQL` out of `PATH`, in a directory for each version.
fn in_postgresql(command: &str) -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin").join(command)).any(|path: PathBuf| Path::exists(&path))
}

/// Nobody keeps CNI plugins in `PATH`.
fn in_cni(command: &str) -> bool {
    ["/usr/lib/cni", "/opt/cni/bin"].iter().any(|directory| Path::new(directory).join(command).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_says_how_to_find_it_get_it_and_why() {
        for program in ALL.iter().chain(CLUSTER) {
            assert!(!program.commands.is_empty(), "{}: no command", program.name);
            assert!(!program.packages.is_empty(), "{}: no package", program.name);
            assert!(!program.purpose.is_empty(), "{}: no purpose", program.name);
        }
    }

    #[test]
    fn a_program_needs_all_of_its_commands() {
        assert!(program("shell", &["sh"], &["dash"], "").is_there());
        assert!(!program("half", &["sh", "no-such-program-anywhere"], &["dash"], "").is_there());
    }
}
