//! `mesh-agent install-cni`: puts the CNI plugin onto the node, before the agent runs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use mesh_cni::install::{self, Error, Record};

/// How often a missing network list is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why the plugin could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The plugin can't be put there or taken away.
    #[error("CNI plugin: {0}")]
    Place(#[from] Error),
    /// A directory can't be made.
    #[error("{}: {error}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
}

/// Where the plugin goes.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// The container runtime's directory of CNI plugins
    #[arg(long, env = "MESH_AGENT_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,

    /// Its directory of network lists
    #[arg(long, env = "MESH_AGENT_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,

    /// Directory of what the plugin decides by
    #[arg(long, env = "MESH_AGENT_CNI_STATE_DIR", value_name = "DIR", default_value = "/var/lib/nodemesh")]
    cni_state_dir: PathBuf,

    /// Directory of the socket that it asks the agent at
    #[arg(long, env = "MESH_AGENT_RUN_DIR", value_name = "DIR", default_value = "/run/nodemesh")]
    run_dir: PathBuf,

    /// The plugin's program
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/mesh-cni")]
    program: PathBuf,

    /// How long to wait for the primary CNI plugin to write a network list
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

impl InstallArgs {
    /// Installs the plugin. Errors: it is not in the runtime's network list, and why.
    pub fn install_plugin(&self) -> Result<(), InstallError> {
        let record = Record::new(&self.cni_bin_dir, &self.cni_conf_dir, &self.cni_state_dir, &self.run_dir);
        std::fs::create_dir_all(&self.cni_state_dir)
            .map_err(|error| InstallError::Directory { path: self.cni_state_dir.clone(), error })?;
        record.install(&self.cni_state_dir, &self.program)?;
        let deadline = Instant::now() + self.wait;
        loop {
            match record.chain() {
                Err(Error::NoNetwork(_)) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                result => return Ok(result.map(drop)?),
            }
        }
    }
}

/// Removes the plugin that was installed with this state directory, if one was. Errors: something of it is
/// still there, and why.
pub fn remove_plugin(state_dir: &Path) -> Result<(), InstallError> {
    Ok(install::remove(state_dir)?)
}
