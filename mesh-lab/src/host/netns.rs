//! Network namespaces with a name, as `ip netns` keeps them.

use std::{fs, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{During, HostError, program};

/// Makes namespaces.
pub fn create(names: &[String]) -> Result<(), HostError> {
    program::ip_batch(&each("add", names))
}

/// Removes namespaces. What is in them goes with them once their last process has ended.
pub fn remove(names: &[String]) -> Result<(), HostError> {
    program::ip_batch(&each("del", names))
}

fn each(verb: &str, names: &[String]) -> String {
    names.iter().flat_map(|name| ["netns ", verb, " ", name, "\n"]).collect()
}

/// The names of all namespaces of the machine.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Moves this thread into a network namespace, given by its path, for good.
pub fn enter(path: &Path) -> Result<(), HostError> {
    let enter = || {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
    };
    enter().during(|| format!("enter the network namespace {}", path.display()))
}

/// Where this thread's network namespace shows its kernel parameters.
const PARAMETERS: &str = "/proc/sys/net";

/// Sets kernel parameters of this thread's network namespace.
pub fn set_parameters(parameters: &[(&str, &str)]) -> Result<(), HostError> {
    parameters.iter().try_for_each(|(name, value)| {
        let path = Path::new(PARAMETERS).join(name);
        fs::write(&path, value).during(|| format!("write {value} to {}", path.display()))
    })
}

/// The same for parameters that a kernel has only with some module loaded.
pub fn set_parameters_if_there(parameters: &[(&str, &str)]) -> Result<(), HostError> {
    let there = |parameter: &&(&str, &str)| Path::new(PARAMETERS).join(parameter.0).exists();
    parameters.iter().filter(there).try_for_each(|parameter| set_parameters(&[*parameter]))
}
