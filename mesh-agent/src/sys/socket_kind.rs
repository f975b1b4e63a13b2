//! What a socket in a pod is to be opened for, as the keeper's protocol carries it.

use std::net::IpAddr;

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
    LoopbackPacketsV4 = 5,
    /// Send whole IPv6 packets, over the pod's loopback alone.
    LoopbackPacketsV6 = 6,
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
    pub fn packet_kind_for(to: IpAddr) -> Self {
        if to.is_ipv4() { Self::LoopbackPacketsV4 } else { Self::LoopbackPacketsV6 }
    }

    /// Returns the kind with a number.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::OutboundV4,
            Self::OutboundV6,
            Self::DeliveryV4,
            Self::DeliveryV6,
            Self::LoopbackPacketsV4,
            Self::LoopbackPacketsV6,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}
