//! Attaches programs, and keeps the attachments across the keeper's restarts.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, LinkOrder, Program, ProgramError,
    SchedClassifier, SkLookup, SockOps, SocketFilter,
};

use super::map_helpers::map_descriptor;
use super::{Error, link_update, map_error, per_pod_program_prologue};
use crate::sys::{HostVeth, Netns};

/// Directory where attachments to pods' namespaces are pinned.
pub(super) const POD_PINS_DIR: &str = "pods";

/// On kernels from 5.7 on several links to a cgroup add up whatever the mode is, and any other mode is
/// refused.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The socket-address programs, by name.
const SOCK_ADDR: [&str; 6] =
    ["connect4", "connect6", "getpeername4", "getpeername6", "getsockname4", "getsockname6"];
const SOCK_OPS: &str = "socket_ops";
const SK_LOOKUP: &str = "inbound";
/// Names of the maps that lead from a pod's namespace to the program that all pods share.
const HERE: &str = "HERE";
const INBOUND: &str = "INBOUND";
const GUARD: &str = "guard";
const FROM_POD: &str = "from_pod";
const DEFER_ACCEPT: &str = "defer_accept";

/// Has the kernel check all programs. Errors: it refuses one.
pub(super) fn verify_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    program_as::<SockOps>(ebpf, SOCK_OPS).and_then(SockOps::load).map_err(program_error(SOCK_OPS))?;
    for name in SOCK_ADDR {
        program_as::<CgroupSockAddr>(ebpf, name)
            .and_then(CgroupSockAddr::load)
            .map_err(program_error(name))?;
    }
    program_as::<CgroupSkb>(ebpf, GUARD).and_then(CgroupSkb::load).map_err(program_error(GUARD))?;
    program_as::<SchedClassifier>(ebpf, FROM_POD)
        .and_then(SchedClassifier::load)
        .map_err(program_error(FROM_POD))?;
    program_as::<SocketFilter>(ebpf, DEFER_ACCEPT)
        .and_then(SocketFilter::load)
        .map_err(program_error(DEFER_ACCEPT))?;
    program_as::<SkLookup>(ebpf, SK_LOOKUP).and_then(SkLookup::load).map_err(program_error(SK_LOOKUP))
}

/// Attaches the programs of the node's cgroup, each in place of its predecessor.
pub(super) fn attach_cgroup_programs(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), Error> {
    let directory = File::open(cgroup).map_err(|error| Error::Path { path: cgroup.into(), error })?;
    // Programs that guard a flow, or read its handover, come before those that start one.
    attach_or_replace(ebpf, GUARD, &links.join(GUARD), |ebpf| guard(ebpf, &directory))?;
    attach_or_replace(ebpf, SOCK_OPS, &links.join(SOCK_OPS), |ebpf| sock_ops(ebpf, &directory))?;
    for name in SOCK_ADDR.into_iter().rev() {
        attach_or_replace(ebpf, name, &links.join(name), |ebpf| sock_addr(ebpf, name, &directory))?;
    }
    Ok(())
}

/// Has the program for inbound connections of pods decide, in place of a predecessor's.
pub(super) fn set_inbound_program(ebpf: &mut Ebpf) -> Result<(), Error> {
    let program = ebpf.program(SK_LOOKUP).ok_or(ProgramError::NotLoaded).and_then(Program::fd);
    let program = program.and_then(|it| Ok(it.try_clone()?)).map_err(program_error(SK_LOOKUP))?;
    let map = ebpf.map_mut(INBOUND).ok_or(Error::Missing(INBOUND))?;
    let mut inbound = ProgramArray::try_from(map).map_err(map_error(INBOUND))?;
    inbound.set(0, &program, 0).map_err(map_error(INBOUND))
}

/// Attaches a pod's prologue, with which inbound connections of the pod are decided, in place of a
/// predecessor's.
pub(super) fn attach_prologue(ebpf: &Ebpf, netns: &Netns, pin: &Path) -> Result<(), Error> {
    let failed = |error| Error::Path { path: pin.into(), error };
    let prologue = load_pod_identity_prologue(ebpf, netns.cookie())?;
    if pin.exists() {
        match link_update::update_pinned_link(pin, prologue.as_fd()) {
            Ok(()) => return Ok(()),
            // The pod's namespace is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => remove_pin(pin)?,
            Err(error) => return Err(failed(error)),
        }
    }
    per_pod_program_prologue::attach_to_netns_and_pin(prologue.as_fd(), netns.as_fd(), pin).map_err(failed)
}

/// Defers the accepts of an outbound listener, in place of a predecessor's filter.
pub(super) fn attach_syn_deferral_to_listener(ebpf: &Ebpf, listener: impl AsFd) -> Result<(), Error> {
    let program =
        ebpf.program(DEFER_ACCEPT).ok_or(ProgramError::NotLoaded).and_then(<&SocketFilter>::try_from);
    program.and_then(|filter| filter.attach(listener)).map_err(program_error(DEFER_ACCEPT))
}

/// Attaches the program at the node's end of a pod's veth, before all others, in place of a predecessor's.
/// Errors: the kernel is older than 6.6, for instance.
pub(super) fn attach_to_veth(ebpf: &mut Ebpf, end: &HostVeth, pin: &Path) -> Result<(), Error> {
    attach_or_replace(ebpf, FROM_POD, pin, |ebpf| {
        let program = program_as::<SchedClassifier>(ebpf, FROM_POD)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&end.name, TcAttachType::Ingress, first)?;
        let link = program.take_link(id)?;
        link.try_into().map_err(|error: LinkError| ProgramError::IOError(io::Error::other(error)))
    })
}

/// Whether our program, and no other, is at the node's end of a veth, in either direction. Errors: the
/// kernel's.
pub(super) fn is_only_program_at_veth(ebpf: &mut Ebpf, end: &HostVeth) -> Result<bool, Error> {
    let mut look = || -> Result<bool, ProgramError> {
        let own = program_as::<SchedClassifier>(ebpf, FROM_POD)?.info()?.id();
        let (_, leaving) = SchedClassifier::query_tcx(&end.name, TcAttachType::Ingress)?;
        let (_, arriving) = SchedClassifier::query_tcx(&end.name, TcAttachType::Egress)?;
        Ok(leaving.iter().map(aya::programs::ProgramInfo::id).eq([own]) && arriving.is_empty())
    };
    look().map_err(program_error(FROM_POD))
}

/// Loads the prologue of a pod, by the cookie of its network namespace.
pub(super) fn load_pod_identity_prologue(ebpf: &Ebpf, cookie: u64) -> Result<OwnedFd, Error> {
    let descriptor = |name| ebpf.map(name).and_then(map_descriptor).ok_or(Error::Missing(name));
    per_pod_program_prologue::load_for_pod(cookie, descriptor(HERE)?, descriptor(INBOUND)?)
        .map_err(|error| program_error("gate")(ProgramError::IOError(error)))
}

/// Removes a pinned attachment. One that is not there counts as removed.
pub(super) fn remove_pin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Path { path: pin.into(), error }),
        _ => Ok(()),
    }
}

/// Removes everything that agents pinned below `root`: their programs are detached, and pods talk as without
/// a mesh. Errors: a pin can't be removed.
pub fn unpin_all(root: &Path) -> io::Result<()> {
    // Before the maps: without the last pin of the map that leads to the program, a pod's prologue leads
    // nowhere.
    let layouts = list_pins(root).into_iter().map(|(_, path)| path).chain([root.to_owned()]);
    layouts.map(|layout| layout.join(POD_PINS_DIR)).try_for_each(|pods| remove_all(&pods))?;
    remove_all(root)
}

fn remove_all(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns the names and paths of the pins in a directory.
pub(super) fn list_pins(directory: &Path) -> Vec<(String, PathBuf)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

/// Replaces a predecessor's program, or attaches this one if there is none.
pub(super) fn attach_or_replace(
    ebpf: &mut Ebpf,
    name: &'static str,
    pin: &Path,
    attach: impl FnOnce(&mut Ebpf) -> Result<FdLink, ProgramError>,
) -> Result<(), Error> {
    let failed = |error| Error::Path { path: pin.into(), error };
    if pin.exists() {
        let program = ebpf.program(name).ok_or(ProgramError::NotLoaded).and_then(Program::fd);
        let program = program.map_err(program_error(name))?;
        match link_update::update_pinned_link(pin, program.as_fd()) {
            Ok(()) => return Ok(()),
            // Its target is gone, so nothing can be without a program now.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => remove_pin(pin)?,
            Err(error) => return Err(failed(error)),
        }
    }
    let link = attach(ebpf).map_err(program_error(name))?;
    link.pin(pin).map_err(|error| failed(io::Error::other(error)))?;
    Ok(())
}

fn sock_addr(ebpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = program_as::<CgroupSockAddr>(ebpf, name)?;
    let id = program.attach(cgroup, MODE)?;
    as_fd_link(program.take_link(id)?)
}

fn sock_ops(ebpf: &mut Ebpf, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = program_as::<SockOps>(ebpf, SOCK_OPS)?;
    let id = program.attach(cgroup, MODE)?;
    as_fd_link(program.take_link(id)?)
}

fn guard(ebpf: &mut Ebpf, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = program_as::<CgroupSkb>(ebpf, GUARD)?;
    let id = program.attach(cgroup, CgroupSkbAttachType::Ingress, MODE)?;
    as_fd_link(program.take_link(id)?)
}

/// Converts a link; only kernels before 5.7 attach without one of this kind.
fn as_fd_link(link: impl TryInto<FdLink, Error = LinkError>) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

pub(super) fn program_as<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn program_error(name: &'static str) -> impl Fn(ProgramError) -> Error {
    move |error| Error::Program { name, error }
}
