//! The two things the lab does inside other namespaces, each by a process of its own that has one thread:
//! becoming a pod's sandbox, and becoming a program in a pod or on a node.
//!
//! A process may change its namespaces as long as it has a single thread, so no code has to run between
//! `fork` and `exec`, and `exec` in place keeps exit status, signals and terminal true to the program's own.

use std::{
    convert::Infallible,
    ffi::OsString,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    mount::{MountPropagationFlags, mount_bind, mount_change},
    process::{Pid, PidfdFlags, pidfd_open},
    thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces},
};

use crate::host::{During, HostError, cgroup, limits, netns};

/// A place to run a program in.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Place {
    /// Cgroup to join.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// Process whose mount, network, host name and IPC namespaces to enter.
    #[arg(long)]
    pub like: Option<u32>,
    /// Network namespace to enter.
    #[arg(long)]
    pub netns: Option<PathBuf>,
    /// Directory to start in.
    #[arg(long)]
    pub workdir: Option<PathBuf>,
}

impl Place {
    /// A command that starts `program` there. To be used by the daemon only: it starts this program again.
    pub fn command<S: Into<OsString>>(&self, program: impl IntoIterator<Item = S>) -> Command {
        // The link, not the path behind it: it holds even after the file has been replaced by a newer build.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("mesh-lab").arg("internal-exec");
        let options = [("--cgroup", &self.cgroup), ("--netns", &self.netns), ("--workdir", &self.workdir)];
        for (option, value) in options {
            if let Some(value) = value {
                command.arg(option).arg(value);
            }
        }
        if let Some(pid) = self.like {
            command.arg("--like").arg(pid.to_string());
        }
        command.arg("--").args(program.into_iter().map(Into::into));
        command
    }

    /// Becomes `program` there, with that environment or else this process's own. Returns only if that
    /// failed.
    pub fn exec(
        &self,
        program: &[OsString],
        environment: Option<Vec<(String, String)>>,
    ) -> Result<Infallible, HostError> {
        limits::raise_open_files()?;
        if let Some(cgroup) = &self.cgroup {
            cgroup::join(cgroup)?;
        }
        if let Some(pid) = self.like {
            enter_namespaces_of(pid)?;
        }
        if let Some(netns) = &self.netns {
            netns::enter(netns)?;
        }
        let Some((name, arguments)) = program.split_first() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput))
                .during(|| "run an empty command".to_owned());
        };
        let mut command = Command::new(name);
        command.args(arguments);
        if let Some(environment) = environment {
            command.env_clear().envs(environment);
        }
        if let Some(directory) = &self.workdir {
            command.current_dir(directory);
        }
        Err(command.exec()).during(|| format!("run {}", name.display()))
    }
}

fn enter_namespaces_of(pid: u32) -> Result<(), HostError> {
    let kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    let enter = || {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        move_into_thread_name_spaces(process.as_fd(), kinds)
    };
    enter().during(|| format!("enter the namespaces of process {pid}"))
}

/// What a pod's sandbox is made of.
#[derive(Clone, Debug, clap::Args)]
pub struct Sandbox {
    /// Cgroup to join.
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Host name.
    #[arg(long)]
    pub hostname: String,
    /// File to show in place of another, as `FILE:PLACE`.
    #[arg(long, value_parser = bind)]
    pub bind: Vec<(PathBuf, PathBuf)>,
    /// Keep the network namespace that this process was started in.
    #[arg(long)]
    pub host_network: bool,
}

/// The line by which a sandbox says that its namespaces are ready.
pub const SANDBOX_READY: &str = "ready";

impl Sandbox {
    /// A command that starts the sandbox. To be used by the daemon only.
    pub fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("mesh-lab").arg("internal-sandbox");
        command.arg("--cgroup").arg(&self.cgroup).arg("--hostname").arg(&self.hostname);
        for (file, place) in &self.bind {
            let mut pair = file.clone().into_os_string();
            pair.push(":");
            pair.push(place);
            command.arg("--bind").arg(pair);
        }
        if self.host_network {
            command.arg("--host-network");
        }
        command
    }

    /// Becomes the sandbox: makes the namespaces, says so on standard output, and holds them until killed.
    pub fn hold(&self) -> Result<Infallible, HostError> {
        cgroup::join(&self.cgroup)?;
        self.unshare()?;
        // Unmounts on the machine reach the pod, so that it never keeps a file system busy; nothing goes
        // back.
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).during(|| "detach the sandbox's mounts from the machine's".to_owned())?;
        rustix::system::sethostname(self.hostname.as_bytes()).during(|| "set the host name".to_owned())?;
        for (file, place) in &self.bind {
            mount_bind(file, place).during(|| format!("show {} at {}", file.display(), place.display()))?;
        }
        if !self.host_network {
            netns::set_parameters(POD_PARAMETERS)?;
        }
        let mut output = io::stdout();
        writeln!(output, "{SANDBOX_READY}").and_then(|()| output.flush()).during(|| "report".to_owned())?;
        loop {
            std::thread::park();
        }
    }

    #[expect(
        deprecated,
        reason = "deprecated for what it does with file tables, which is not asked for here"
    )]
    fn unshare(&self) -> Result<(), HostError> {
        let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
        flags.set(UnshareFlags::NEWNET, !self.host_network);
        rustix::thread::unshare(flags).during(|| "make namespaces".to_owned())
    }
}

/// Addresses are usable at once (no duplicate detection: the lab gives each out once), routes are those
/// given, and programs may bind low ports whoever they run as, as container runtimes allow.
const POD_PARAMETERS: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),
];

fn bind(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (file, place) = text.split_once(':').ok_or("expected FILE:PLACE")?;
    Ok((Path::new(file).to_owned(), Path::new(place).to_owned()))
}
