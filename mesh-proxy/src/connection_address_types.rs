//! The addresses of a connection, each with a type of its own so that they can't be mixed up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps an address; IPv4-mapped IPv6 becomes IPv4.
            pub fn new(address: SocketAddr) -> Self {
                Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
            }

            /// Returns the address and port.
            pub fn address(self) -> SocketAddr {
                self.0
            }

            /// Returns the address alone.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// Returns the port alone.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

address! {
    /// Where an application's connection comes from, as its server sees it.
    ClientAddress
}

address! {
    /// Where a connection was going before it was redirected: what the application asked for.
    OriginalDestination
}

address! {
    /// Where the proxy connects to.
    UpstreamAddress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(ClientAddress::new(mapped).to_string(), "10.1.2.3:80");
        assert!(OriginalDestination::new(mapped).ip().is_ipv4());
    }
}
