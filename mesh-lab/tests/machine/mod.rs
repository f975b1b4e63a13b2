//! What of a lab is on the machine.

use std::{fs, path::Path};

use mesh_lab::layout::Layout;

/// Everything by which a lab could be noticed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Machine {
    namespaces: Vec<String>,
    cgroups: bool,
    state: bool,
    pinned: bool,
    processes: Vec<String>,
    links: Vec<String>,
}

impl Machine {
    /// Looks for traces of the lab `name`.
    pub fn look(name: &str) -> Self {
        let layout = Layout::new(name.parse().unwrap()).unwrap();
        let all = entries(Path::new("/run/netns"));
        Self {
            namespaces: all.into_iter().filter(|netns| layout.owns_netns(netns)).collect(),
            cgroups: layout.cgroup().exists(),
            state: layout.state().exists(),
            pinned: layout.bpf().exists(),
            processes: processes(name),
            links: entries(Path::new("/sys/class/net")).into_iter().filter(is_ours).collect(),
        }
    }
}

/// Processes whose cgroup is below the lab's, and those that have the lab's name on their command line.
fn processes(name: &str) -> Vec<String> {
    let pids = entries(Path::new("/proc"))
        .into_iter()
        .filter(|entry| entry.bytes().all(|byte| byte.is_ascii_digit()));
    let of_lab = |pid: &String| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        // The dead wait for the machine's init, in which the lab has no say.
        if read("stat").rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            return false;
        }
        let cgroup =
            read("cgroup").lines().any(|line| line.starts_with(&format!("0::/nodemesh-lab/{name}/")));
        cgroup || read("cmdline").contains(&format!("--name\0{name}\0internal-"))
    };
    pids.filter(of_lab).collect()
}

/// Whether a link of the machine itself has a name that the lab gives. It should give them in its namespaces
/// only.
fn is_ours(link: &String) -> bool {
    let pod = link.strip_prefix("veth").is_some_and(|uid| uid.len() == 11);
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let node = link.strip_prefix("node").is_some_and(is_number);
    pod || node || link == "pods" || link == "br0"
}

fn entries(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
