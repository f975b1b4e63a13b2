//! One form for both address families: sixteen bytes, IPv4 as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2).

/// An IP address in network byte order; IPv4 is held as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u8; 16]);

const _: () = assert!(size_of::<Address>() == 16);

impl Address {
    /// The unspecified address, `::`.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// Creates an IPv4 address from four bytes in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Creates an IPv4 address from a kernel `__be32`, as eBPF contexts hold it.
    #[inline(always)]
    pub const fn from_be32(word: u32) -> Self {
        Self::v4(word.to_ne_bytes())
    }

    /// Creates an address from the four `__be32` words of an IPv6 address.
    #[inline(always)]
    pub const fn from_be32x4(words: [u32; 4]) -> Self {
        let a = words[0].to_ne_bytes();
        let b = words[1].to_ne_bytes();
        let c = words[2].to_ne_bytes();
        let d = words[3].to_ne_bytes();
        Self([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]])
    }

    /// Returns the four `__be32` words of the IPv6 form.
    #[inline(always)]
    pub const fn to_be32x4(self) -> [u32; 4] {
        let o = self.0;
        [
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ]
    }

    /// Returns the `__be32` of the IPv4 form: the last four bytes.
    #[inline(always)]
    pub const fn to_be32(self) -> u32 {
        self.to_be32x4()[3]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let w = self.to_be32x4();
        w[0] == 0 && w[1] == 0 && w[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether this is `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        let w = self.to_be32x4();
        if self.is_v4() {
            self.0[12] == 127
        } else {
            w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == u32::from_ne_bytes([0, 0, 0, 1])
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod user {
    use super::Address;
    use crate::maps::AddressPort;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    impl From<IpAddr> for Address {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(v4) => Self::v4(v4.octets()),
                IpAddr::V6(v6) => Self(v6.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        /// Converts IPv4-mapped addresses to IPv4.
        fn from(address: Address) -> Self {
            let octets = address.0;
            if address.is_v4() {
                Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into()
            } else {
                Ipv6Addr::from(octets).into()
            }
        }
    }

    impl From<AddressPort> for SocketAddr {
        fn from(endpoint: AddressPort) -> Self {
            Self::new(IpAddr::from(endpoint.address), endpoint.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.1.2.3", "127.0.0.1", "::1", "fd00:244:1::5", "0.0.0.0", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
            assert_eq!(Address::from_be32x4(Address::from(ip).to_be32x4()), Address::from(ip));
        }
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_address() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        let plain: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert_eq!(Address::from_be32(u32::from_ne_bytes([10, 1, 2, 3])), Address::from(plain));
        assert_eq!(Address::from(plain).to_be32(), u32::from_ne_bytes([10, 1, 2, 3]));
    }

    #[test]
    fn loopback_is_known_in_every_form() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("127.255.0.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("128.0.0.1", false),
            ("::2", false),
            ("::", false),
            ("0.0.0.0", false),
            ("7f00::1", false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).is_loopback(), expected, "{text}");
        }
    }
}
