//! The node's probes of its pods. What a kubelet is, is decided by where it runs: in the node's own network
//! namespace, and in a cgroup outside of all pods'. Addresses say nothing, since much is masqueraded to the
//! node's.
//!
//! A probe is filed as a direct connection is: by the end that opens it, for the end where it arrives.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock};
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::direct::{
    ArrivalVerdict, DirectEventKind, DirectFlowEntry, DirectFlowKey, DirectSocket, NOTE_PROBE,
};
use mesh_common::fault::Fault;
use mesh_common::maps::AddressPort;

use crate::direct::{now, tell};
use crate::maps::{HOME, NODE_CGROUPS, OWNERS, PROBE_PORTS, PROBES};
use crate::{context, report, sockops};

/// How far from the root of all cgroups the node's are looked for.
const LEVELS: i32 = 12;

/// A process outside of the mesh opens a connection. Remembers it if it is a probe; returns whether it does.
#[inline(never)]
pub fn remember(netns: u64, socket: *mut bpf_sock, to: &AddressPort) -> bool {
    // SAFETY: only their presence is looked at, or the entry is copied at once.
    let (declared, owner) = unsafe { (PROBE_PORTS.get(to).is_some(), OWNERS.get(to.address).copied()) };
    let Some(server) = owner.filter(|_| declared) else { return false };
    if HOME.get(0) != Some(&netns) || context::is_proxy() || !is_of_the_node() {
        return false;
    }
    let destination = AddressPort { note: NOTE_PROBE, ..*to };
    context::make_direct(socket, DirectSocket { server, opened: now(), destination, zero: 0 })
}

/// Whether the current task is in a cgroup outside of all pods'. Who is in one that the keeper does not know
/// is not.
#[inline(always)]
fn is_of_the_node() -> bool {
    let mut level = 0;
    while level < LEVELS {
        // SAFETY: a helper that takes a number; always callable here.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        // SAFETY: only its presence is looked at.
        if unsafe { NODE_CGROUPS.get(id) }.is_some() {
            return true;
        }
        level += 1;
    }
    false
}

/// A probe's SYN is about to leave. Where it can't be filed it arrives like any other.
#[inline(never)]
pub fn opening(context: &SockOpsContext, socket: *mut bpf_sock, probe: &DirectSocket) {
    let flow = DirectFlowKey { client: sockops::local(context), server: sockops::remote(context) };
    let netns = context::netns_cookie(context.ops.cast());
    let filed = DirectFlowEntry { server: probe.server, client: netns, at: now() };
    // SAFETY: only their presence is looked at, or the entry is copied at once.
    let still_holds = unsafe {
        PROBE_PORTS.get(flow.server).is_some()
            && OWNERS.get(flow.server.address).copied() == Some(probe.server)
    };
    let announced = still_holds
        && context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && PROBES.insert(flow, filed, 0).is_ok();
    if !announced {
        context::forget_direct(socket);
        let _goes_on = report::fault(Fault::DirectFull, netns, flow.server);
        return;
    }
    // A probe that is not recorded is a probe all the same.
    let _recorded = tell(context, DirectEventKind::Opening, probe, &flow, 0);
}

/// Whether a connection that arrives at a pod is a probe that may.
#[inline(always)]
pub fn may_arrive(pod: u64, client: AddressPort, server: AddressPort) -> bool {
    // SAFETY: only its presence is looked at, or the entry is copied at once.
    let (declared, filed) =
        unsafe { (PROBE_PORTS.get(server).is_some(), PROBES.get(DirectFlowKey { client, server }).copied()) };
    // As if nobody could take it back: a kubelet that had no answer for some seconds has given up.
    declared && filed.is_some_and(|filed| filed.arrival_verdict(pod, now(), false) == ArrivalVerdict::Direct)
}
