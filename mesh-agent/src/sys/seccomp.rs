//! The system calls that a proxy may make once it serves (`seccomp(2)`), on all its threads.
//!
//! There are three filters, and the strictest answer counts: calls that only an attacker would make end the
//! process; calls that are not on the list of what a proxy needs fail with `EPERM`; and `clone3`, whose
//! arguments no filter can see, fails as on a kernel without it, so that the library makes threads by
//! `clone`, whose arguments can be checked.

use std::collections::BTreeMap;

use mesh_proxy::urgent_data_and_min_rtt::SIOCATMARK;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

/// Why the filters are not in force. Nothing may go on then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They can't be built for this machine.
    #[error("seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses them.
    #[error("seccomp: {0}")]
    Apply(#[from] seccompiler::Error),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// `bpf(2)` commands on maps that a proxy holds: look-up, update, delete, next key, information.
const MAP_COMMANDS: [u64; 5] = [1, 2, 3, 4, 15];

/// `bpf(2)` commands that only a keeper uses: making maps, loading programs and types, pinning, attaching.
const LOADING_COMMANDS: [u64; 7] = [0, 5, 6, 8, 17, 18, 28];

/// Flags for opening a file so that it could change.
const WRITING: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64
    | (libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;

/// `fcntl(2)` commands on descriptors and their flags. Others (`F_SETOWN`, `F_SETSIG`, `F_NOTIFY`,
/// `F_SETLEASE`) have the kernel signal any process that they name.
const DESCRIPTOR_COMMANDS: [u64; 6] = [
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_ADD_SEALS as u64,
];

/// Leaves the calling process only the system calls of a proxy that serves, for good. Errors: the filters are
/// not in force.
pub fn apply_filters() -> Result<(), Error> {
    apply(hostile()?, SeccompAction::Allow, SeccompAction::KillProcess)?;
    apply(all(&[libc::SYS_clone3]), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    // The last one: installing another is not on the list.
    apply(needed()?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn apply(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<(), Error> {
    let filter = SeccompFilter::new(rules, otherwise, matching, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(apply_filter_all_threads(&program)?)
}

/// Returns the calls that nothing in the proxy ever makes.
fn hostile() -> Result<Rules, Error> {
    let mut rules = all(&[
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_reboot,
    ]);
    rules.insert(libc::SYS_bpf, one_of(0, &LOADING_COMMANDS)?);
    Ok(rules)
}

fn needed() -> Result<Rules, Error> {
    let mut rules = all(&FILES);
    for calls in [&SOCKETS[..], &MEMORY, &THREADS, &WAITING, &OLDER] {
        rules.append(&mut all(calls));
    }
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_openat, vec![rule(2, SeccompCmpOp::MaskedEq(WRITING), 0)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![rule(1, SeccompCmpOp::MaskedEq(WRITING), 0)?]);
    rules.insert(libc::SYS_bpf, one_of(0, &MAP_COMMANDS)?);
    // Threads, no processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_fcntl, one_of(1, &DESCRIPTOR_COMMANDS)?);
    // Files in memory, for the next proxy.
    let sealable = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
    let flags = [sealable, sealable | u64::from(libc::MFD_NOEXEC_SEAL)];
    rules.insert(libc::SYS_memfd_create, one_of(1, &flags)?);
    // Sockets of the network, no raw packets. Of Unix sockets only pairs and those from the keeper: a proxy
    // has its keeper's user id, and could pass for a successor at the handover socket.
    let families = [libc::AF_INET as u64, libc::AF_INET6 as u64];
    let mut sockets = one_of(0, &families)?;
    let netlink = condition(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let route = condition(2, SeccompCmpOp::Eq, libc::NETLINK_ROUTE as u64)?;
    sockets.push(SeccompRule::new(vec![netlink, route])?);
    rules.insert(libc::SYS_socket, sockets);
    // Signals to itself alone.
    rules.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, own)?]);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD, SIOCATMARK])?);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64])?);
    // Reading limits, not setting them.
    rules.insert(
        libc::SYS_prlimit64,
        vec![SeccompRule::new(vec![SeccompCondition::new(
            2,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::Eq,
            0,
        )?])?],
    );
    Ok(rules)
}

/// Reading, and writing to what was opened for it before.
const FILES: [i64; 20] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

const SOCKETS: [i64; 17] = [
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_socketpair,
    libc::SYS_pipe2,
];

const MEMORY: [i64; 8] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mincore,
    libc::SYS_membarrier,
];

const THREADS: [i64; 22] = [
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

const WAITING: [i64; 13] = [
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// Calls that only this architecture has, and its C library may make.
#[cfg(target_arch = "x86_64")]
const OLDER: [i64; 8] = [
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: [i64; 0] = [];

/// Returns rules for system calls with any arguments.
fn all(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// Returns rules for an argument that is one of these values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, Error> {
    values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![condition(argument, operator, value)?])?)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}
