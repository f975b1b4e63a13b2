//! Attaching programs and keeping the attachments across the keeper's restarts.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};

use super::{Error, link};

/// On kernels from 5.7 on links to one cgroup add up whatever the mode says, and any other mode is refused.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The socket-address programs, by name.
const SOCK_ADDR: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
const SOCK_OPS: &str = "socket_ops";
const SK_LOOKUP: &str = "inbound";

/// Has the kernel check all programs.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    typed::<SockOps>(ebpf, SOCK_OPS).and_then(SockOps::load).map_err(program_error(SOCK_OPS))?;
    for name in SOCK_ADDR {
        typed::<CgroupSockAddr>(ebpf, name).and_then(CgroupSockAddr::load).map_err(program_error(name))?;
    }
    typed::<SkLookup>(ebpf, SK_LOOKUP).and_then(SkLookup::load).map_err(program_error(SK_LOOKUP))
}

/// Attaches the programs that belong to the node's cgroup, each in place of its predecessor.
pub(super) fn attach_to_cgroup(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), Error> {
    let directory = File::open(cgroup).map_err(|error| Error::Path { path: cgroup.into(), error })?;
    // What reads the hand-over comes before what starts it.
    put(ebpf, SOCK_OPS, &links.join(SOCK_OPS), |ebpf| sock_ops(ebpf, &directory))?;
    for name in SOCK_ADDR.into_iter().rev() {
        put(ebpf, name, &links.join(name), |ebpf| sock_addr(ebpf, name, &directory))?;
    }
    Ok(())
}

/// Attaches `sk_lookup` to a pod's namespace, in place of a predecessor's.
pub(super) fn attach_to_pod(ebpf: &mut Ebpf, netns: impl AsFd, pin: &Path) -> Result<(), Error> {
    put(ebpf, SK_LOOKUP, pin, |ebpf| {
        let program = typed::<SkLookup>(ebpf, SK_LOOKUP)?;
        let id = program.attach(netns)?;
        Ok(program.take_link(id)?.into())
    })
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

/// Puts a program where a predecessor's may be, and attaches it where there is none.
fn put(
    ebpf: &mut Ebpf,
    name: &'static str,
    pin: &Path,
    attach: impl FnOnce(&mut Ebpf) -> Result<FdLink, ProgramError>,
) -> Result<(), Error> {
    let failed = |error| Error::Path { path: pin.into(), error };
    if pin.exists() {
        let program = ebpf.program(name).ok_or(ProgramError::NotLoaded).and_then(Program::fd);
        let program = program.map_err(program_error(name))?;
        match link::replace(pin, program.as_fd()) {
            Ok(()) => return Ok(()),
            // What it was attached to is gone, and so there is nothing that could be without a program now.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => detach(pin)?,
            Err(error) => return Err(failed(error)),
        }
    }
    let link = attach(ebpf).map_err(program_error(name))?;
    link.pin(pin).map_err(|error| failed(io::Error::other(error)))?;
    Ok(())
}

fn sock_addr(ebpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = typed::<CgroupSockAddr>(ebpf, name)?;
    let id = program.attach(cgroup, MODE)?;
    as_fd_link(program.take_link(id)?)
}

fn sock_ops(ebpf: &mut Ebpf, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = typed::<SockOps>(ebpf, SOCK_OPS)?;
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
