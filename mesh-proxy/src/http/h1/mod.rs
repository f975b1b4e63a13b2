//! HTTP/1.0 and HTTP/1.1 (RFC 9112), as a proxy reads and writes them.
//!
//! One message has one meaning: what two parsers could read differently is refused, never repaired. Nothing
//! is passed on as it came: heads are written from what was read, and chunks are framed anew.

mod body;
mod connection_fields;
mod field_list;
mod framing_fields;
mod head_end;
mod path;
mod request_head;
mod response_head;
mod trailers;
mod write_head;

use http::StatusCode;

pub use self::body::{BodyDecoder, BodyEncoder, BodyFraming, BodyPiece};
pub use self::field_list::Fields;
pub use self::head_end::{MAX_HEAD, find_head_end};
pub use self::path::normalize_path;
pub use self::request_head::{RequestHead, is_authority};
pub use self::response_head::ResponseHead;
pub use self::trailers::is_no_trailer;
pub use self::write_head::{ConnectionWord, ResponseLine, write_request_head, write_response_head};

/// Version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It breaks the grammar, or has more than one meaning.
    #[error("{0}")]
    Invalid(&'static str),
    /// The head is larger than [`MAX_HEAD`], or has more than 100 fields.
    #[error("the head is too large")]
    TooLarge,
    /// The target is longer than 8 KiB.
    #[error("the target is too long")]
    TargetTooLong,
    /// The version is neither HTTP/1.0 nor HTTP/1.1.
    #[error("the version is not supported")]
    Version,
    /// The transfer coding is not `chunked`.
    #[error("the transfer coding is not supported")]
    Coding,
    /// It asks for what the proxy does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It expects something else than `100-continue`.
    #[error("the expectation is not supported")]
    Expectation,
}

impl Malformed {
    /// Returns the status with which a request is refused for it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Coding | Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
        }
    }
}

impl From<httparse::Error> for Malformed {
    /// Says the same of what the parser refuses.
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Malformed::Invalid("a field's name is none"),
            httparse::Error::HeaderValue => Malformed::Invalid("a field's value is none"),
            httparse::Error::NewLine => Malformed::Invalid("a line ends without CR LF"),
            httparse::Error::Status => Malformed::Invalid("the status is none"),
            httparse::Error::Token => Malformed::Invalid("the first line is none of HTTP"),
            httparse::Error::TooManyHeaders => Malformed::TooLarge,
            httparse::Error::Version => Malformed::Version,
        }
    }
}
