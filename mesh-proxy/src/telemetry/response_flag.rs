//! Why a connection failed, in the codes of Istio's ztunnel and Envoy.

use std::fmt;

/// A failure, for the label and field `response_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Policy denies the connection.
    Denied,
    /// The other end could not be reached, or took no connection.
    ConnectFailed,
    /// The identity of one end was not known in time, or it proved another one.
    IdentityError,
    /// Mutual TLS failed.
    TlsFailure,
    /// The pod has as many connections as it may, or the service as many as its policy lets it (Envoy's
    /// "upstream overflow").
    Overflow,
}

impl ResponseFlag {
    /// Returns the label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "DENY",
            Self::ConnectFailed => "CONNECT",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::TlsFailure => "TLS_FAILURE",
            Self::Overflow => "UO",
        }
    }
}

impl fmt::Display for ResponseFlag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
