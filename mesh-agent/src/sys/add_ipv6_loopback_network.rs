//! Gives a pod a network of IPv6 loopback addresses, where there is only one (`rtnetlink`(7)).

use std::io;
use std::net::Ipv6Addr;

use mesh_common::redirect_rules::LOOPBACK_V6_PREFIX;
use rustix::net::AddressFamily;

use super::Netns;
use super::rtnetlink::{open_route_socket, push_attribute, request_change};

/// Messages, flags and attributes of `linux/netlink.h` and `linux/rtnetlink.h`.
mod raw {
    pub(super) const RTM_NEWROUTE: u16 = 24;
    /// `NLM_F_ACK`, `NLM_F_REPLACE`, `NLM_F_CREATE`.
    pub(super) const ANYWAY: u16 = 0x4 | 0x100 | 0x400;
    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_PREFSRC: u16 = 7;
    pub(super) const RT_TABLE_LOCAL: u8 = 255;
    pub(super) const RTPROT_STATIC: u8 = 4;
    pub(super) const RT_SCOPE_HOST: u8 = 254;
    pub(super) const RTN_LOCAL: u8 = 2;
    /// The loopback device is the first of every network namespace.
    pub(super) const LOOPBACK: u32 = 1;
}

/// Makes the addresses of [`LOOPBACK_V6_PREFIX`] a pod's own, in its namespace alone, by a route like that
/// for 127/8. Connections to them come from `::1`, so nothing from outside can be taken for one. The route
/// goes with the namespace. Errors: the kernel's; the pod may have IPv6 switched off.
pub fn add_loopback_network(netns: &Netns) -> io::Result<()> {
    netns.run_inside(|| request_change(&open_route_socket()?, raw::RTM_NEWROUTE, raw::ANYWAY, &route()))?
}

fn route() -> Vec<u8> {
    let family = u8::try_from(AddressFamily::INET6.as_raw()).unwrap_or(0);
    let bits = 8 * u8::try_from(LOOPBACK_V6_PREFIX.len()).unwrap_or(0);
    // `struct rtmsg`: family, lengths of the prefixes, type of service; table, protocol, scope, type; flags.
    let kind = [raw::RT_TABLE_LOCAL, raw::RTPROT_STATIC, raw::RT_SCOPE_HOST, raw::RTN_LOCAL];
    let mut body = vec![family, bits, 0, 0];
    body.extend(kind);
    body.extend([0; 4]);
    let mut network = [0; 16];
    network[..LOOPBACK_V6_PREFIX.len()].copy_from_slice(&LOOPBACK_V6_PREFIX);
    push_attribute(&mut body, raw::RTA_DST, &network);
    push_attribute(&mut body, raw::RTA_OIF, &raw::LOOPBACK.to_ne_bytes());
    push_attribute(&mut body, raw::RTA_PREFSRC, &Ipv6Addr::LOCALHOST.octets());
    body
}
