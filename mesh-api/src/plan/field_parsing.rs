//! Parses and checks single fields of resources as they come over the wire, and says what is wrong with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use prost::{DecodeError, Message};
use prost_types::Any;
use thiserror::Error;

use crate::identity::InvalidSpiffeId;

/// Why a resource was rejected. The sender has to fix it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A resource without content.
    #[error("it has no content")]
    NoContent,
    /// A type that the mesh does not hold.
    #[error("resources of type `{type_url}` are not held")]
    UnknownType {
        /// The type that was announced.
        type_url: String,
    },
    /// Another type than was announced.
    #[error("its type is `{found}`, expected `{expected}`")]
    Type {
        /// The type that was announced.
        expected: &'static str,
        /// The type that it has.
        found: String,
    },
    /// Its bytes are no message of that type.
    #[error("it can't be decoded: {0}")]
    Undecodable(#[from] DecodeError),
    /// Its name does not fit its content, so it could not be removed by name.
    #[error("it is named otherwise than its content, which is `{content}`")]
    Name {
        /// The name that its content gives it.
        content: String,
    },
    /// A required field is missing.
    #[error("`{field}` is missing")]
    Missing {
        /// The field's name on the wire.
        field: &'static str,
    },
    /// Its parts make no valid identity.
    #[error(transparent)]
    Identity(#[from] InvalidSpiffeId),
    /// An address has neither 4 nor 16 bytes.
    #[error("`{field}` has an address of {bytes} bytes; 4 and 16 are possible")]
    Address {
        /// The field's name on the wire.
        field: &'static str,
        /// Bytes of the address.
        bytes: usize,
    },
    /// A prefix is longer than its address.
    #[error("`{field}` has a prefix of {length} bits, which does not fit {address}")]
    Prefix {
        /// The field's name on the wire.
        field: &'static str,
        /// The address.
        address: IpAddr,
        /// Bits of the prefix.
        length: u32,
    },
    /// A port is not between 1 and 65535.
    #[error("`{field}` has port {port}; 1 to 65535 are possible")]
    Port {
        /// The field's name on the wire.
        field: &'static str,
        /// The port as sent.
        port: u32,
    },
    /// A value is not known in this version, where that matters.
    #[error("`{field}` has the unknown value {value}")]
    UnknownValue {
        /// The field's name on the wire.
        field: &'static str,
        /// The value as sent.
        value: i32,
    },
    /// The tunnel protocol is not supported.
    #[error("`tunnel_protocol` is LEGACY_ISTIO_MTLS, which is not supported; use HBONE")]
    LegacyTunnel,
    /// A condition has nothing to compare with.
    #[error("`{field}` has a match of no kind")]
    EmptyMatch {
        /// The field's name on the wire.
        field: &'static str,
    },
    /// A condition is not known in this version; without it the rule could allow too much.
    #[error("a match has the unknown extension `{name}`")]
    MatchExtension {
        /// Name of the extension.
        name: String,
    },
    /// A span of time is negative or too long.
    #[error("`{field}` is not a span of time")]
    Span {
        /// The field's name on the wire.
        field: &'static str,
    },
    /// A regular expression can't be compiled.
    #[error("a regular expression can't be compiled: {reason}")]
    Regex {
        /// Why.
        reason: String,
    },
    /// A percentage is above 100.
    #[error("`{field}` is {value} %, more than 100 %")]
    Percent {
        /// The field's name on the wire.
        field: &'static str,
        /// The percentage as sent.
        value: u32,
    },
}

/// Decodes an `Any` that has to be of one type. Errors: it is of another, or not valid.
pub(super) fn unpack_any<M: Message + Default>(any: &Any, expected: &'static str) -> Result<M, Invalid> {
    if any.type_url != expected {
        return Err(Invalid::Type { expected, found: any.type_url.clone() });
    }
    Ok(M::decode(any.value.as_slice())?)
}

/// Returns an address of 4 or 16 bytes, canonical. Errors: it has another length.
pub(super) fn parse_address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).map_err(|_| Invalid::Address { field, bytes: bytes.len() })?;
    Ok(Ipv6Addr::from(sixteen).to_canonical())
}

/// A range of addresses, canonical: a prefix of IPv4-mapped addresses is one of IPv4 addresses.
pub(super) fn parse_network(
    field: &'static str,
    bytes: &[u8],
    length: Option<u32>,
) -> Result<IpNet, Invalid> {
    const MAPPED: u32 = 96;
    let address = parse_address(field, bytes)?;
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
pub(super) fn parse_port(field: &'static str, port: u32) -> Result<u16, Invalid> {
    match u16::try_from(port) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Invalid::Port { field, port }),
    }
}

/// A text that has to be there.
pub(super) fn require_non_empty<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Invalid> {
    if text.is_empty() { Err(Invalid::Missing { field }) } else { Ok(text) }
}

/// A value of an enum that this version knows.
pub(super) fn parse_enum<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, Invalid> {
    E::try_from(value).map_err(|_| Invalid::UnknownValue { field, value })
}
