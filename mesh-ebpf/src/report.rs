//! Telling the agent of faults.

use aya_ebpf::helpers::generated::bpf_set_retval;
use mesh_common::fault::{Event, Fault, Verdict};
use mesh_common::maps::Endpoint;

use crate::maps::EVENTS;

/// `-ECONNREFUSED` of `asm-generic/errno.h`.
const CONNECTION_REFUSED: i32 = -111;

/// Reports a fault and answers its verdict. A full ring loses the report, never the verdict.
#[inline(always)]
pub fn fault(fault: Fault, netns: u64, destination: Endpoint) -> Verdict {
    report(fault, netns, &destination);
    fault.verdict()
}

/// Not inlined, since it is seldom needed and stack is short.
#[inline(never)]
fn report(fault: Fault, netns: u64, destination: &Endpoint) {
    let destination = *destination;
    let event = Event { netns, fault: fault as u32, destination };
    let _lost = EVENTS.output::<Event>(event, 0);
}

/// The return value of a `connect` program for a verdict: `connect()` fails with `ECONNREFUSED` rather than
/// the `EPERM` that a bare refusal gives, because that is what applications retry on.
#[inline(always)]
pub fn connect_result(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::GoOn => 1,
        Verdict::Refuse => {
            // SAFETY: a helper that takes a number; on failure the connection still fails, with EPERM.
            unsafe { bpf_set_retval(CONNECTION_REFUSED) };
            0
        }
    }
}
