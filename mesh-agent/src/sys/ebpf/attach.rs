//! Attaching programs and keeping the attachments across the agent's restarts.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};

use super::Error;

/// On kernels from 5.7 on links to one cgroup add up whatever the mode says, and any other mode is refused.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The socket-address programs, by name.
const SOCK_ADDR: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
const SOCK_OPS: &str = "socket_ops";
const SK_LOOKUP: &str = "inbound";

/// Loads all programs and attaches those that belong to the node's cgroup, each in place of its predecessor.
pub(super) fn attach_to_cgroup(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), Error> {
    let directory = File::open(cgroup).map_err(|error| Error::Path { path: cgroup.into(), error })?;
    // What reads the hand-over comes before what starts it.
    let link = sock_ops(ebpf, &directory).map_err(program_error(SOCK_OPS))?;
    pin_over(link, &links.join(SOCK_OPS))?;
    for name in SOCK_ADDR.into_iter().rev() {
        let link = sock_addr(ebpf, name, &directory).map_err(program_error(name))?;
        pin_over(link, &links.join(name))?;
    }
    let program = typed::<SkLookup>(ebpf, SK_LOOKUP).map_err(program_error(SK_LOOKUP))?;
    program.load().map_err(program_error(SK_LOOKUP))
}

/// Attaches `sk_lookup` to a pod's namespace, in place of a predecessor's.
pub(super) fn attach_to_pod(ebpf: &mut Ebpf, netns: impl AsFd, pin: &Path) -> Result<(), Error> {
    let attach = || -> Result<FdLink, ProgramError> {
        let program = typed::<SkLookup>(ebpf, SK_LOOKUP)?;
        let id = program.attach(netns)?;
        Ok(program.take_link(id)?.into())
    };
    pin_over(attach().map_err(program_error(SK_LOOKUP))?, pin)
}

/// Takes a pinned attachment off. One that is not there is off already.
pub(super) fn detach(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Path { path: pin.into(), error }),
        _ => Ok(()),
    }
}

/// Removes everything that an agent pinned below `root`: its programs are detached, pods talk as without a mesh.
pub fn unpin_all(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Names of the pins in a directory.
pub(super) fn pins(directory: &Path) -> Vec<(String, PathBuf)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

/// Pins a new link where an older one may be: the new one is attached already, so there is no moment without one.
fn pin_over(link: FdLink, path: &Path) -> Result<(), Error> {
    let failed = |error| Error::Path { path: path.into(), error };
    if path.exists() {
        let predecessor = PinnedLink::from_pin(path).map_err(|error| failed(io::Error::other(error)))?;
        drop(predecessor.unpin().map_err(failed)?);
    }
    link.pin(path).map_err(|error| failed(io::Error::other(error)))?;
    Ok(())
}

fn sock_addr(ebpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = typed::<CgroupSockAddr>(ebpf, name)?;
    program.load()?;
    let id = program.attach(cgroup, MODE)?;
    as_fd_link(program.take_link(id)?)
}

fn sock_ops(ebpf: &mut Ebpf, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = typed::<SockOps>(ebpf, SOCK_OPS)?;
    program.load()?;
    let id = program.attach(cgroup, MODE)?;
    as_fd_link(program.take_link(id)?)
}

/// Only kernels before 5.7 attach without a link of this kind.
fn as_fd_link(link: impl TryInto<FdLink, Error = LinkError>) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

fn typed<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn program_error(name: &'static str) -> impl Fn(ProgramError) -> Error {
    move |error| Error::Program { name, error }
}
