//! Telling the agent of faults.

use aya_ebpf::helpers::generated::bpf_set_retval;
use mesh_common::fault::{FailMode, Fault, FaultEvent};
use mesh_common::maps::AddressPort;

use crate::maps::EVENTS;

/// `-ECONNREFUSED` of `asm-generic/errno.h`.
const CONNECTION_REFUSED: i32 = -111;

/// Reports a fault and answers its fail mode. A full ring loses the report, never the answer.
#[inline(always)]
pub fn fault(fault: Fault, netns: u64, destination: AddressPort) -> FailMode {
    report(fault, netns, &destination);
    fault.fail_mode()
}

/// Not inlined, since it is seldom needed and stack is short.
#[inline(never)]
fn report(fault: Fault, netns: u64, destination: &AddressPort) {
    let destination = *destination;
    let event = FaultEvent { netns, fault: fault as u32, destination };
    let _lost = EVENTS.output::<FaultEvent>(event, 0);
}

/// The return value of a `connect` program for a fail mode: `connect()` fails with `ECONNREFUSED` rather than
/// the `EPERM` that a bare refusal gives, because that is what applications retry on.
#[inline(always)]
pub fn connect_result(fail_mode: FailMode) -> i32 {
    match fail_mode {
        FailMode::GoOn => 1,
        FailMode::Refuse => {
            // SAFETY: a helper that takes a number; on failure the connection still fails, with EPERM.
            unsafe { bpf_set_retval(CONNECTION_REFUSED) };
            0
        }
    }
}
