//! `sk_lookup`, at each enrolled pod's network namespace: a connection arrives. Attached there is what says
//! which pod it is (`mesh-agent/src/sys/ebpf/per_pod_program_prologue.rs`), and then comes here.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use core::ptr;
use mesh_common::address::Address;
use mesh_common::direct as rules;
use mesh_common::fault::{FailMode, Fault};
use mesh_common::maps::{AddressPort, InboundListenerKind, ListenerKey};
use mesh_common::{OUTBOUND_PORT, redirect_rules};

use crate::maps::{HERE, LISTENERS, TURNS, WORKERS};
use crate::{deferred_accept, direct, probe, report};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `AF_INET`.
const INET: u32 = 2;

/// Gives a new connection to the proxy's listener, except the pod's talk to itself (and the proxy's own
/// delivery, which takes the same way), the node's probes of declared probe ports, and direct connections of
/// this node's pods.
#[sk_lookup]
pub fn inbound(context: SkLookupContext) -> u32 {
    let arrival = Arrival::of(context.lookup);
    let own =
        redirect_rules::is_from_pod_itself(arrival.local.address, arrival.remote.address, arrival.interface);
    if arrival.protocol != TCP {
        return sk_action::SK_PASS;
    }
    let pod = HERE.get(0).copied().unwrap_or(0);
    if own {
        let to_proxy = arrival.local.port == OUTBOUND_PORT;
        let refused = to_proxy && deferred_accept::is_refused(pod, &arrival.remote, &arrival.local);
        // As below: a reset.
        return if refused { sk_action::SK_DROP } else { sk_action::SK_PASS };
    }
    if probe::may_arrive(pod, arrival.remote, arrival.local) {
        return sk_action::SK_PASS;
    }
    match direct::arrival(pod, arrival.remote, arrival.local) {
        rules::ArrivalVerdict::Direct => return sk_action::SK_PASS,
        // No socket is found for it, so the client gets a reset.
        rules::ArrivalVerdict::Refused => return sk_action::SK_DROP,
        rules::ArrivalVerdict::Other => {}
    }
    match assign(&context, pod, &arrival) {
        Ok(()) => sk_action::SK_PASS,
        Err(fault) => match report::fault(fault, pod, arrival.local) {
            FailMode::Refuse => sk_action::SK_DROP,
            FailMode::GoOn => sk_action::SK_PASS,
        },
    }
}

#[inline(always)]
fn assign(context: &SkLookupContext, pod: u64, arrival: &Arrival) -> Result<(), Fault> {
    let workers = *WORKERS.get(0).ok_or(Fault::AgentUnknown)?;
    let kind = redirect_rules::inbound_listener_kind(arrival.local.port);
    let worker = match kind {
        InboundListenerKind::Hbone => redirect_rules::worker_by_turn(turn(arrival.local.address), workers),
        InboundListenerKind::Plaintext => redirect_rules::worker_by_client_port(arrival.remote.port, workers),
    };
    let key = ListenerKey::new(pod, kind, worker);
    // The workers' listeners share their port: without the flag the kernel would choose among them anew, by a
    // hash.
    let exactly = u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT);
    LISTENERS.redirect_sk_lookup(context, key, exactly).map_err(|error| match error {
        // `-ENOENT`
        -2 => Fault::ListenerMissing,
        _ => Fault::ListenerRefused,
    })
}

/// The turn of a connection from another node. Two that arrive within nanoseconds, on two cores, may have the
/// same; the target has no atomic that tells its former value.
#[inline(always)]
fn turn(pod: Address) -> u32 {
    let Some(turns) = TURNS.get_ptr_mut(redirect_rules::turn_counter_of_pod(pod)) else { return 0 };
    // SAFETY: the map's values live as long as the program and are aligned; torn reads of four bytes do not
    // happen.
    unsafe {
        let turn = ptr::read_volatile(turns);
        ptr::write_volatile(turns, turn.wrapping_add(1));
        turn
    }
}

/// What the kernel says of a connection that arrives.
struct Arrival {
    protocol: u32,
    interface: u32,
    local: AddressPort,
    remote: AddressPort,
}

impl Arrival {
    #[inline(always)]
    fn of(raw: *mut bpf_sk_lookup) -> Self {
        // SAFETY: the kernel passes a valid context for the length of the program; the verifier checks each
        // load.
        unsafe {
            let (local, remote) = if (*raw).family == INET {
                (Address::from_be32((*raw).local_ip4), Address::from_be32((*raw).remote_ip4))
            } else {
                (
                    words(ptr::addr_of!((*raw).local_ip6).cast()),
                    words(ptr::addr_of!((*raw).remote_ip6).cast()),
                )
            };
            Self {
                protocol: (*raw).protocol,
                interface: (*raw).ingress_ifindex,
                local: AddressPort::new(local, (*raw).local_port as u16),
                remote: AddressPort::new(remote, u16::from_be((*raw).remote_port as u16)),
            }
        }
    }
}

/// # Safety
///
/// `at` must point at four words inside the context. Volatile because the verifier refuses merged loads.
#[inline(always)]
unsafe fn words(at: *const u32) -> Address {
    // SAFETY: by the caller's promise.
    unsafe {
        Address::from_be32x4([
            ptr::read_volatile(at),
            ptr::read_volatile(at.add(1)),
            ptr::read_volatile(at.add(2)),
            ptr::read_volatile(at.add(3)),
        ])
    }
}
