//! Deferred accept: a pod's `connect()` succeeds only once the proxy has connected to an endpoint, and fails
//! if it could not, as without a mesh.
//!
//! A filter at the proxy's outbound listener drops the SYN and tells the proxy of it
//! (`mesh-ebpf/src/deferred_accept.rs`). The proxy connects, writes the result ([`SynDecision`]) and sends
//! the same SYN again over the pod's loopback: now it is let through, or refused (`sk_lookup`). If nobody
//! handles a SYN the client's kernel sends it again after a second.

use crate::maps::{AddressPort, NetnsConnection};

/// Bytes of the longest TCP header (RFC 9293, 3.1).
pub const MAX_TCP_HEADER_BYTES: usize = 60;

/// Bytes of the ring buffer `DEFERRED_SYNS`, some hundred SYNs; if it is full further ones are let through.
pub const DEFERRED_SYNS_RING_BYTES: u32 = 64 * 1024;

/// Most decisions whose SYN has not arrived yet; older ones are forgotten.
pub const MAX_DECISIONS: u32 = 1024;

/// How long a decision counts, nanoseconds: it is for the SYN that is sent right after it.
pub const DECISION_TTL_NS: u64 = 5_000_000;

/// How long connections to a destination are let through at once after it has taken one, nanoseconds. A pod
/// that connects more often never waits; it may learn late of a destination that has just gone.
pub const RECENT_ACCEPT_TTL_NS: u64 = 10_000_000;

/// A record of the ring buffer `DEFERRED_SYNS`: a SYN that was held back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredSyn {
    /// When it came, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The kernel's cookie of the listener that it came to.
    pub listener: u64,
    /// The two ends of the connection as the pod's kernel sees them.
    pub connection: NetnsConnection,
    /// Address and port that the application asked for.
    pub destination: AddressPort,
    /// Bytes of the TCP header.
    pub length: u32,
    /// The header, and anything behind it.
    pub header: [u8; MAX_TCP_HEADER_BYTES],
    /// Padding.
    pub zero: u32,
}
const _: () = assert!(size_of::<DeferredSyn>() == 152);

/// Value of `DECISIONS`, keyed by the connection: whether it is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynDecision {
    /// When it ends to count, nanoseconds of `CLOCK_MONOTONIC`.
    pub until: u64,
    /// 1 if the connection is refused.
    pub refused: u32,
    /// Padding, zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<SynDecision>() == 16);

/// Value of `LATELY`, keyed by a client and what it asked for: the result of the last connection there. It
/// has the fields of a [`SynDecision`].
pub type RecentResult = SynDecision;

impl SynDecision {
    /// Creates one that counts until `until`.
    #[inline(always)]
    pub const fn new(until: u64, refused: bool) -> Self {
        Self { until, refused: refused as u32, zero: 0 }
    }

    /// Whether the connection is refused; none if this no longer counts.
    #[inline(always)]
    pub const fn refused_at(&self, now: u64) -> Option<bool> {
        if now < self.until { Some(self.refused != 0) } else { None }
    }
}

/// SYN and ACK among the flags of a TCP header (RFC 9293, 3.1).
const SYN_AND_ACK: u8 = 0x12;
/// SYN alone.
const SYN: u8 = 0x02;

/// Whether a segment with these flags opens a connection.
#[inline(always)]
pub const fn is_initial_syn(flags: u8) -> bool {
    flags & SYN_AND_ACK == SYN
}

/// Returns the bytes of a TCP header from the byte with its data offset; none if that is not valid.
#[inline(always)]
pub const fn tcp_header_length(offset: u8) -> Option<u32> {
    let length = (offset >> 4) as u32 * 4;
    if length >= 20 { Some(length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_ends() {
        let taken = SynDecision::new(100, false);
        assert_eq!((taken.refused_at(99), taken.refused_at(100)), (Some(false), None));
        assert_eq!(SynDecision::new(100, true).refused_at(0), Some(true));
    }

    #[test]
    fn only_a_syn_opens() {
        assert!(is_initial_syn(0x02) && is_initial_syn(0xc2), "with and without congestion marks");
        assert!(
            !is_initial_syn(0x12) && !is_initial_syn(0x10) && !is_initial_syn(0x18) && !is_initial_syn(0x04)
        );
        assert_eq!(
            (tcp_header_length(0x50), tcp_header_length(0xf0), tcp_header_length(0x40)),
            (Some(20), Some(60), None)
        );
    }
}
