//! `mesh-agent`: the node agent of nodemesh.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_agent::config::{Config, RunArgs};
use mesh_agent::node_check::OutputFormat;
use mesh_agent::{cni, keeper, log_setup, node_check, panic_abort, proxy_main, sys};

type Failure = Box<dyn Error>;

/// The node agent of nodemesh: takes the pods of its node into the mesh.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent
    Run(Box<RunArgs>),
    /// What the agent starts as its proxy
    #[command(hide = true)]
    Proxy(Box<RunArgs>),
    /// Shows what a running agent logs, or changes it
    LogLevel {
        /// A level, or a filter such as `info,mesh_proxy=debug`
        filter: Option<String>,
        /// Unix socket of its admin endpoint
        #[arg(
            long,
            env = "MESH_AGENT_ADMIN_SOCKET",
            value_name = "PATH",
            default_value = "/run/nodemesh/admin.sock"
        )]
        admin_socket: PathBuf,
    },
    /// Looks whether this node has what the agent needs
    Check {
        /// Cgroup v2 directory that the node's pods are below
        #[arg(long, env = "MESH_AGENT_CGROUP_ROOT", value_name = "DIR", default_value = "/sys/fs/cgroup")]
        cgroup_root: PathBuf,
        /// Form of the answer
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: OutputFormat,
        /// Make an event on this Kubernetes node if something that is required is missing
        #[arg(long, value_name = "NODE")]
        tell_node: Option<String>,
    },
    /// Detaches everything that an agent left in the kernel; pods then talk as without a mesh
    Cleanup {
        /// Directory that the agent pinned below
        #[arg(long, env = "MESH_AGENT_BPF_ROOT", value_name = "DIR", default_value = "/sys/fs/bpf/nodemesh")]
        bpf_root: PathBuf,
        /// Directory that says where the CNI plugin was installed
        #[arg(
            long,
            env = "MESH_AGENT_CNI_STATE_DIR",
            value_name = "DIR",
            default_value = "/var/lib/nodemesh"
        )]
        cni_state_dir: PathBuf,
    },
    /// Puts the CNI plugin onto this node, so that no pod of the mesh starts before it is enrolled
    InstallCni(cni::InstallArgs),
    /// Takes the CNI plugin off this node
    RemoveCni {
        /// Directory that says where it was installed
        #[arg(
            long,
            env = "MESH_AGENT_CNI_STATE_DIR",
            value_name = "DIR",
            default_value = "/var/lib/nodemesh"
        )]
        cni_state_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => {
            let config = match arguments.load_config() {
                Ok(config) => config,
                Err(error) => return fail(&error),
            };
            if arguments.print_config {
                return finish(mesh_log::write(&config.to_yaml()).map_err(Failure::from));
            }
            finish(keep(config))
        }
        Command::Proxy(arguments) => finish(proxy(&arguments)),
        Command::LogLevel { filter, admin_socket } => finish(log_level(&admin_socket, filter.as_deref())),
        Command::Check { cgroup_root, output, tell_node } => {
            node_check::check_and_report(&cgroup_root, output, tell_node.as_deref())
                .unwrap_or_else(|error| fail(&error))
        }
        Command::Cleanup { bpf_root, cni_state_dir } => finish(clean_up(&bpf_root, &cni_state_dir)),
        Command::InstallCni(install) => finish(install.install_plugin().map_err(Failure::from)),
        Command::RemoveCni { cni_state_dir } => {
            finish(cni::remove_plugin(&cni_state_dir).map_err(Failure::from))
        }
    }
}

/// Removes what agents left on the node. The plugin goes first: a pod that it holds up starts then, and is
/// enrolled while the programs are still there.
fn clean_up(bpf_root: &Path, cni_state_dir: &Path) -> Result<(), Failure> {
    let removed = cni::remove_plugin(cni_state_dir);
    keeper::reset_flows_and_unpin_all(bpf_root)?;
    Ok(removed?)
}

fn keep(config: Config) -> Result<(), Failure> {
    // Before there is a second thread, which would get the signals.
    let signals = sys::StopSignals::block()?;
    let _as_it_is_set = log_setup::start_with_filter_setter(&config)?;
    mesh_log::log_panics(|| ());
    keeper::run(config, signals)
}

fn proxy(arguments: &RunArgs) -> Result<(), Failure> {
    // Otherwise `ps` would show the name of the link that it was started from: "exe".
    rustix::thread::set_name(c"mesh-proxy")?;
    // If refused, it serves all the same.
    let _usual_turns = sys::request_short_time_slices();
    // All three before there is a second thread: each has its own.
    sys::die_with_parent()?;
    sys::unblock_all_signals()?;
    sys::drop_capabilities::drop_all_capabilities()?;
    let config = arguments.load_config()?;
    let set_log_filter = log_setup::start_with_filter_setter(&config)?;
    panic_abort::abort_on_panic();
    proxy_main::run_proxy(config, set_log_filter)
}

fn log_level(socket: &Path, filter: Option<&str>) -> Result<(), Failure> {
    let method = if filter.is_some() { "PUT" } else { "GET" };
    let said = mesh_listen::http::order(socket, method, "/log-level", filter.unwrap_or_default())
        .map_err(|error| format!("can't ask {}: {error}", socket.display()))?;
    if !said.is_success() {
        return Err(said.text.trim().to_owned().into());
    }
    Ok(mesh_log::write(&said.text)?)
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    let code = result.map_or_else(|error| fail(&*error), |()| ExitCode::SUCCESS);
    mesh_log::flush();
    code
}

fn fail(error: &dyn Error) -> ExitCode {
    let mut lines = vec![format!("mesh-agent: {error}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        lines.push(format!("  because {error}"));
        cause = error.source();
    }
    mesh_log::call_out(&lines);
    ExitCode::FAILURE
}
