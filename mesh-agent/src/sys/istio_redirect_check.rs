//! Finds redirect rules that istio-cni left in a pod's network namespace, or keeps there (`rtnetlink`(7),
//! nfnetlink).
//!
//! They take the pod's connections to ports 15001 and 15006 before any program of ours sees them, marked or
//! not. istio-cni makes, by iptables or nftables, a routing rule for its mark and chains of its own. The
//! chains of a sidecar have other names: a sidecar has the ports itself, which is reported elsewhere.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::Netns;
use super::rtnetlink::{parse_attributes, read_c_string, read_u32};
use super::sock_diag::{NLMSG_DONE, NLMSG_ERROR, REQUEST_AND_DUMP, netlink_error, next_netlink_message};

/// Messages and attributes of `linux/rtnetlink.h`, `linux/fib_rules.h` and `linux/netfilter/nf_tables.h`.
mod raw {
    pub(super) const RTM_GETRULE: u16 = 34;
    pub(super) const FIB_RULE_HDR: usize = 12;
    pub(super) const FRA_FWMARK: u16 = 10;
    pub(super) const FRA_TABLE: u16 = 15;
    pub(super) const FRA_FWMASK: u16 = 16;
    /// `NFT_MSG_GETCHAIN` of the subsystem `NFNL_SUBSYS_NFTABLES`.
    pub(super) const GETCHAIN: u16 = 10 << 8 | 4;
    pub(super) const NFGENMSG: usize = 4;
    pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
    pub(super) const NFTA_CHAIN_NAME: u16 = 3;
    pub(super) const NFTA_CHAIN_USE: u16 = 6;
}

/// istio-cni's mark, its mask, and the routing table for marked packets (`cni/pkg/config` of Istio).
const MARK: u32 = 0x111;
const MASK: u32 = 0xfff;
const TABLE: u32 = 100;
/// Name of its chain of inbound rules, by iptables; a sidecar has none of that name.
const CHAIN: &str = "ISTIO_PRERT";
/// Prefix of its tables' names, by nftables.
const TABLES: &str = "istio-ambient-";

/// Most rules, or chains, that are looked at: a pod that may make some may make any number.
const MOST: usize = 4096;

/// Why a pod can't be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IstioRedirectFoundOrUnknown {
    /// There are redirect rules.
    #[error(
        "istio-cni's redirect rules are still in the pod ({0}): have istio-cni leave the pod alone, then restart the pod, so that \
         it gets a network namespace without them"
    )]
    Found(RedirectSign),
    /// It can't be told whether there are.
    #[error("can't look for istio-cni's redirect rules in the pod: {0}")]
    Unknown(#[from] io::Error),
}

/// A sign of redirect rules.
#[derive(Debug, PartialEq, Eq)]
pub enum RedirectSign {
    /// A routing rule.
    Rule,
    /// A chain in use, with its table.
    Chain(String, String),
}

impl fmt::Display for RedirectSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule => write!(f, "ip rule fwmark {MARK:#x}/{MASK:#x} lookup {TABLE}"),
            Self::Chain(table, chain) => write!(f, "chain {chain} of table {table}"),
        }
    }
}

/// Looks for redirect rules. Errors: there are some, or it can't be told (`CAP_NET_ADMIN`).
pub fn check_no_istio_redirects(netns: &Netns) -> Result<(), IstioRedirectFoundOrUnknown> {
    let found = netns.run_inside(|| Ok::<_, io::Error>(rule()?.or(chain()?)))??;
    found.map_or(Ok(()), |sign| Err(IstioRedirectFoundOrUnknown::Found(sign)))
}

fn rule() -> io::Result<Option<RedirectSign>> {
    let mut found = None;
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let mut body = [0; raw::FIB_RULE_HDR];
        body[0] = family.as_raw().to_le_bytes()[0];
        // Without a protocol it is `NETLINK_ROUTE`, the first one.
        let socket = open(None)?;
        dump(&socket, raw::RTM_GETRULE, &body, |rule| {
            if is_mark_rule(rule) {
                found = Some(RedirectSign::Rule);
            }
        })?;
    }
    Ok(found)
}

fn is_mark_rule(rule: &[u8]) -> bool {
    let value = |wanted| {
        let rest = rule.get(raw::FIB_RULE_HDR..)?;
        parse_attributes(rest).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| read_u32(value))
    };
    [raw::FRA_FWMARK, raw::FRA_FWMASK, raw::FRA_TABLE].map(value) == [Some(MARK), Some(MASK), Some(TABLE)]
}

/// Today's iptables makes chains that nftables lists. A kernel without nftables has no such chains.
fn chain() -> io::Result<Option<RedirectSign>> {
    let none = |error: &io::Error| {
        matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP))
    };
    let mut found = None;
    let look = open(Some(netlink::NETFILTER)).and_then(|socket| {
        dump(&socket, raw::GETCHAIN, &[0; raw::NFGENMSG], |chain| {
            found = found.take().or(chain_in_use(chain));
        })
    });
    match look {
        Err(error) if none(&error) => Ok(None),
        looked => looked.map(|()| found),
    }
}

/// Returns a chain that has a rule or is jumped to: istio-cni may leave empty ones, which do nothing.
fn chain_in_use(chain: &[u8]) -> Option<RedirectSign> {
    let value = |wanted| {
        let rest = chain.get(raw::NFGENMSG..)?;
        parse_attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let (table, name) =
        (read_c_string(value(raw::NFTA_CHAIN_TABLE)?), read_c_string(value(raw::NFTA_CHAIN_NAME)?));
    let used = value(raw::NFTA_CHAIN_USE).and_then(read_u32).is_some_and(|count| count > 0);
    let is_theirs = name == CHAIN || table.starts_with(TABLES);
    (used && is_theirs).then_some(RedirectSign::Chain(table, name))
}

fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?)
}

/// Requests all of a kind and calls `each`.
fn dump(socket: &OwnedFd, kind: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(REQUEST_AND_DUMP.to_ne_bytes());
    // Sequence and sender: the socket has only one request, and the kernel knows who asks.
    request.extend([0; 8]);
    request.extend(body);
    send(socket, &request, SendFlags::empty())?;
    let (mut answer, mut heard) = (vec![0; 32 * 1024], 0);
    loop {
        let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while let Some((kind, body)) = next_netlink_message(&mut rest) {
            match kind {
                NLMSG_DONE => return netlink_error(body).map_or(Ok(()), Err),
                NLMSG_ERROR => {
                    return Err(netlink_error(body).unwrap_or_else(|| io::ErrorKind::InvalidData.into()));
                }
                _ if heard >= MOST => {
                    return Err(io::Error::other(format!("there are more than {MOST} rules")));
                }
                _ => {
                    heard += 1;
                    each(body);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A network namespace of its own, for a while: that of a process which waits.
    struct Place(std::process::Child);

    impl Place {
        fn new() -> Self {
            let unshare = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
            let place = Self(unshare);
            let own = std::fs::read_link("/proc/self/ns/net").unwrap();
            // Until it has left this one.
            while std::fs::read_link(format!("/proc/{}/ns/net", place.0.id())).unwrap() == own {
                std::thread::yield_now();
            }
            place
        }

        fn run(&self, command: &str) {
            let pid = self.0.id().to_string();
            let done =
                Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-c", command]).status().unwrap();
            assert!(done.success(), "{command}");
        }

        fn look(&self) -> Result<(), String> {
            let netns = Netns::of_process(self.0.id()).unwrap();
            check_no_istio_redirects(&netns).map_err(|error| error.to_string())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[test]
    fn a_rule_for_istios_mark_is_found_in_both_families_and_others_are_not() {
        for family in ["-4", "-6"] {
            let place = Place::new();
            assert_eq!(place.look(), Ok(()));
            place.run(&format!("ip {family} rule add fwmark 0x111 lookup 100"));
            place.run(&format!("ip {family} rule add fwmark 0x111/0xfff lookup 101"));
            place.run(&format!("ip {family} rule add fwmark 0x112/0xfff lookup 100"));
            assert_eq!(place.look(), Ok(()));
            place.run(&format!("ip {family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"));
            let error = place.look().unwrap_err();
            assert!(error.contains("(ip rule fwmark 0x111/0xfff lookup 100)"), "{error}");
            place.run(&format!("ip {family} rule del fwmark 0x111/0xfff pref 32764 lookup 100"));
            assert_eq!(place.look(), Ok(()));
        }
    }

    #[test]
    fn chains_are_found_while_they_do_something() {
        let place = Place::new();
        place
            .run("nft add table ip nat; nft add chain ip nat ISTIO_PRERT; nft add chain ip nat ISTIO_OUTPUT");
        place.run("nft add rule ip nat ISTIO_OUTPUT accept");
        assert_eq!(place.look(), Ok(()), "an empty one, and what a sidecar has too");
        place.run("nft add rule ip nat ISTIO_PRERT accept");
        let error = place.look().unwrap_err();
        assert!(error.contains("(chain ISTIO_PRERT of table nat)"), "{error}");
        place.run("nft flush chain ip nat ISTIO_PRERT; nft add table inet istio-ambient-nat");
        place.run("nft add chain inet istio-ambient-nat istio-output");
        assert_eq!(place.look(), Ok(()));
        place.run("nft add rule inet istio-ambient-nat istio-output accept");
        let error = place.look().unwrap_err();
        assert!(error.contains("(chain istio-output of table istio-ambient-nat)"), "{error}");
    }

    #[test]
    fn what_is_cut_short_is_no_sign() {
        for length in 0..40 {
            assert!(!is_mark_rule(&vec![0; length]));
            assert_eq!(chain_in_use(&vec![0xff; length]), None);
        }
    }
}
