//! The prologue, which is attached to a pod's network namespace: a few instructions that write down which pod
//! it is, which the kernel does not tell such programs, and go on with the program that all pods share.
//! Written by hand, since each pod's has a number of its own.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::link_update::bpf_syscall;

/// Commands and constants of `linux/bpf.h`.
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;
const MAP_LOOKUP_ELEM: i32 = 1;
const TAIL_CALL: i32 = 12;
/// `BPF_PSEUDO_MAP_FD`: the number that is loaded is a map's descriptor.
const MAP_FD: u8 = 1;

/// The fields of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The fields that `BPF_LINK_CREATE` reads.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_fd: RawFd,
    attach_type: u32,
    flags: u32,
}

/// The fields that `BPF_OBJ_PIN` reads.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: RawFd,
    file_flags: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// Loads a 64-bit number, or a map, into a register: two instructions.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the number is taken apart")]
const fn load(to: u8, kind: u8, number: u64) -> [Instruction; 2] {
    [instruction(0x18, to, kind, 0, number as i32), instruction(0, 0, 0, 0, (number >> 32) as i32)]
}

/// Returns the program for the pod with this cookie. If anything fails, nothing arrives.
fn program(cookie: u64, here: RawFd, inbound: RawFd) -> [Instruction; 18] {
    let map = |to, descriptor: RawFd| load(to, MAP_FD, u64::from(descriptor.unsigned_abs()));
    let ([here, here_rest], [inbound, inbound_rest]) = (map(1, here), map(2, inbound));
    let [pod, pod_rest] = load(1, 0, cookie);
    [
        instruction(0xbf, 6, 1, 0, 0),   // r6 = context
        instruction(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
        here,                            // r1 = HERE
        here_rest,
        instruction(0xbf, 2, 10, 0, 0), // r2 = r10 - 4
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM), // r0 = its value
        instruction(0x15, 0, 0, 8, 0),               // if r0 == 0 goto drop
        pod,                                         // r1 = the pod
        pod_rest,
        instruction(0x7b, 0, 1, 0, 0), // *(u64 *)r0 = r1
        instruction(0xbf, 1, 6, 0, 0), // r1 = context
        inbound,                       // r2 = INBOUND
        inbound_rest,
        instruction(0xb7, 3, 0, 0, 0),         // r3 = 0
        instruction(0x85, 0, 0, 0, TAIL_CALL), // goes on there
        instruction(0xb7, 0, 0, 0, 0),         // drop: r0 = SK_DROP
        instruction(0x95, 0, 0, 0, 0),         // return r0
    ]
}

/// Loads the program of a pod, by the cookie of its network namespace. Errors: the kernel's.
pub(super) fn load_for_pod(
    cookie: u64,
    here: BorrowedFd<'_>,
    inbound: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    const LICENSE: &std::ffi::CStr = c"Dual BSD/GPL";
    let program = program(cookie, here.as_raw_fd(), inbound.as_raw_fd());
    let load = ProgLoad {
        prog_type: PROG_TYPE_SK_LOOKUP,
        insn_cnt: 18,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"nodemesh_gate\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: ATTACH_TYPE_SK_LOOKUP,
    };
    bpf_syscall(PROG_LOAD, &load).map(own)
}

/// Attaches a program to a network namespace, and pins the attachment. Errors: the kernel's, or there is such
/// a pin already.
pub(super) fn attach_to_netns_and_pin(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    pin: &Path,
) -> io::Result<()> {
    let create = LinkCreate {
        prog_fd: program.as_raw_fd(),
        target_fd: netns.as_raw_fd(),
        attach_type: ATTACH_TYPE_SK_LOOKUP,
        flags: 0,
    };
    let link = bpf_syscall(LINK_CREATE, &create).map(own)?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let pin = ObjPin { pathname: path.as_ptr() as u64, bpf_fd: link.as_raw_fd(), file_flags: 0 };
    bpf_syscall(OBJ_PIN, &pin).map(|_| ())
}

fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns. There is no safe way: it
    // comes as a number.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_in_the_instructions_and_failures_drop() {
        let all = program(0x1234_5678_9abc_def0, 7, 9);
        assert_eq!((all[8].immediate, all[9].immediate), (0x9abc_def0_u32.cast_signed(), 0x1234_5678));
        assert_eq!((all[2].immediate, all[12].immediate), (7, 9));
        let (at, failed) = (7, all[7]);
        let target = at + 1 + usize::try_from(failed.offset).unwrap();
        assert_eq!((all[target].code, all[target].immediate), (0xb7, 0), "r0 = SK_DROP");
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<ProgLoad>(), 72);
    }
}
