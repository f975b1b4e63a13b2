//! `mesh-agent run`: the keeper. It has the node's privileges and holds what must outlive a proxy; it never
//! reads a byte from the network. The proxy that it starts ([`proxy_main`](crate::proxy_main)) does
//! everything else, without privileges, and asks the keeper for what it can't do itself.
//!
//! Reading order:
//! 1. [`protocol`]: records between the two, and [`channel`], how they are sent.
//! 2. `event_loop`: the loop; `request_handler`: answers to the proxy; `pod_task_pool`: work for those,
//!    outside of the loop.
//! 3. `proxy_process`: the proxy's life; `pods`: namespaces, listeners and links; `veth_teardown`: the end of
//!    links; `admin_listeners`: those for admin, metrics and health; `inherited_files`: the inheritance.
//! 4. `handover`: one keeper takes over from another, for an upgrade. `cni::plugin_server` answers
//!    the CNI plugin.

mod admin_listeners;
pub mod channel;
mod event_loop;
mod inherited_files;
mod keeper_takeover;
mod pod_task_pool;
mod pods;
pub mod protocol;
mod proxy_process;
mod request_handler;
mod veth_connection_reset;

use std::error::Error;

use crate::config::Config;
use crate::sys::StopSignals;

use event_loop::Keeper;
pub use event_loop::RELIEVED_SIGNAL;
pub(crate) use keeper_takeover::replace_seqpacket_listener;
pub use veth_connection_reset::reset_flows_and_unpin_all;

/// Why the keeper did not start or had to stop.
pub type Failure = Box<dyn Error>;

/// Keeps the node's pods in the mesh until one of `signals` comes. Errors: it could not start, or had to
/// stop.
pub fn run(config: Config, signals: StopSignals) -> Result<(), Failure> {
    Keeper::start(config, signals)?.run()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// What has the node's privileges is small enough to be read in one go: this folder, and what the keeper
    /// runs of the CNI plugin's side. Tests, comments and blank lines do not count.
    #[test]
    fn the_keeper_is_under_2000_lines() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let own = fs::read_dir(sources.join("keeper")).unwrap().map(|entry| entry.unwrap().path());
        let files =
            own.chain(["plugin_server.rs", "conflist_repair.rs"].map(|name| sources.join("cni").join(name)));
        let lines: usize = files.map(|file| lines_of_code(&fs::read_to_string(file).unwrap())).sum();
        assert!(lines < 2000, "{lines} lines of code");
    }

    fn lines_of_code(file: &str) -> usize {
        let code = file.split("#[cfg(test)]\nmod tests").next().unwrap();
        code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
    }
}
