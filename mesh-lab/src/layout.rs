//! Where everything of a lab is found, by its name alone.
//!
//! Nothing here is remembered anywhere else: whoever knows a lab's name can find and remove all of it, even
//! after its daemon has crashed.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Directory below which every lab keeps its state.
pub const STATE_ROOT: &str = "/run/nodemesh-lab";
/// Most nodes that a lab can have (they share one byte of the node network's addresses).
pub const MAX_NODES: u8 = 100;
/// Node addresses' host part is the node's number plus this.
const NODE_OFFSET: u8 = 10;

/// A lab's name: lower-case letters, digits and inner dashes, at most 32 of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(Arc<str>);

/// A text that cannot name a lab.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot name a lab: use 1 to 32 lower-case letters, digits and inner dashes")]
pub struct BadName(String);

impl FromStr for LabName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=32).contains(&text.len())
            && text.bytes().all(legal)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text.into())) } else { Err(BadName(text.to_owned())) }
    }
}

impl TryFrom<String> for LabName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The paths and names of one lab.
#[derive(Clone, Debug)]
pub struct Layout {
    name: LabName,
    state: PathBuf,
    cgroup_mount: PathBuf,
}

impl Layout {
    /// The layout of the lab `name`. Errors: this machine has no cgroup v2 mounted.
    pub fn new(name: LabName) -> io::Result<Self> {
        let state = Path::new(STATE_ROOT).join(&*name.0);
        Ok(Self { name, state, cgroup_mount: cgroup_mount()? })
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// State directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Socket on which the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.state.join("daemon.sock")
    }

    /// What the daemon logs.
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    /// Directory of the control plane: `config/`, `state/`, `tokens/`, `control.sock`, `log`.
    pub fn control(&self) -> ControlLayout {
        ControlLayout(self.state.join("control"))
    }

    /// Directory of a node: `pods/`, `admin.sock`, `agent.log`, `token`.
    pub fn node(&self, node: &str) -> NodeLayout {
        NodeLayout {
            state: self.state.join("nodes").join(node),
            cgroup: self.cgroup().join(node),
            bpf: self.bpf().join(node),
            netns: self.netns(node),
        }
    }

    /// Directory of a pod: `<container>.log`, `resolv.conf`, `hosts`.
    pub fn pod(&self, namespace: &str, name: &str) -> PathBuf {
        self.state.join("pods").join(namespace).join(name)
    }

    /// The cgroup that every process of the lab is below.
    pub fn cgroup(&self) -> PathBuf {
        self.cgroup_root().join(&*self.name.0)
    }

    /// The cgroup that every lab is below.
    pub fn cgroup_root(&self) -> PathBuf {
        self.cgroup_mount.join("nodemesh-lab")
    }

    /// Where the nodes' agents pin their eBPF objects.
    pub fn bpf(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/nodemesh-lab").join(&*self.name.0)
    }

    /// Name of the network namespace of a node, or of the fabric between them.
    pub fn netns_name(&self, member: &str) -> String {
        format!("nm-{}-{member}", self.name)
    }

    /// Path of a network namespace of the lab.
    pub fn netns(&self, member: &str) -> PathBuf {
        Path::new("/run/netns").join(self.netns_name(member))
    }

    /// Whether a network namespace of that name is this lab's. Exact, since `a-b` is a lab's name as well as
    /// `a`.
    pub fn owns_netns(&self, netns: &str) -> bool {
        let member = netns.strip_prefix("nm-").and_then(|rest| rest.strip_prefix(&*self.name.0));
        member.and_then(|rest| rest.strip_prefix('-')).is_some_and(is_member)
    }
}

/// The control plane's part of a lab's state directory.
#[derive(Clone, Debug)]
pub struct ControlLayout(PathBuf);

impl ControlLayout {
    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The manifests it reads.
    pub fn config(&self) -> PathBuf {
        self.0.join("config")
    }

    /// What it keeps: its authority, for one.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// The trust bundle that it publishes for agents.
    pub fn root_cert(&self) -> PathBuf {
        self.state().join("root-cert.pem")
    }

    /// One token per node.
    pub fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// Its admin socket.
    pub fn admin(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// What it logs.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

/// What belongs to one node.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    state: PathBuf,
    cgroup: PathBuf,
    bpf: PathBuf,
    netns: PathBuf,
}

impl NodeLayout {
    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.state
    }

    /// The pods of the node, as its agent reads them.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// The agent's admin socket.
    pub fn admin(&self) -> PathBuf {
        self.state.join("admin.sock")
    }

    /// Where the agent's successor finds it.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// What the agent logs.
    pub fn agent_log(&self) -> PathBuf {
        self.state.join("agent.log")
    }

    /// What the agent proves to be this node's with.
    pub fn token(&self) -> PathBuf {
        self.state.join("token")
    }

    /// The node's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup of a pod.
    pub fn pod_cgroup(&self, uid: &str) -> PathBuf {
        self.cgroup.join("kubepods").join(format!("pod{uid}"))
    }

    /// The agent's cgroup.
    pub fn agent_cgroup(&self) -> PathBuf {
        self.cgroup.join("agent")
    }

    /// The cgroup of programs that users start on the node.
    pub fn system_cgroup(&self) -> PathBuf {
        self.cgroup.join("system")
    }

    /// Where the agent pins its eBPF objects.
    pub fn bpf(&self) -> &Path {
        &self.bpf
    }

    /// The node's network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }
}

/// The fabric's member name: the namespace with the bridge that joins the nodes.
pub const FABRIC: &str = "fabric";

fn is_member(text: &str) -> bool {
    let number = text.strip_prefix("node");
    text == FABRIC || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// A node's number, from 1, and the addresses that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNumber(u8);

impl NodeNumber {
    /// The numbers of a lab of `count` nodes.
    pub fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count.min(MAX_NODES)).map(Self)
    }

    /// The node's name: `node1`.
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    /// The node's own addresses on the fabric.
    pub fn addresses(self) -> [IpAddr; 2] {
        let host = self.0 + NODE_OFFSET;
        [
            Ipv4Addr::new(172, 30, 0, host).into(),
            // Written as in `fd00:30::12`: the digits of the IPv4 host part, read as hexadecimal.
            Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, decimal_digits(host)).into(),
        ]
    }

    /// The addresses of pod `host` of the node; host 1 is the node's own bridge, the pods' gateway.
    pub fn pod_addresses(self, host: u8) -> [IpAddr; 2] {
        [
            Ipv4Addr::new(10, 244, self.0, host).into(),
            Ipv6Addr::new(0xfd00, 0x244, decimal_digits(self.0), 0, 0, 0, 0, u16::from(host)).into(),
        ]
    }

    /// The gateway of the node's pods, where its name server listens too.
    pub fn gateway(self) -> [IpAddr; 2] {
        self.pod_addresses(1)
    }

    /// The pods' networks: `10.244.1.0/24` and `fd00:244:1::/64`.
    pub fn pod_networks(self) -> [String; 2] {
        let [v4, v6] = self.pod_addresses(0);
        [format!("{v4}/24"), format!("{v6}/64")]
    }

    /// A hardware address for the pods' bridge. Given, since a bridge without one changes it as ports come
    /// and go, and pods would keep a stale one in their neighbour tables.
    pub fn bridge_mac(self) -> String {
        format!("02:00:0a:f4:{:02x}:01", self.0)
    }
}

/// The fabric's addresses, where the control plane listens.
pub const FABRIC_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1))];

/// A number whose hexadecimal digits are the decimal digits of `value`.
fn decimal_digits(value: u8) -> u16 {
    let value = u16::from(value);
    (value / 100 * 0x100) + (value / 10 % 10 * 0x10) + value % 10
}

fn cgroup_mount() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let target = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
    });
    mount.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "cgroup v2 is not mounted; try `mount -t cgroup2 none /sys/fs/cgroup`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        let texts = |pair: [IpAddr; 2]| pair.map(|ip| ip.to_string());
        let second = NodeNumber(2);
        assert_eq!(texts(second.addresses()), ["172.30.0.12", "fd00:30::12"]);
        assert_eq!(texts(second.gateway()), ["10.244.2.1", "fd00:244:2::1"]);
        assert_eq!(second.pod_networks(), ["10.244.2.0/24", "fd00:244:2::/64"]);
        assert_eq!(texts(NodeNumber(12).gateway()), ["10.244.12.1", "fd00:244:12::1"]);
        assert_eq!(texts(NodeNumber(100).addresses()), ["172.30.0.110", "fd00:30::110"]);
    }

    #[test]
    fn a_lab_owns_its_namespaces_only() {
        let layout =
            Layout { name: "a".parse().unwrap(), state: PathBuf::new(), cgroup_mount: PathBuf::new() };
        for own in ["nm-a-fabric", "nm-a-node1", "nm-a-node12"] {
            assert!(layout.owns_netns(own), "{own}");
        }
        for other in
            ["nm-a-b-node1", "nm-a-node1-fabric", "nm-a-node", "nm-ab-node1", "nm-a", "a-node1", "nm-b-node1"]
        {
            assert!(!layout.owns_netns(other), "{other}");
        }
    }

    #[test]
    fn names_stay_below_the_state_directory() {
        for bad in ["", ".", "..", "a/b", "A", "-a", "a-", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        assert!("my-lab2".parse::<LabName>().is_ok());
    }
}
