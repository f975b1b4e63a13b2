//! Plain values that requests about pods' sockets have, as the keeper's protocol carries them.

use std::net::{IpAddr, SocketAddr};

/// A TCP connection in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's cookie of the socket, so that a later connection between the same addresses is left
    /// alone; or [`ANY_COOKIE`].
    pub cookie: u64,
    /// The socket's own address and port.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
}

/// A connection that was open in a pod before the mesh took the pod in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreexistingConnection {
    /// The pod's end.
    pub connection: Connection,
    /// Whether the pod listens on its port, so the other end may have opened it.
    pub taken: bool,
}

/// `INET_DIAG_NOCOOKIE` of `linux/inet_diag.h` as one number: any socket with the addresses.
pub const ANY_COOKIE: u64 = u64::MAX;

/// Purpose of a socket in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// Connect from the pod, over IPv4.
    OutboundV4 = 1,
    /// Connect from the pod, over IPv6.
    OutboundV6 = 2,
    /// Connect to the pod's application, over IPv4, from a loopback address.
    DeliveryV4 = 3,
    /// Connect to the pod's application, over IPv6, from a loopback address.
    DeliveryV6 = 4,
    /// Send whole IPv4 packets, over the pod's loopback alone.
    LoopbackV4 = 5,
    /// Send whole IPv6 packets, over the pod's loopback alone.
    LoopbackV6 = 6,
}

impl SocketKind {
    /// Returns the kind for connecting from the pod to an address.
    pub fn outbound_kind_for(to: IpAddr) -> Self {
        if to.is_ipv4() { Self::OutboundV4 } else { Self::OutboundV6 }
    }

    /// Returns the kind for connecting to the pod's application at an address.
    pub fn delivery_kind_for(to: IpAddr) -> Self {
        if to.is_ipv4() { Self::DeliveryV4 } else { Self::DeliveryV6 }
    }

    /// Returns the kind for sending packets to an address of the pod's loopback.
    pub fn loopback_kind_for(to: IpAddr) -> Self {
        if to.is_ipv4() { Self::LoopbackV4 } else { Self::LoopbackV6 }
    }

    /// Returns the kind with a number.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::OutboundV4,
            Self::OutboundV6,
            Self::DeliveryV4,
            Self::DeliveryV6,
            Self::LoopbackV4,
            Self::LoopbackV6,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}
