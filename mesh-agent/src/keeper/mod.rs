//! `mesh-agent run`: the keeper. It has the node's privileges and holds what must outlive a proxy; it never reads a byte
//! from the network. The proxy that it starts ([`run`](mod@crate::run)) does everything else, without privileges, and asks
//! the keeper for what it can't do itself.
//!
//! Reading order:
//! 1. [`protocol`]: what the two say to each other, and [`channel`], how.
//! 2. `serve`: the loop.
//! 3. `process`: the proxy's life; `pods`: namespaces and listeners; `doors`: the node's own listeners.
//! 4. `handover`: one keeper takes over from another, for an upgrade.

pub mod channel;
mod doors;
mod handover;
mod pods;
mod process;
pub mod protocol;
mod serve;

use std::error::Error;

use crate::config::Config;
use crate::sys::ebpf::{self, Programs};
use crate::sys::{self, Signals};

use doors::{Doors, Inherited};
use handover::{Predecessor, Threshold};
use pods::Pods;
use process::Process;
use serve::Keeper;
pub use serve::RELIEVED;

/// Why the keeper did not start or had to stop.
pub type Failure = Box<dyn Error>;

/// Keeps the node's pods in the mesh until it is told to stop.
pub fn run(config: Config) -> Result<(), Failure> {
    let signals = Signals::hold_back()?;
    sys::raise_open_file_limit();
    let threshold = Threshold::of(&config);
    let mut predecessor = threshold.as_ref().and_then(Predecessor::find);
    let workers = match &predecessor {
        // A listener that nobody serves would lose what waits in its queue.
        Some(predecessor) => predecessor.workers,
        None => u8::try_from(config.workers)?,
    };
    let inherited = predecessor.as_mut().map_or_else(Inherited::default, |it| Inherited(it.take_doors()));
    let doors = Doors::open(&config, inherited)?;
    // It gets itself ready while the programs are loaded.
    let process = Process::start()?;
    let mut programs = Programs::load(
        &config.bpf_root,
        &config.cgroup_root,
        workers,
        ebpf::ebpf_log_level(),
        config.count_untouched,
    )?;
    let lines = programs.lines()?;
    programs.forget_ended_proxies()?;
    let wait_for_proxy = predecessor.is_some() || programs.have_other_layouts();
    let mut pods = Pods::new(programs, config.cgroup_root.clone(), workers)?;
    if let Some(predecessor) = &mut predecessor {
        predecessor.hand_over_pods(&mut pods)?;
    }
    if !wait_for_proxy {
        pods.attach()?;
    }
    let mut keeper = Keeper::new(config, workers, signals, doors, pods, lines);
    keeper.attached = !wait_for_proxy;
    keeper.predecessor = predecessor;
    keeper.threshold = threshold;
    if keeper.predecessor.is_none() {
        keeper.open_threshold();
    }
    keeper.greet(process)?;
    keeper.run()
}
