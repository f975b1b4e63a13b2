//! Why a connection failed, in the words that Istio's ztunnel and Envoy have for it.

use std::fmt;

/// A failure as metrics and access log name it: the label `response_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Policy denies the connection.
    Denied,
    /// The other end could not be reached, or took no connection.
    ConnectFailed,
    /// Who one of the ends is was not known in time, or it proved to be somebody else.
    IdentityError,
    /// Mutual TLS failed.
    TlsFailure,
    /// There are as many connections as there may be (Envoy's "upstream overflow").
    Overflow,
}

impl ResponseFlag {
    /// The label's value.
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
