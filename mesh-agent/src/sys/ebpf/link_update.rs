//! Replaces a pinned attachment's program: two calls of bpf(2) that the library does not have for these
//! kinds.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of `linux/bpf.h`.
const OBJ_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;

/// The fields of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The fields that `BPF_LINK_UPDATE` reads.
#[repr(C)]
struct LinkUpdate {
    link_fd: RawFd,
    new_prog_fd: RawFd,
    flags: u32,
    old_prog_fd: u32,
}

/// Makes a pinned attachment run another program from the next packet or call on: it is never without one,
/// and never has two. Errors: there is no such pin, its target is gone, or the program is of another kind.
pub(super) fn update_pinned_link(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open(pin)?;
    let update = LinkUpdate {
        link_fd: link.as_fd().as_raw_fd(),
        new_prog_fd: program.as_raw_fd(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf_syscall(LINK_UPDATE, &update).map(|_| ())
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let descriptor = bpf_syscall(OBJ_GET, &get)?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns. There is no safe way: it
    // comes as a number.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

pub(super) fn bpf_syscall<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as it is told, which are those of `attributes`; all structs that
    // come here have the layout of the kernel's, and what they point at (text that ends in zero,
    // instructions, open descriptors) lives in the callers until this returns. There is no safe way: no
    // library that we have wraps these commands.
    #[allow(unsafe_code)]
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(answer).unwrap_or(-1)) }
}
