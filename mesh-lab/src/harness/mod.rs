//! Labs for tests and benchmarks: up, used, and down when dropped.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use mesh_api::manifest::Kind;
use serde_json::Value;

use crate::{
    api::{Action, Document, LabStatus, ProgramStatus, Report},
    client::{Client, ClientError, WaitError},
    layout::{BadName, Layout},
};

/// Set to anything, it leaves labs up when they are dropped, to look into them.
const KEEP: &str = "NODEMESH_LAB_KEEP";
/// Names the `mesh-lab` program where it is not beside the caller.
const BINARY: &str = "NODEMESH_LAB_BINARY";

/// What a lab is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// With agents and control plane.
    pub mesh: bool,
    /// Lifetime of workload certificates, such as `60s`; the control plane's default if `None`.
    pub workload_cert_ttl: Option<String>,
    /// More arguments for the agents.
    pub agent_arguments: Vec<String>,
    /// More arguments for the control plane.
    pub control_arguments: Vec<String>,
    /// Directory of another `mesh-agent` and `mesh-control` than those beside `mesh-lab`.
    pub programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            mesh: true,
            workload_cert_ttl: None,
            agent_arguments: Vec::new(),
            control_arguments: Vec::new(),
            programs: None,
        }
    }
}

/// A lab that is up. Dropping it takes it down, unless `NODEMESH_LAB_KEEP` is set.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    client: Client,
    binary: PathBuf,
}

/// Why a lab cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The `mesh-lab` program cannot be found or run.
    #[error("mesh-lab: {0}")]
    Program(#[from] io::Error),
    /// A command failed; what it said.
    #[error("mesh-lab {command}: {stderr}")]
    Failed {
        /// The command.
        command: String,
        /// Its complaint.
        stderr: String,
    },
    /// The daemon did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Manifests that should be good are not.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Manifests(Vec<mesh_api::manifest::ManifestError>),
    /// Something does not become ready.
    #[error(transparent)]
    Wait(#[from] WaitError),
}

impl Lab {
    /// Brings a lab up, and first down if a lab of that name is there.
    pub fn up(name: &str, options: &Options) -> Result<Self, LabError> {
        let layout = Layout::new(name.parse()?)?;
        let lab = Self { client: Client::new(&layout), layout, binary: find_binary()? };
        run(&mut lab.command(&["down"]))?;
        let mut command = lab.command(&["up", "--nodes", &options.nodes.to_string()]);
        if !options.mesh {
            command.arg("--no-mesh");
        }
        if let Some(ttl) = &options.workload_cert_ttl {
            command.args(["--workload-cert-ttl", ttl]);
        }
        command.args(options.agent_arguments.iter().map(|argument| format!("--agent-arg={argument}")));
        command.args(options.control_arguments.iter().map(|argument| format!("--control-arg={argument}")));
        for (option, program) in [("--agent", "mesh-agent"), ("--control", "mesh-control")] {
            command.args(options.programs.iter().flat_map(|it| [option.into(), it.join(program)]));
        }
        run(&mut command)?;
        Ok(lab)
    }

    /// Its paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its daemon.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Applies manifests that must all be good.
    pub fn apply(&self, manifests: &str) -> Result<Report, LabError> {
        let report = self.try_apply("test.yaml", manifests)?;
        if report.errors.is_empty() { Ok(report) } else { Err(LabError::Manifests(report.errors)) }
    }

    /// Applies manifests of which some may be bad; the report tells which.
    pub fn try_apply(&self, file: &str, manifests: &str) -> Result<Report, LabError> {
        let document = Document { file: file.to_owned(), text: manifests.to_owned() };
        Ok(self.client.apply(vec![document])?)
    }

    /// Deletes the objects of manifests; returns when they are gone.
    pub fn delete(&self, manifests: &str) -> Result<Report, LabError> {
        let document = Document { file: "test.yaml".to_owned(), text: manifests.to_owned() };
        Ok(self.client.delete(vec![document])?)
    }

    /// Waits until all deployments and pods are ready.
    pub fn wait_ready(&self, deadline: Duration) -> Result<(), LabError> {
        Ok(self.client.wait_ready(None, deadline)?)
    }

    /// A command that runs a program in a pod.
    pub fn exec_command(&self, namespace: &str, pod: &str, program: &[&str]) -> Command {
        let mut command = self.command(&["exec", "-n", namespace, pod, "--"]);
        command.args(program);
        command
    }

    /// Runs a program in a pod to its end.
    pub fn exec(&self, namespace: &str, pod: &str, program: &[&str]) -> Result<Output, LabError> {
        Ok(self.exec_command(namespace, pod, program).output()?)
    }

    /// A command that runs a program on a node.
    pub fn node_command(&self, node: &str, program: &[&str]) -> Command {
        let mut command = self.command(&["node", node, "--"]);
        command.args(program);
        command
    }

    /// Runs a program on a node to its end.
    pub fn node_exec(&self, node: &str, program: &[&str]) -> Result<Output, LabError> {
        Ok(self.node_command(node, program).output()?)
    }

    /// What a container has written so far; the pod's first container, if none is named.
    pub fn logs(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<String, LabError> {
        let mut command = self.command(&["logs", "-n", namespace, pod]);
        if let Some(container) = container {
            command.args(["-c", container]);
        }
        Ok(String::from_utf8_lossy(&run(&mut command)?.stdout).into_owned())
    }

    /// The pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Result<Vec<Value>, LabError> {
        Ok(self.client.list(Kind::Pod, Some(namespace))?)
    }

    /// One object, if it is there.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>, LabError> {
        let all = self.client.list(kind, Some(namespace))?;
        Ok(all.into_iter().find(|object| object["metadata"]["name"] == name))
    }

    /// How it is.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        Ok(self.client.status()?)
    }

    /// A node's agent.
    pub fn agent(&self, node: &str) -> Program<'_> {
        Program { lab: self, node: Some(node.to_owned()) }
    }

    /// The control plane.
    pub fn control(&self) -> Program<'_> {
        Program { lab: self, node: None }
    }

    /// A command of `mesh-lab` for this lab.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--name").arg(self.layout.name().to_string()).args(arguments);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os(KEEP).is_some() {
            return;
        }
        if let Err(error) = run(&mut self.command(&["down"])) {
            // A drop cannot fail; the next `up` of the same name cleans up.
            eprintln!("the lab {} was not taken down: {error}", self.layout.name());
        }
    }
}

/// Runs a command that has to succeed.
fn run(command: &mut Command) -> Result<Output, LabError> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output);
    }
    let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Failed { command: words.join(" "), stderr })
}

/// A program of the mesh in a lab.
#[derive(Debug)]
pub struct Program<'a> {
    lab: &'a Lab,
    node: Option<String>,
}

impl Program<'_> {
    /// Starts it, if it does not run.
    pub fn start(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::Start)
    }

    /// Asks it to end, and waits.
    pub fn stop(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::Stop)
    }

    /// Kills it.
    pub fn kill(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::Kill)
    }

    /// Kills an agent's proxy alone.
    pub fn kill_proxy(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::KillProxy)
    }

    /// Lets another agent take over from the one that runs, and stops that.
    pub fn upgrade(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::Upgrade)
    }

    /// Stops and starts it.
    pub fn restart(&self) -> Result<ProgramStatus, LabError> {
        self.act(Action::Restart)
    }

    fn act(&self, action: Action) -> Result<ProgramStatus, LabError> {
        Ok(match &self.node {
            Some(node) => self.lab.client.agent(node, action)?,
            None => self.lab.client.control(action)?,
        })
    }
}

/// Asks again and again until `check` has an answer; `None` if it has none by the deadline.
pub fn poll<T>(deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        let answer = check();
        if answer.is_some() || Instant::now() > end {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `mesh-lab` is where the caller is, or one directory up: test programs are built into a directory below.
fn find_binary() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let directories = own.ancestors().skip(1).take(2);
    let found = directories.map(|directory: &Path| directory.join("mesh-lab")).find(|path| path.is_file());
    found.ok_or_else(|| {
        let problem = format!("not found beside {}; build it, or set {BINARY}", own.display());
        io::Error::new(io::ErrorKind::NotFound, problem)
    })
}
