//! Finds the other end of a pod's network interface (`rtnetlink`(7)).
//!
//! What the pod's namespace says is only a hint: the node's end has to lead back to it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::AddressFamily;

use super::Netns;
use super::rtnetlink::{
    open_route_socket, parse_attributes, push_attribute, query_one, read_c_string, read_u32,
};

/// Messages and attributes of `linux/rtnetlink.h`, `linux/if_link.h` and `linux/net_namespace.h`.
mod raw {
    pub(super) const RTM_GETLINK: u16 = 18;
    pub(super) const RTM_GETROUTE: u16 = 26;
    pub(super) const RTM_GETQDISC: u16 = 38;
    pub(super) const RTM_GETNSID: u16 = 90;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_LINK: u16 = 5;
    pub(super) const IFLA_QDISC: u16 = 6;
    pub(super) const IFLA_MASTER: u16 = 10;
    pub(super) const IFLA_LINKINFO: u16 = 18;
    pub(super) const IFLA_INFO_KIND: u16 = 1;
    pub(super) const IFLA_LINK_NETNSID: u16 = 37;
    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const NETNSA_NSID: u16 = 1;
    pub(super) const NETNSA_FD: u16 = 3;
    /// Parent of the qdiscs `ingress` and `clsact`.
    pub(super) const TC_H_INGRESS: u32 = 0xffff_fff1;
    /// Bytes of the structures that follow `nlmsghdr`.
    pub(super) const IFINFOMSG: usize = 16;
    pub(super) const RTMSG: usize = 12;
    pub(super) const RTGENMSG: usize = 4;
}

/// The node's end of a pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVeth {
    /// Its interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Whether it is a port of a bridge, or of something else that joins links.
    pub is_port: bool,
    /// Whether traffic is shaped or classified there.
    pub is_shaped: bool,
}

/// An interface, as the kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interface {
    name: String,
    kind: String,
    qdisc: String,
    peer: Option<u32>,
    peer_netns: Option<i32>,
    master: bool,
}

/// Returns the node's end of the veth over which a pod with these addresses reaches its neighbours, in this
/// thread's network namespace. `None` if it reaches them some other way. Errors: the kernel's.
pub fn find_host_veth(netns: &Netns, addresses: &[IpAddr]) -> io::Result<Option<HostVeth>> {
    let Some((inner, outer)) = netns.run_inside(|| inner_end(addresses))?? else { return Ok(None) };
    let socket = open_route_socket()?;
    let Some(interface) = interface(&socket, outer)? else { return Ok(None) };
    let leads_back = interface.kind == "veth"
        && interface.peer == Some(inner)
        && interface.peer_netns.is_some()
        && interface.peer_netns == namespace_id(&socket, netns)?;
    if !leads_back {
        return Ok(None);
    }
    // A veth has no queue of its own, unless one was set up.
    let is_shaped = interface.qdisc != "noqueue" || has_ingress_qdisc(&socket, outer)?;
    Ok(Some(HostVeth { ifindex: outer, name: interface.name, is_port: interface.master, is_shaped }))
}

/// Returns the interface of a pod's namespace that leads to its neighbours, and the index of its other end.
/// It has to be the same one for all of the pod's addresses.
fn inner_end(addresses: &[IpAddr]) -> io::Result<Option<(u32, u32)>> {
    let socket = open_route_socket()?;
    let mut ways = Vec::new();
    for address in addresses {
        ways.push(route(&socket, neighbour(*address))?);
    }
    let Some(&Some(inner)) = ways.first() else { return Ok(None) };
    if ways.iter().any(|way| *way != Some(inner)) {
        return Ok(None);
    }
    let interface = interface(&socket, inner)?.filter(|interface| interface.kind == "veth");
    // A port leads on to something else behind it: a guest, for instance.
    Ok(interface.filter(|it| !it.master).and_then(|it| it.peer).map(|outer| (inner, outer)))
}

/// Returns an address next to this one.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) ^ 1).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) ^ 1).to_be_bytes()),
    }
}

/// Returns the interface by which an address is reached, if there is one.
fn route(socket: &OwnedFd, to: IpAddr) -> io::Result<Option<u32>> {
    let (family, address) = match to {
        IpAddr::V4(v4) => (AddressFamily::INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AddressFamily::INET6, v6.octets().to_vec()),
    };
    let length = u8::try_from(address.len() * 8).unwrap_or(0);
    let mut body = vec![u8::try_from(family.as_raw()).unwrap_or(0), length];
    body.resize(raw::RTMSG, 0);
    push_attribute(&mut body, raw::RTA_DST, &address);
    let answer = query_one(socket, raw::RTM_GETROUTE, &body)?;
    Ok(answer.and_then(|answer| {
        parse_attributes(answer.get(raw::RTMSG..)?)
            .find(|(kind, _)| *kind == raw::RTA_OIF)
            .and_then(|(_, value)| read_u32(value))
    }))
}

fn interface(socket: &OwnedFd, index: u32) -> io::Result<Option<Interface>> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.resize(raw::IFINFOMSG, 0);
    Ok(query_one(socket, raw::RTM_GETLINK, &body)?.map(|answer| read_interface(&answer)))
}

fn read_interface(answer: &[u8]) -> Interface {
    let mut interface = Interface::default();
    for (kind, value) in parse_attributes(answer.get(raw::IFINFOMSG..).unwrap_or_default()) {
        match kind {
            raw::IFLA_IFNAME => interface.name = read_c_string(value),
            raw::IFLA_QDISC => interface.qdisc = read_c_string(value),
            raw::IFLA_LINK => interface.peer = read_u32(value),
            raw::IFLA_LINK_NETNSID => interface.peer_netns = read_u32(value).map(u32::cast_signed),
            raw::IFLA_MASTER => interface.master = true,
            raw::IFLA_LINKINFO => {
                let kind = parse_attributes(value).find(|(kind, _)| *kind == raw::IFLA_INFO_KIND);
                interface.kind = kind.map(|(_, value)| read_c_string(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    interface
}

/// Returns the number by which this namespace knows another, if it does.
fn namespace_id(socket: &OwnedFd, netns: &Netns) -> io::Result<Option<i32>> {
    let mut body = vec![0; raw::RTGENMSG];
    push_attribute(&mut body, raw::NETNSA_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
    let answer = query_one(socket, raw::RTM_GETNSID, &body)?;
    let id = answer.and_then(|answer| {
        let id = parse_attributes(answer.get(raw::RTGENMSG..)?).find(|(kind, _)| *kind == raw::NETNSA_NSID);
        id.and_then(|(_, value)| read_u32(value)).map(u32::cast_signed)
    });
    // Below zero it does not know it.
    Ok(id.filter(|id| *id >= 0))
}

fn has_ingress_qdisc(socket: &OwnedFd, index: u32) -> io::Result<bool> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(0_u32.to_ne_bytes());
    body.extend(raw::TC_H_INGRESS.to_ne_bytes());
    body.extend(0_u32.to_ne_bytes());
    Ok(query_one(socket, raw::RTM_GETQDISC, &body)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_not_read() {
        let mut message = vec![0; raw::IFINFOMSG];
        push_attribute(&mut message, raw::IFLA_IFNAME, b"veth1\0");
        push_attribute(&mut message, raw::IFLA_LINK, &7_u32.to_ne_bytes());
        push_attribute(&mut message, raw::IFLA_LINK_NETNSID, &3_u32.to_ne_bytes());
        let mut kind = Vec::new();
        push_attribute(&mut kind, raw::IFLA_INFO_KIND, b"veth\0");
        push_attribute(&mut message, raw::IFLA_LINKINFO, &kind);
        let whole = read_interface(&message);
        let expected = Interface {
            name: "veth1".to_owned(),
            kind: "veth".to_owned(),
            peer: Some(7),
            peer_netns: Some(3),
            ..Interface::default()
        };
        assert_eq!(whole, expected);
        for length in 0..message.len() - 4 {
            assert_ne!(read_interface(&message[..length]), expected, "{length} bytes");
        }
    }

    #[test]
    fn loopback_is_no_veth() {
        let socket = open_route_socket().unwrap();
        let lo = interface(&socket, 1).unwrap().unwrap();
        assert_eq!((&*lo.name, &*lo.kind, lo.peer), ("lo", "", None));
        assert_eq!(interface(&socket, i32::MAX as u32).unwrap(), None);
        assert_eq!(route(&socket, "127.0.0.9".parse().unwrap()).unwrap(), Some(1));
        assert!(!has_ingress_qdisc(&socket, 1).unwrap());
        let here = Netns::of_process(std::process::id()).unwrap();
        assert_eq!(find_host_veth(&here, &["127.0.0.1".parse().unwrap()]).unwrap(), None);
    }
}
