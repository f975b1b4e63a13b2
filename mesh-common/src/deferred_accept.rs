//! Connections of pods whose SYN waits: `connect()` succeeds only once the proxy has found somebody who takes
//! the connection, and fails if it has found nobody, as it does without a mesh.
//!
//! A filter at the proxy's outbound listener drops the SYN and has the proxy told of it
//! (`mesh-ebpf/src/deferred_accept.rs`). The proxy connects, says what came of it ([`Decision`]) and sends
//! the same SYN again over the pod's loopback: now it is let through, or refused (`sk_lookup`). A SYN that
//! nobody takes care of is sent again by the client's kernel after a second.

use crate::maps::{Endpoint, Handoff};

/// Bytes of the longest TCP header (RFC 9293, 3.1).
pub const LONGEST_HEADER: usize = 60;

/// Bytes of the ring buffer `DEFERRED_SYNS`, some hundred SYNs: where it is full they are let through.
pub const DEFERRED_RING: u32 = 64 * 1024;

/// Most connections that were decided about and have not arrived yet; more of them are forgotten.
pub const MAX_DECISIONS: u32 = 1024;

/// How long a decision counts, in nanoseconds: it is for the SYN that is sent right after it.
pub const DECIDED_FOR: u64 = 5_000_000;

/// How long the next connections to a destination are let through after one was taken, in nanoseconds. A pod
/// that connects more often than that waits for nothing; what it may be told too late is one that has just
/// gone.
pub const TAKEN_FOR: u64 = 10_000_000;

/// A record of the ring buffer `DEFERRED_SYNS`: a SYN that waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredSyn {
    /// When it came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The kernel's cookie of the listener that it came to.
    pub listener: u64,
    /// The two ends of the connection as the pod's kernel sees them.
    pub connection: Handoff,
    /// What the application asked for.
    pub destination: Endpoint,
    /// Bytes of the TCP header.
    pub length: u32,
    /// The header, and anything behind it.
    pub header: [u8; LONGEST_HEADER],
    /// Padding.
    pub zero: u32,
}
const _: () = assert!(size_of::<DeferredSyn>() == 152);

/// Value of `DECISIONS`, keyed by the connection: what becomes of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Until when this counts, in nanoseconds of `CLOCK_MONOTONIC`.
    pub until: u64,
    /// 1 if nobody takes it.
    pub refused: u32,
    /// Padding, zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<Decision>() == 16);

/// Value of `LATELY`, keyed by a client and what it asked for: what the last connection there has met with.
/// The same fields as a [`Decision`].
pub type Lately = Decision;

impl Decision {
    /// One that counts until then.
    #[inline(always)]
    pub const fn new(until: u64, refused: bool) -> Self {
        Self { until, refused: refused as u32, zero: 0 }
    }

    /// Whether the connection is refused, as long as this counts.
    #[inline(always)]
    pub const fn at(&self, now: u64) -> Option<bool> {
        if now < self.until { Some(self.refused != 0) } else { None }
    }
}

/// Flags of a TCP header that count here (RFC 9293, 3.1): SYN and ACK.
const SYN_AND_ACK: u8 = 0x12;
/// SYN alone.
const SYN: u8 = 0x02;

/// Whether a segment with these flags opens a connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & SYN_AND_ACK == SYN
}

/// Bytes of the TCP header that begins so: the byte with the data offset. None if it is no header.
#[inline(always)]
pub const fn header_length(offset: u8) -> Option<u32> {
    let length = (offset >> 4) as u32 * 4;
    if length >= 20 { Some(length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_ends() {
        let taken = Decision::new(100, false);
        assert_eq!((taken.at(99), taken.at(100)), (Some(false), None));
        assert_eq!(Decision::new(100, true).at(0), Some(true));
    }

    #[test]
    fn only_a_syn_opens() {
        assert!(opens(0x02) && opens(0xc2), "with and without congestion marks");
        assert!(!opens(0x12) && !opens(0x10) && !opens(0x18) && !opens(0x04));
        assert_eq!(
            (header_length(0x50), header_length(0xf0), header_length(0x40)),
            (Some(20), Some(60), None)
        );
    }
}
