//! What the agent needs, and how each need is checked.

use std::fs;
use std::path::Path;

use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramType, SchedClassifier};
use aya::sys::is_program_supported;
use rustix::process::{Resource, getrlimit};

use super::CheckedRequirement;
use crate::sys::ebpf::TrialLoad;
use crate::sys::{Netns, cgroup_contains_process, cgroup_id_of_self};

/// Open files that a busy node needs.
const ENOUGH_FILES: u64 = 10_000;

/// Result of a check: what was found, or why nothing was.
type Found = Result<String, String>;

/// Checks all needs. `in_pod` is whether this process is in a pod of the node, which then has to be where the
/// agent looks for pods.
pub(super) fn check_all(cgroup_root: &Path, in_pod: bool) -> Vec<CheckedRequirement> {
    let (loaded, unprivileged) = trial();
    let own_cgroup = if in_pod { below(cgroup_root) } else { cgroup(cgroup_root) };
    vec![
        need("kernel", true, kernel(), "netns cookies and sk_lookup need Linux 5.14 or later"),
        need("BTF", true, exists("/sys/kernel/btf/vmlinux"), "socket storage can't be created"),
        need("cgroup v2", true, own_cgroup, "there is nothing to attach the programs to"),
        need(
            "BPF file system",
            true,
            bpffs(),
            "nothing outlives the agent: a crash would let pods out in plaintext",
        ),
        need("CAP_BPF", true, capability(39), "eBPF programs can't be loaded"),
        need("CAP_NET_ADMIN", true, capability(12), "eBPF programs can't be attached"),
        need(
            "CAP_NET_RAW",
            false,
            capability(13),
            "connections to where nobody listens are accepted, and then reset",
        ),
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

fn need(name: &'static str, required: bool, found: Found, without: &'static str) -> CheckedRequirement {
    let (found, detail) = match found {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    CheckedRequirement { name, required, found, detail, without }
}

fn kernel() -> Found {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 14) { Ok(release) } else { Err(format!("{release} is older than 5.14")) }
}

/// Whether programs can be attached to interfaces by links (TCX). The kernel is asked, since its version does
/// not tell.
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
    let id = cgroup_id_of_self(root).map_err(|error| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        format!("{error}; {}", advice(&mounts))
    })?;
    Ok(format!("{}, own cgroup {id}", root.display()))
}

/// Where this process is in a pod, whether that is below `root`: programs attached there see only what is
/// below it.
fn below(root: &Path) -> Found {
    let found = cgroup(root)?;
    if cgroup_contains_process(root, std::process::id()) {
        return Ok(found);
    }
    Err(format!(
        "the node's pods are not below {}: set agent.cgroupRoot (--cgroup-root) to the cgroup v2 directory above them, such \
         as /sys/fs/cgroup, or /sys/fs/cgroup/unified where v1 is mounted too",
        root.display()
    ))
}

/// Returns what to set, by the mounts that are visible.
fn advice(mounts: &str) -> String {
    let v2 = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(path)
    });
    match v2 {
        Some(path) => format!("set agent.cgroupRoot={path} (--cgroup-root)"),
        None => "set agent.cgroupRoot (--cgroup-root) to where cgroup v2 is mounted; none is to be seen here, and \
                 systemd.unified_cgroup_hierarchy=1 on the kernel's command line has it mounted at /sys/fs/cgroup"
            .to_owned(),
    }
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

/// Whether this process has a capability, by its number in `linux/capability.h`.
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

/// Whether the kernel takes the agent's programs, and whether their maps can be read without a privilege.
/// That is tried, since distributions take much from later kernels and the version does not tell.
fn trial() -> (Found, Found) {
    match TrialLoad::load() {
        Ok(mut trial) => {
            let read = trial.check_unprivileged_map_read();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_root_that_does_not_work_is_told_with_the_value_that_does() {
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(advice(hybrid), "set agent.cgroupRoot=/sys/fs/cgroup/unified (--cgroup-root)");
        let v1 = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n";
        assert!(advice(v1).contains("systemd.unified_cgroup_hierarchy=1"));
    }

    #[test]
    fn a_root_that_is_no_cgroup_or_has_no_pod_below_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = cgroup(directory.path()).unwrap_err();
        assert!(error.contains("agent.cgroupRoot"), "{error}");
        fs::write(directory.path().join("cgroup.procs"), "1\n").unwrap();
        assert!(
            cgroup_contains_process(directory.path(), 1) && !cgroup_contains_process(directory.path(), 2)
        );
    }
}
