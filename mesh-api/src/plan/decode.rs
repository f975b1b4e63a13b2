//! What is checked about every resource, and how a bad one is described.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use prost::{DecodeError, Message};
use prost_types::Any;
use thiserror::Error;

use crate::identity::InvalidSpiffeId;

/// Why a resource was rejected. The sender has to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A resource without content.
    #[error("it has no content")]
    NoContent,
    /// A type that the mesh does not hold.
    #[error("resources of type `{type_url}` are not held")]
    UnknownType {
        /// As announced.
        type_url: String,
    },
    /// Another type than was announced.
    #[error("its type is `{found}`, expected `{expected}`")]
    Type {
        /// What would have been right.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Bytes that are no message of that type.
    #[error("it can't be decoded: {0}")]
    Undecodable(#[from] DecodeError),
    /// Its name and its content do not fit together, so it could not be removed by name.
    #[error("it is named otherwise than its content, which is `{content}`")]
    Name {
        /// The name that its content gives it.
        content: String,
    },
    /// A field without which it has no meaning.
    #[error("`{field}` is missing")]
    Missing {
        /// Name on the wire.
        field: &'static str,
    },
    /// The parts of an identity that is none.
    #[error(transparent)]
    Identity(#[from] InvalidSpiffeId),
    /// An address is 4 bytes or 16.
    #[error("`{field}` has an address of {bytes} bytes; 4 and 16 are possible")]
    Address {
        /// Name on the wire.
        field: &'static str,
        /// Length as sent.
        bytes: usize,
    },
    /// A prefix that does not fit its address.
    #[error("`{field}` has a prefix of {length} bits, which does not fit {address}")]
    Prefix {
        /// Name on the wire.
        field: &'static str,
        /// The address.
        address: IpAddr,
        /// Bits as sent.
        length: u32,
    },
    /// A port that does not exist.
    #[error("`{field}` has port {port}; 1 to 65535 are possible")]
    Port {
        /// Name on the wire.
        field: &'static str,
        /// Port as sent.
        port: u32,
    },
    /// A value that this version does not know, in a place where it matters.
    #[error("`{field}` has the unknown value {value}")]
    UnknownValue {
        /// Name on the wire.
        field: &'static str,
        /// Number as sent.
        value: i32,
    },
    /// A tunnel that the mesh does not speak.
    #[error("`tunnel_protocol` is LEGACY_ISTIO_MTLS, which is not supported; use HBONE")]
    LegacyTunnel,
    /// A condition without anything to compare with.
    #[error("`{field}` has a match of no kind")]
    EmptyMatch {
        /// Name on the wire.
        field: &'static str,
    },
    /// A condition that this version does not know; to leave it out could allow too much.
    #[error("a match has the unknown extension `{name}`")]
    MatchExtension {
        /// Name of the extension.
        name: String,
    },
    /// A negative or excessive span of time.
    #[error("`{field}` is not a span of time")]
    Span {
        /// Name on the wire.
        field: &'static str,
    },
    /// A share that is more than the whole.
    #[error("`{field}` is {value} %, more than 100 %")]
    Percent {
        /// Name on the wire.
        field: &'static str,
        /// Share as sent.
        value: u32,
    },
}

/// Decodes an `Any` that has to be of one type.
pub(super) fn unpack<M: Message + Default>(any: &Any, expected: &'static str) -> Result<M, Invalid> {
    if any.type_url != expected {
        return Err(Invalid::Type { expected, found: any.type_url.clone() });
    }
    Ok(M::decode(any.value.as_slice())?)
}

/// An address of 4 or 16 bytes, canonical.
pub(super) fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).map_err(|_| Invalid::Address { field, bytes: bytes.len() })?;
    Ok(Ipv6Addr::from(sixteen).to_canonical())
}

/// A range of addresses, canonical: a prefix of IPv4-mapped addresses is one of IPv4 addresses.
pub(super) fn network(field: &'static str, bytes: &[u8], length: Option<u32>) -> Result<IpNet, Invalid> {
    const MAPPED: u32 = 96;
    let address = address(field, bytes)?;
    let Some(length) = length else { return Ok(address.into()) };
    let invalid = || Invalid::Prefix { field, address, length };
    let bits = match address {
        IpAddr::V4(_) if bytes.len() == 16 => length.checked_sub(MAPPED).ok_or_else(invalid)?,
        _ => length,
    };
    let bits = u8::try_from(bits).map_err(|_| invalid())?;
    IpNet::new(address, bits).map(|network| network.trunc()).map_err(|_| invalid())
}

/// A port other than 0.
pub(super) fn port(field: &'static str, port: u32) -> Result<u16, Invalid> {
    match u16::try_from(port) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Invalid::Port { field, port }),
    }
}

/// A text that has to be there.
pub(super) fn present<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Invalid> {
    if text.is_empty() { Err(Invalid::Missing { field }) } else { Ok(text) }
}

/// A value of an enum that this version knows.
pub(super) fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, Invalid> {
    E::try_from(value).map_err(|_| Invalid::UnknownValue { field, value })
}
