//! Pods that may go only where the mesh knows the way, or where it is named.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::maps::AddressPort;
use mesh_common::strict_egress::{ANY_PORT, EGRESS_EXCEPTED, EGRESS_REFUSED, EgressKey, PREFIX_BITS_OF_KEY};

use crate::maps::EGRESS;

/// Whether a pod may not go to a destination that the mesh does not know. Not inlined: keys are large, and
/// there is one stack for all.
#[inline(never)]
pub fn is_refused(netns: u64, to: &AddressPort) -> bool {
    // For most pods there is no entry, and that is all.
    value(netns, to, ANY_PORT) == EGRESS_REFUSED && value(netns, to, to.port) != EGRESS_EXCEPTED
}

/// What the most exact entry says; 0 if there is none. Of an option the compiler compares what is not there,
/// too, which the verifier refuses.
#[inline(always)]
fn value(netns: u64, to: &AddressPort, port: u16) -> u32 {
    match EGRESS.get(Key::new(PREFIX_BITS_OF_KEY, EgressKey::new(netns, to.address, port))) {
        Some(value) => *value,
        None => 0,
    }
}
