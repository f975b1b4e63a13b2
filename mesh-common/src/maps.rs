//! Keys and values of the maps. All fields are in host byte order unless their name ends in `_be`. Padding is
//! explicit, since the kernel compares keys byte by byte.

use crate::address::Address;

/// Most pods that one agent enrols. The kubelet's own default is 110 a node.
pub const MAX_PODS: u32 = 4096;
/// Most addresses (of workloads and services) that the mesh can know.
pub const MAX_DESTINATIONS: u32 = 262_144;
/// Value of `DESTINATIONS`: only trying tells whether anybody listens there.
pub const DESTINATION_ANY_PORT: u32 = 1;
/// Value of `DESTINATIONS`: only the ports in `OPEN_PORTS` have endpoints.
pub const DESTINATION_OPEN_PORTS: u32 = 2;
/// Most ports of services with endpoints. Addresses whose ports find no room are [`DESTINATION_ANY_PORT`].
pub const MAX_OPEN_PORTS: u32 = 262_144;
/// Most destinations of pods whose last result is remembered; older ones are forgotten.
pub const MAX_RECENT_RESULTS: u32 = 4096;
/// How long a destination that has refused a connection is not tried again, nanoseconds.
pub const RECENT_REFUSAL_TTL_NS: u64 = 1_000_000_000;
/// Most connections between their SYN and the end of their handshake at one time.
pub const MAX_HANDOFFS: u32 = 65_536;
/// Most probe ports of the node's pods.
pub const MAX_PROBE_PORTS: u32 = 16_384;
/// Most cgroups of the node's own processes.
pub const MAX_NODE_CGROUPS: u32 = 4096;
/// Most proxies at one time: one that serves, and those that upgrades have replaced and that still finish.
pub const MAX_PROXIES: u32 = 64;
/// Most listeners: two for each pod and worker.
pub const MAX_LISTENERS: u32 = 65_536;

/// Value of `PODS`, keyed by the pod's network namespace cookie: an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrolledPod {
    /// The pod's IPv4 address, or [`Address::UNSPECIFIED`].
    pub address_v4: Address,
    /// The pod's IPv6 address, or [`Address::UNSPECIFIED`].
    pub address_v6: Address,
    /// 1 if [`crate::redirect_rules::LOOPBACK_V6_PREFIX`] is local to the pod.
    pub loopback_v6: u32,
}
const _: () = assert!(size_of::<EnrolledPod>() == 36);

/// Value of `SANDBOXES`, keyed by the cookie of a network namespace: the pod whose sandbox it was found to
/// be. The keeper's memory of what a pod may change afterwards; no program reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxOwner {
    /// The pod's uid in ASCII, filled up with zeroes.
    pub uid: [u8; 40],
    /// 1 once the pod's preexisting connections have been judged.
    pub preexisting_judged: u32,
}
const _: () = assert!(size_of::<SandboxOwner>() == 44);

/// Key of `PROXIES`: a proxy, which is exempt from redirection.
///
/// Both must match. A process id alone could be reused after the proxy's death, before the keeper clears it;
/// a cgroup alone could be shared with other programs when the agent is started by hand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProxyProcess {
    /// Id of the agent's cgroup v2 (its inode number, never reused).
    pub cgroup: u64,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Padding, zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<ProxyProcess>() == 16);

impl ProxyProcess {
    /// Creates a key with its padding cleared.
    #[inline(always)]
    pub const fn new(cgroup: u64, tgid: u32) -> Self {
        Self { cgroup, tgid, zero: 0 }
    }
}

/// An address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressPort {
    /// Address.
    pub address: Address,
    /// Port in host order.
    pub port: u16,
    /// Further information about a destination: a note of [`crate::direct`]; 0 in every key.
    pub note: u16,
}
const _: () = assert!(size_of::<AddressPort>() == 20);

impl AddressPort {
    /// Creates an endpoint without a note.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, note: 0 }
    }
}

/// Key of `HANDOFFS`: a TCP connection inside one network namespace, the same at both of its ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsConnection {
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// The end that connects.
    pub client: AddressPort,
    /// The end that accepts.
    pub server: AddressPort,
}
const _: () = assert!(size_of::<NetnsConnection>() == 48);

/// Which of a pod's two inbound listeners.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InboundListenerKind {
    /// The HBONE listener, port 15008.
    Hbone = 1,
    /// The plaintext listener, for every other port.
    Plaintext = 2,
}

/// Key of `LISTENERS`, the socket map that `sk_lookup` picks from: by the pod and not by an address, since a
/// pod may have more addresses than the mesh knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// A [`InboundListenerKind`] as its number.
    pub kind: u8,
    /// Index of the worker that owns the listener.
    pub worker: u8,
    /// Padding, zero.
    pub zero: [u8; 6],
}
const _: () = assert!(size_of::<ListenerKey>() == 16);

impl ListenerKey {
    /// Creates a key with its padding cleared.
    #[inline(always)]
    pub const fn new(netns: u64, kind: InboundListenerKind, worker: u8) -> Self {
        Self { netns, kind: kind as u8, worker, zero: [0; 6] }
    }
}

#[cfg(feature = "user")]
mod user {
    use super::{AddressPort, EnrolledPod, ListenerKey, NetnsConnection, ProxyProcess, SandboxOwner};
    use crate::address::Address;
    use crate::deferred_accept::SynDecision;
    use crate::direct::{DirectFlowEntry, DirectFlowKey, DirectRoute, DirectRouteKey, DirectSocket};
    use crate::fault::FaultEvent;
    use crate::strict_egress::EgressKey;
    use crate::veth::{FlowDirection, PodVeth, VethFlow, VethFlowSocket};

    // SAFETY: `repr(C)`, made of integers only, no implicit padding (asserted by the sizes above), any bit
    // pattern is valid. There is no safe way: `aya::Pod` is an unsafe trait.
    unsafe impl aya::Pod for Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EnrolledPod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProxyProcess {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SandboxOwner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AddressPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NetnsConnection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FaultEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectRouteKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectRoute {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectFlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectFlowEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectSocket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodVeth {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowDirection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for VethFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for VethFlowSocket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EgressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SynDecision {}

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Any bytes are a value, and each byte of a value is one: under Miri this fails where there is
        /// padding, or a pattern that is no value.
        fn is_its_bytes<T: aya::Pod>() {
            let bytes = vec![0xa5_u8; size_of::<T>()];
            // SAFETY: as many bytes as the type has; that they are a value is what is tested.
            let value: T = unsafe { bytes.as_ptr().cast::<T>().read_unaligned() };
            // SAFETY: the value lives as long, and has as many bytes; that all are set is what is tested.
            let again =
                unsafe { core::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
            assert_eq!(again, bytes);
        }

        #[test]
        fn what_is_plain_data_is_its_bytes() {
            is_its_bytes::<Address>();
            is_its_bytes::<EnrolledPod>();
            is_its_bytes::<ProxyProcess>();
            is_its_bytes::<SandboxOwner>();
            is_its_bytes::<AddressPort>();
            is_its_bytes::<NetnsConnection>();
            is_its_bytes::<ListenerKey>();
            is_its_bytes::<FaultEvent>();
            is_its_bytes::<DirectRouteKey>();
            is_its_bytes::<DirectRoute>();
            is_its_bytes::<DirectFlowKey>();
            is_its_bytes::<DirectFlowEntry>();
            is_its_bytes::<DirectSocket>();
            is_its_bytes::<PodVeth>();
            is_its_bytes::<FlowDirection>();
            is_its_bytes::<VethFlow>();
            is_its_bytes::<VethFlowSocket>();
            is_its_bytes::<EgressKey>();
            is_its_bytes::<SynDecision>();
        }
    }
}
