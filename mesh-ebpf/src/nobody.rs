//! Destinations behind which there is nobody: `connect()` says so at once, as it does without a mesh. A proxy
//! that took the connection first could only break it again.

use mesh_common::direct::DirectRouteKey;
use mesh_common::fault::Fault;
use mesh_common::maps::{AddressPort, DESTINATION_OPEN_PORTS};

use crate::direct::now;
use crate::maps::{DESTINATIONS, LATELY, OPEN_PORTS};

/// How the mesh knows an address; 0 if it does not.
#[inline(always)]
pub fn known(to: &AddressPort) -> u32 {
    // SAFETY: the value is copied at once.
    unsafe { DESTINATIONS.get(to.address) }.copied().unwrap_or(0)
}

/// Why a connection to an address that is known so is refused, if it is.
#[inline(always)]
pub fn refusal(client: u64, known: u32, to: &AddressPort) -> Option<Fault> {
    match reason(client, known, to) {
        0 => None,
        number if number == Fault::NobodyThere as u32 => Some(Fault::NobodyThere),
        _ => Some(Fault::RefusedLately),
    }
}

/// The same as a number; 0 if it is not refused. Not inlined: there is one stack for all.
#[inline(never)]
fn reason(client: u64, known: u32, to: &AddressPort) -> u32 {
    // SAFETY: only its presence is looked at.
    if known == DESTINATION_OPEN_PORTS && unsafe { OPEN_PORTS.get(to) }.is_none() {
        return Fault::NobodyThere as u32;
    }
    if lately(client, to) == Some(true) { Fault::RefusedLately as u32 } else { 0 }
}

/// Whether the client's last connection there was refused, or taken, if it was a moment ago.
#[inline(always)]
pub fn lately(client: u64, to: &AddressPort) -> Option<bool> {
    // SAFETY: the value is copied at once.
    unsafe { LATELY.get(DirectRouteKey::new(client, *to)) }.copied()?.refused_at(now())
}
