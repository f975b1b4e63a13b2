//! The control plane: configuration sources, certificate authority and xDS server.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_control::ca::rotation::{Phase, RootStore, RotationState, Step};
use mesh_control::options::Options;
use mesh_control::server::ControlPlane;
use mesh_listen::http::order;
use tokio::signal::unix::{SignalKind, signal};

/// After this, what has not ended is cut off.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What to log: off, error, warn, info, debug, trace, or a filter such as `info,mesh_control=debug`
    #[arg(long, env = "MESH_CONTROL_LOG", default_value = "info", global = true, value_name = "FILTER")]
    log: String,

    /// How to log
    #[arg(long, env = "MESH_CONTROL_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents
    Run(Box<Options>),
    /// Take a step towards a new root certificate, in a state directory, whose server follows at once, or by
    /// asking a server
    RotateRoot(RotateRoot),
}

#[derive(Args)]
struct RotateRoot {
    /// State directory of the control plane
    #[arg(
        long,
        env = "MESH_CONTROL_STATE_DIR",
        value_name = "PATH",
        required_unless_present = "admin_socket"
    )]
    state_dir: Option<PathBuf>,

    /// Unix socket of a running server's admin endpoint: it takes the step, for all replicas on Kubernetes
    #[arg(long, value_name = "PATH", conflicts_with = "state_dir")]
    admin_socket: Option<PathBuf>,

    /// Print where the rotation is as JSON
    #[arg(long)]
    json: bool,

    /// Trust domain, for the name of a new root
    #[arg(long, env = "MESH_CONTROL_TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    trust_domain: String,

    /// Refuse unless this is the step that is due; without it, the step that is due is taken
    #[arg(long)]
    step: Option<Step>,

    /// Do not wait until every certificate was renewed since the last step: connections may fail
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = start_log(&cli.log, cli.log_format).and_then(|()| dispatch(cli.command));
    if let Err(error) = done {
        mesh_log::call_out(&[format!("mesh-control: {error:#}")]);
        return ExitCode::FAILURE;
    }
    mesh_log::flush();
    ExitCode::SUCCESS
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(options) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(run(&options))
        }
        Command::RotateRoot(rotation) => rotate_root(&rotation),
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut control = tokio::select! {
        started = ControlPlane::start(options) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // A runtime goes on without a task that panicked, and nobody would notice.
        () = control.breaks() => anyhow::bail!("a part of the control plane has panicked; the log says where"),
    }
    control.stop(STOP_DEADLINE).await;
    Ok(())
}

fn rotate_root(rotation: &RotateRoot) -> anyhow::Result<()> {
    let state = match (&rotation.admin_socket, &rotation.state_dir) {
        (Some(socket), _) => ask_to_rotate(socket, rotation)?,
        (None, Some(directory)) => RootStore::at(directory).rotate(
            rotation.step,
            rotation.force,
            &rotation.trust_domain,
            SystemTime::now(),
        )?,
        (None, None) => anyhow::bail!("--state-dir or --admin-socket is needed"),
    };
    if rotation.json {
        return Ok(mesh_log::write(&(serde_json::to_string(&state)? + "\n"))?);
    }
    let wait = humantime::format_duration(Duration::from_secs(state.leaf_lifetime));
    let text = match &state.phase {
        Phase::Added { next } => format!(
            "added root {next}; {} still signs.\nWhen all certificates were renewed, in {wait}: mesh-control rotate-root --step sign\n",
            state.signing
        ),
        Phase::Signing { previous } => format!(
            "root {} signs; {previous} is still trusted.\nWhen all certificates were renewed, in {wait}: mesh-control rotate-root --step drop\n",
            state.signing
        ),
        Phase::Steady => format!("root {} is the only one; the rotation is complete\n", state.signing),
    };
    Ok(mesh_log::write(&text)?)
}

fn ask_to_rotate(socket: &Path, rotation: &RotateRoot) -> anyhow::Result<RotationState> {
    let step = rotation.step.as_ref().and_then(Step::to_possible_value);
    let step = step.map(|step| format!("&step={}", step.get_name())).unwrap_or_default();
    let path = format!("/rotate-root?force={}{step}", rotation.force);
    let said = order(socket, "POST", &path, "").with_context(|| format!("can't ask {}", socket.display()))?;
    anyhow::ensure!(said.is_success(), "{}", said.text.trim());
    serde_json::from_str(&said.text).context("the server is of another version")
}

fn start_log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let format = match format {
        LogFormat::Text => mesh_log::Format::Text,
        LogFormat::Json => mesh_log::Format::Json,
    };
    let _as_it_is_set = mesh_log::start(filter, format).context("--log")?;
    mesh_log::log_panics(|| ());
    Ok(())
}
