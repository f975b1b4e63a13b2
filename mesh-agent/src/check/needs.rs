//! What the agent needs, and how each is looked for.

use std::fs;
use std::path::Path;

use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramType, SchedClassifier};
use aya::sys::is_program_supported;
use rustix::process::{Resource, getrlimit};

use super::Need;
use crate::sys::ebpf::Trial;
use crate::sys::{Netns, cgroup_id_of_self};

/// Open files below which a busy node runs out.
const ENOUGH_FILES: u64 = 10_000;

/// What a look gave: what was found, or why nothing was.
type Found = Result<String, String>;

pub(super) fn all(cgroup_root: &Path) -> Vec<Need> {
    let (loaded, unprivileged) = trial();
    vec![
        need("kernel", true, kernel(), "netns cookies and sk_lookup need Linux 5.14 or later"),
        need("BTF", true, exists("/sys/kernel/btf/vmlinux"), "socket storage can't be created"),
        need("cgroup v2", true, cgroup(cgroup_root), "there is nothing to attach the programs to"),
        need(
            "BPF file system",
            true,
            bpffs(),
            "nothing outlives the agent: a crash would let pods out in plaintext",
        ),
        need("CAP_BPF", true, capability(39), "eBPF programs can't be loaded"),
        need("CAP_NET_ADMIN", true, capability(12), "eBPF programs can't be attached"),
        need("CAP_SYS_ADMIN", true, capability(21), "pods' network namespaces can't be entered"),
        need("CAP_SYS_PTRACE", true, capability(19), "pods' network namespaces can't be found"),
        need(
            "cgroup_sock_addr programs",
            true,
            program(ProgramType::CgroupSockAddr),
            "connections can't be redirected",
        ),
        need("sock_ops programs", true, program(ProgramType::SockOps), "destinations can't be handed over"),
        need(
            "sk_lookup programs",
            true,
            program(ProgramType::SkLookup),
            "arriving connections can't be taken",
        ),
        need(
            "programs at veths",
            false,
            tcx(),
            "connections between pods of one node are encrypted where pods share a bridge",
        ),
        need("netns cookie", true, netns_cookie(), "pods can't be told apart"),
        need("all programs", true, loaded, "no pod can be enrolled"),
        need(
            "maps without privilege",
            true,
            unprivileged,
            "the proxy, which has none, can't work: that needs Linux 5.19, a distribution's kernel that has it from there, or kernel.unprivileged_bpf_disabled=0",
        ),
        need(
            "open files",
            false,
            open_files(),
            "few connections fit; raise the limit of the container runtime",
        ),
        need("IPv6", false, exists("/proc/net/if_inet6"), "pods are meshed on IPv4 only"),
        need("clock", false, clock(), "certificates look expired or not yet valid"),
    ]
}

fn need(name: &'static str, required: bool, found: Found, without: &'static str) -> Need {
    let (found, detail) = match found {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Need { name, required, found, detail, without }
}

fn kernel() -> Found {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 14) { Ok(release) } else { Err(format!("{release} is older than 5.14")) }
}

/// Programs that are attached by links to interfaces (TCX): what a kernel does counts, and this one can be asked.
fn tcx() -> Found {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok("connections between pods of one node go from veth to veth".to_owned()),
        Err(error) => Err(format!("not supported by this kernel, Linux 6.6 does: {error}")),
    }
}

fn exists(path: &str) -> Found {
    if Path::new(path).exists() { Ok(path.to_owned()) } else { Err(format!("no {path}")) }
}

fn cgroup(root: &Path) -> Found {
    let id = cgroup_id_of_self(root).map_err(|error| error.to_string())?;
    Ok(format!("{}, own cgroup {id}", root.display()))
}

fn bpffs() -> Found {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| path.to_owned())
    });
    mount.ok_or_else(|| "none is mounted: mount -t bpf bpf /sys/fs/bpf".to_owned())
}

/// By its number in `linux/capability.h`.
fn capability(number: u32) -> Found {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .ok_or("no CapEff in /proc/self/status")?;
    if effective >> number & 1 == 1 { Ok("granted".to_owned()) } else { Err("not granted".to_owned()) }
}

fn program(kind: ProgramType) -> Found {
    match is_program_supported(kind) {
        Ok(true) => Ok("supported".to_owned()),
        Ok(false) => Err("not supported by this kernel".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the kernel takes the agent's programs, and whether their maps can be read without a privilege. What a kernel
/// does counts more than its version: distributions take much from later ones.
fn trial() -> (Found, Found) {
    match Trial::load() {
        Ok(mut trial) => {
            let read = trial.read_unprivileged();
            let read = read.map(|()| "granted".to_owned()).map_err(|error| error.to_string());
            (Ok("taken by the kernel".to_owned()), read)
        }
        Err(error) => (Err(error.to_string()), Err("the programs were not taken".to_owned())),
    }
}

fn netns_cookie() -> Found {
    let netns = Netns::of_process(std::process::id()).map_err(|error| error.to_string())?;
    Ok(netns.cookie().to_string())
}

fn open_files() -> Found {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if most >= ENOUGH_FILES { Ok(most.to_string()) } else { Err(format!("{most}, below {ENOUGH_FILES}")) }
}

fn clock() -> Found {
    /// 2025-01-01: a clock before this release was never set.
    const BEFORE_RELEASE: u64 = 1_735_689_600;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    if now > BEFORE_RELEASE { Ok("set".to_owned()) } else { Err("never set".to_owned()) }
}
