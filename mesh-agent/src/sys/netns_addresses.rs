//! Addresses of the node's and of pods' network namespaces, read from the kernel's tables in `/proc`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use super::Netns;

/// Most bytes of a table of addresses or routes that are read, since a pod may fill its own.
const MOST_OF_A_PODS_TABLE: u64 = 4 << 20;

/// Returns the addresses of this (the node's) network namespace, without loopback. Errors: the kernel's
/// tables can't be read.
pub fn node_addresses() -> io::Result<Vec<IpAddr>> {
    addresses_here(u64::MAX)
}

/// Returns the addresses by which others reach a pod, from its own namespace; none until its network is set
/// up. A link-local address is not a pod's: every interface has one. Errors: the kernel's tables can't be
/// read.
pub fn pod_addresses_in(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    let mut addresses = netns.run_inside(|| addresses_here(MOST_OF_A_PODS_TABLE))??;
    addresses.retain(|address| match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    });
    Ok(addresses)
}

/// Returns the addresses that a pod's connections leave with, from its own namespace: the sandbox's, and not
/// those of further interfaces. None of a family that has no route out. Errors: the namespace can't be
/// entered.
pub fn primary_addresses_in(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    /// Documentation addresses (RFC 5737, RFC 3849), which are behind the default route.
    const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
    let source_to = |elsewhere: &str| {
        let unspecified = if elsewhere.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(unspecified)?;
        // Sends nothing.
        socket.connect(elsewhere)?;
        Ok::<_, io::Error>(socket.local_addr()?.ip())
    };
    netns.run_inside(|| ELSEWHERE.into_iter().flat_map(source_to).collect())
}

/// Whether a pod has IPv6 switched off. Errors: the namespace can't be entered.
pub fn is_ipv6_disabled(netns: &Netns) -> io::Result<bool> {
    let says = |interface: &str, what| {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == what)
    };
    // The interface's setting counts. A kernel without IPv6 has none.
    netns.run_inside(|| says("eth0", "1") || !says("eth0", "0") && !says("all", "0"))
}

/// Returns the addresses of the thread's network namespace that are in the first `most` bytes of the kernel's
/// tables.
fn addresses_here(most: u64) -> io::Result<Vec<IpAddr>> {
    let lines = |table: &str| {
        let file = File::open(Path::new("/proc/thread-self/net").join(table))?;
        Ok::<_, io::Error>(BufReader::new(file.take(most)).lines().map_while(Result::ok))
    };
    let mut addresses: Vec<IpAddr> = local_v4(lines("fib_trie")?).map(IpAddr::V4).collect();
    // Missing if the kernel has no IPv6.
    addresses.extend(lines("if_inet6").into_iter().flat_map(local_v6).map(IpAddr::V6));
    addresses.retain(|address| !address.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Returns every address that is followed by a `/32 host LOCAL` line (kernel: `fib_trie_seq_show`).
fn local_v4(lines: impl Iterator<Item = String>) -> impl Iterator<Item = Ipv4Addr> {
    let mut last = None;
    lines.filter_map(move |line| {
        let line = line.trim();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            last = leaf.parse().ok();
        }
        if line == "/32 host LOCAL" { last } else { None }
    })
}

/// Returns the first column of each line, 32 hexadecimal digits (kernel: `if6_seq_show`).
fn local_v6(lines: impl Iterator<Item = String>) -> impl Iterator<Item = Ipv6Addr> {
    lines
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_address_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.244.1.0\n        /24 link UNICAST\n     |-- 10.244.1.1\n        /32 host LOCAL\n     |-- 10.244.1.255\n        /32 link BROADCAST\n";
        let lines = |text: &'static str| text.lines().map(str::to_owned);
        assert_eq!(local_v4(lines(trie)).collect::<Vec<_>>(), ["10.244.1.1".parse::<Ipv4Addr>().unwrap()]);
        let six = "fd002440000100000000000000000001 05 40 00 80 br0\n";
        assert_eq!(local_v6(lines(six)).collect::<Vec<_>>(), ["fd00:2440:1::1".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn a_table_is_read_no_further_than_is_said() {
        assert!(!addresses_here(0).is_ok_and(|addresses| !addresses.is_empty()));
        assert_eq!(addresses_here(u64::MAX).unwrap(), node_addresses().unwrap());
    }
}
