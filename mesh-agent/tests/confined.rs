//! Gives up privileges as a proxy does and tries what a proxy may not do. Each attempt is a process of its
//! own, since some end it. Needs root, without which nothing would have to be given up.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use mesh_agent::sys::{drop_capabilities, seccomp};

/// What must become of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It works.
    Works,
    /// The kernel says no.
    Refused,
    /// The kernel ends the process (`SIGSYS`).
    Killed,
}

use Outcome::{Killed, Refused, Works};

type Attempt = fn() -> io::Result<()>;

/// Attempts with what has to come of them: for one that has no privileges, and for one that is closed off as
/// well.
const ATTEMPTS: [(&str, Attempt, Outcome, Outcome); 18] = [
    ("setns", setns, Refused, Killed),
    ("ptrace", ptrace, Refused, Killed),
    ("load eBPF", load_ebpf, Refused, Killed),
    ("make a map", make_map, Refused, Killed),
    ("open another namespace", open_namespace, Refused, Refused),
    ("mount", mount, Refused, Killed),
    ("run a program", run_program, Works, Killed),
    ("write a file", write_file, Works, Refused),
    ("signal another", signal_another, Works, Refused),
    ("have the kernel signal another", have_another_signalled, Works, Refused),
    ("raw socket", raw_socket, Refused, Refused),
    ("Unix socket", unix_socket, Works, Refused),
    ("low port", low_port, Refused, Refused),
    ("read a file", read_file, Works, Works),
    ("start a thread", start_thread, Works, Works),
    ("talk TCP", talk, Works, Works),
    ("copy a descriptor", copy_descriptor, Works, Works),
    ("talk to itself", talk_to_itself, Works, Works),
];

#[test]
fn a_proxy_can_do_what_it_has_to_and_nothing_more() {
    assert!(rustix::process::geteuid().is_root(), "needs root");
    for (name, _, unprivileged, closed) in ATTEMPTS {
        assert_eq!(outcome(name, false), unprivileged, "{name}, without privileges");
        assert_eq!(outcome(name, true), closed, "{name}, closed off");
    }
}

/// Not a test: what the one above starts, with the attempt's name in the environment.
#[test]
#[ignore = "the other test starts it"]
fn attempt() {
    let name = std::env::var("ATTEMPT").unwrap();
    let (_, attempt, ..) = ATTEMPTS.iter().find(|(known, ..)| *known == name).unwrap();
    drop_capabilities::drop_all_capabilities().unwrap();
    if std::env::var_os("CLOSED").is_some() {
        seccomp::apply_filters().unwrap();
    }
    let code = match attempt() {
        Ok(()) => 10,
        Err(error) if is_refusal(&error) => 11,
        Err(error) => panic!("{name}: {error}"),
    };
    std::process::exit(code);
}

#[test]
fn a_panic_of_any_task_ends_a_proxy() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "panic_of_a_task", "--ignored", "--nocapture"]).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", output.status);
}

/// Not a test: what the one above starts.
#[test]
#[ignore = "the other test starts it"]
fn panic_of_a_task() {
    mesh_agent::panic_abort::abort_on_panic();
    seccomp::apply_filters().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _goes_on_without = runtime.block_on(runtime.spawn(async { panic!("on purpose") }));
}

fn outcome(name: &str, closed: bool) -> Outcome {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "attempt", "--ignored", "--nocapture"]).env("ATTEMPT", name);
    if closed {
        command.env("CLOSED", "1");
    }
    let output = command.output().unwrap();
    let status: ExitStatus = output.status;
    match (status.code(), status.signal()) {
        (Some(10), _) => Works,
        (Some(11), _) => Refused,
        (None, Some(libc::SIGSYS)) => Killed,
        _ => panic!("{name}: {status}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

fn call(number: libc::c_long, arguments: [u64; 3]) -> io::Result<()> {
    let [one, two, three] = arguments;
    // SAFETY: made for calls that are refused, with arguments that point at nothing or at memory that
    // outlives the call.
    let answer = unsafe { libc::syscall(number, one, two, three, 0_u64, 0_u64) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn setns() -> io::Result<()> {
    let own = fs::File::open("/proc/self/ns/net")?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&own);
    call(libc::SYS_setns, [u64::try_from(descriptor).unwrap(), 0, 0])
}

fn ptrace() -> io::Result<()> {
    call(libc::SYS_ptrace, [u64::from(libc::PTRACE_SEIZE), u64::from(parent()), 0])
}

fn load_ebpf() -> io::Result<()> {
    let attributes = [0_u64; 16];
    call(libc::SYS_bpf, [5, attributes.as_ptr() as u64, 128])
}

/// An array of one number: type 2, keys and values of four bytes.
fn make_map() -> io::Result<()> {
    let attributes: [u32; 8] = [2, 4, 4, 1, 0, 0, 0, 0];
    call(libc::SYS_bpf, [0, attributes.as_ptr() as u64, 32])
}

/// The one who started this has its privileges still.
fn open_namespace() -> io::Result<()> {
    fs::File::open(format!("/proc/{}/ns/net", parent())).map(drop)
}

fn mount() -> io::Result<()> {
    call(libc::SYS_mount, [c"none".as_ptr() as u64, c"/mnt".as_ptr() as u64, c"tmpfs".as_ptr() as u64])
}

fn run_program() -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    // In place of this process, so that what becomes of it is seen.
    Err(Command::new("sh").args(["-c", "exit 10"]).exec())
}

fn write_file() -> io::Result<()> {
    let path = std::env::temp_dir().join(format!("nodemesh-confined-{}", std::process::id()));
    fs::write(&path, "x")?;
    fs::remove_file(path)
}

fn signal_another() -> io::Result<()> {
    // Signal 0 asks only whether it may.
    call(libc::SYS_kill, [u64::from(parent()), 0, 0])
}

/// The signal is sent when there is something to read, so not in this test.
fn have_another_signalled() -> io::Result<()> {
    let (reader, _writer) = io::pipe()?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let set_owner = u64::try_from(libc::F_SETOWN).unwrap();
    call(libc::SYS_fcntl, [u64::try_from(descriptor).unwrap(), set_owner, parent().into()])
}

fn unix_socket() -> io::Result<()> {
    UnixDatagram::unbound().map(drop)
}

fn raw_socket() -> io::Result<()> {
    call(libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0])
}

fn low_port() -> io::Result<()> {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    assert!(first.trim().parse::<u16>().unwrap() > 1, "every port is anybody's here");
    TcpListener::bind("127.0.0.1:1").map(drop)
}

fn read_file() -> io::Result<()> {
    fs::read_to_string("/proc/self/status").map(drop)
}

fn start_thread() -> io::Result<()> {
    let _joined = std::thread::Builder::new().spawn(|| ())?.join();
    Ok(())
}

fn talk() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let _client = TcpStream::connect(listener.local_addr()?)?;
    listener.accept().map(drop)
}

fn copy_descriptor() -> io::Result<()> {
    fs::File::open("/proc/self/status")?.try_clone().map(drop)
}

fn talk_to_itself() -> io::Result<()> {
    let (one, _other) = UnixDatagram::pair()?;
    one.set_nonblocking(true)
}

fn parent() -> u32 {
    std::os::unix::process::parent_id()
}
