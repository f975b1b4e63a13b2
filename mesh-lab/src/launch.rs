//! Bringing a lab up and down, from outside its daemon.

use std::{
    io::{self, BufRead, BufReader},
    os::{linux::net::SocketAddrExt, unix::net},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    client::Client,
    host::{During, HostError, cgroup, files, sweep},
    layout::Layout,
};

pub use crate::host::sweep::Swept;

/// How long one command waits for another that brings the same lab up or down.
const TURN: Duration = Duration::from_mins(1);
/// Lines of the daemon's log that an error shows.
const SHOWN: usize = 15;

/// What a lab is to be like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabOptions {
    /// How many nodes.
    pub nodes: u8,
    /// The mesh; none for bare pods.
    pub mesh: Option<MeshOptions>,
}

/// What its mesh is to be like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeshOptions {
    /// The agent's program.
    pub agent_binary: PathBuf,
    /// The control plane's program.
    pub control_binary: PathBuf,
    /// Lifetime of workload certificates; the control plane's default if absent.
    pub workload_cert_ttl: Option<String>,
    /// More arguments for the agents.
    pub agent_arguments: Vec<String>,
    /// More arguments for the control plane.
    pub control_arguments: Vec<String>,
}

/// Why a lab is not up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It is up already.
    #[error("the lab {0} is up already; `mesh-lab --name {0} down` takes it down")]
    AlreadyUp(String),
    /// A program that it needs is not there.
    #[error("{} is not there; build it, or say where it is with {flag}, or use --no-mesh", path.display())]
    NoProgram {
        /// Where it was looked for.
        path: PathBuf,
        /// The flag that says otherwise.
        flag: &'static str,
    },
    /// Another command for the same lab does not come to an end.
    #[error("another `mesh-lab up` or `down` for the lab {0} has been at work for {seconds} s", seconds = TURN.as_secs())]
    Busy(String),
    /// The daemon gave up.
    #[error("the lab did not come up\n{0}")]
    Daemon(String),
    /// The machine refused something.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Brings a lab up. What a crashed predecessor of the same name left is removed first.
pub fn up(layout: &Layout, options: &LabOptions) -> Result<(), LaunchError> {
    check_programs(options)?;
    let _turn = Turn::take(layout)?;
    if Client::new(layout).status().is_ok() {
        return Err(LaunchError::AlreadyUp(layout.name().to_string()));
    }
    sweep::sweep(layout)?;
    files::directory(layout.state())?;
    cgroup::create(&layout.cgroup())?;
    let started = start_daemon(layout, options);
    if started.is_err() {
        // What went wrong at first is what counts; a sweep that fails too is met by the next one.
        let _ = sweep::sweep(layout);
    }
    started
}

/// Takes a lab down, whatever state it is in.
pub fn down(layout: &Layout) -> Result<Swept, LaunchError> {
    let _turn = Turn::take(layout)?;
    Ok(sweep::sweep(layout)?)
}

fn check_programs(options: &LabOptions) -> Result<(), LaunchError> {
    let Some(mesh) = &options.mesh else { return Ok(()) };
    for (path, flag) in [(&mesh.agent_binary, "--agent"), (&mesh.control_binary, "--control")] {
        if !path.is_file() {
            return Err(LaunchError::NoProgram { path: path.clone(), flag });
        }
    }
    Ok(())
}

/// Starts the daemon and waits until it says that the lab is up. Whatever else it says is why it is not.
fn start_daemon(layout: &Layout, options: &LabOptions) -> Result<(), LaunchError> {
    let log = files::log(&layout.daemon_log())?;
    let options =
        serde_json::to_string(options).map_err(io::Error::from).during(|| "write options".to_owned())?;
    let mut daemon = Command::new("/proc/self/exe")
        .args(["--name", &layout.name().to_string(), "internal-daemon", &options])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .during(|| "start the daemon".to_owned())?;
    let mut line = String::new();
    if let Some(output) = daemon.stdout.take() {
        BufReader::new(output).read_line(&mut line).during(|| "hear from the daemon".to_owned())?;
    }
    if line.trim() == READY {
        return Ok(());
    }
    // It has ended, or is about to: its output is closed.
    let _ = daemon.wait();
    Err(LaunchError::Daemon(files::tail(&layout.daemon_log(), SHOWN)))
}

/// The line by which the daemon says that the lab is up.
pub const READY: &str = "ready";

/// The right to bring a lab up or down: an abstract socket, which the kernel takes back whatever happens.
struct Turn {
    _socket: net::UnixListener,
}

impl Turn {
    fn take(layout: &Layout) -> Result<Self, LaunchError> {
        let name = format!("nodemesh-lab/{}", layout.name());
        let address = net::SocketAddr::from_abstract_name(&name).during(|| "name a lock".to_owned())?;
        let deadline = Instant::now() + TURN;
        loop {
            match net::UnixListener::bind_addr(&address) {
                Ok(socket) => return Ok(Self { _socket: socket }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(error)
                        .during(|| format!("lock the lab {}", layout.name()))
                        .map_err(Into::into);
                }
                Err(_) if Instant::now() > deadline => {
                    return Err(LaunchError::Busy(layout.name().to_string()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}
