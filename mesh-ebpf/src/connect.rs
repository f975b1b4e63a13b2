//! `connect4` and `connect6`: an application opens a connection.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::fault::Fault;
use mesh_common::maps::{AddressPort, EnrolledPod};
use mesh_common::redirect_rules::{self, ConnectAction};

use crate::context::{self, SocketAddress};
use crate::maps::PODS;
use crate::{direct, egress, nobody, probe, report};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let to = context::user_endpoint_v4(&context);
    match steer(&context, to) {
        Step::Leave => 1,
        Step::Take(address) => {
            context::set_user_socket_address_v4(&context, address);
            1
        }
        Step::Fault(fault, netns) => report::connect_result(report::fault(fault, netns, to)),
    }
}

/// IPv6 sockets, which may name an IPv4-mapped address: then the kernel runs this program only.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let to = context::user_endpoint_v6(&context);
    match steer(&context, to) {
        Step::Leave => 1,
        Step::Take(address) => {
            context::set_user_socket_address_v6(&context, address);
            1
        }
        Step::Fault(fault, netns) => report::connect_result(report::fault(fault, netns, to)),
    }
}

enum Step {
    /// Not the mesh's.
    Leave,
    /// To another address: the proxy's, or an endpoint's.
    Take(SocketAddress),
    Fault(Fault, u64),
}

#[inline(always)]
fn steer(context: &SockAddrContext, to: AddressPort) -> Step {
    if protocol(context.sock_addr) != TCP {
        return Step::Leave;
    }
    let netns = context::netns_cookie(context::raw(context));
    // SAFETY: the entry is read in this call alone; the agent replaces entries whole.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        return outside(context, netns, to);
    };
    if context::is_proxy() {
        return Step::Leave;
    }
    if talks_to_itself(pod, &to) {
        return leave(context);
    }
    let known = nobody::known(&to);
    if known == 0 {
        context::forget_peer(context::socket_of(context));
        if egress::is_refused(netns, &to) {
            context::forget_direct(context::socket_of(context));
            return Step::Fault(Fault::EgressRefused, netns);
        }
        direct::untouched(context::socket_of(context), to);
        return Step::Leave;
    }
    if let Some(fault) = nobody::refusal(netns, known, &to) {
        let _as_before = leave(context);
        return Step::Fault(fault, netns);
    }
    take(context, netns, pod, to)
}

/// Not inlined: comparing addresses takes much of the stack, which what comes later needs.
#[inline(never)]
fn talks_to_itself(pod: &EnrolledPod, to: &AddressPort) -> bool {
    redirect_rules::connect_action(pod, to.address) == ConnectAction::Leave
}

/// To an endpoint on this node, or to the proxy. The application goes on to see the address that it asked
/// for.
#[inline(always)]
fn take(context: &SockAddrContext, netns: u64, pod: &EnrolledPod, to: AddressPort) -> Step {
    let socket = context::socket_of(context);
    let (mut shown, mut address) = (to, listener(context, pod, &to));
    if direct::is_room(netns, &to) {
        direct::endpoint(netns, socket, &mut shown, &mut address);
    } else {
        context::forget_direct(socket);
    }
    if !context::show_peer(socket, shown) {
        return Step::Fault(Fault::SocketStorage, netns);
    }
    Step::Take(address)
}

/// Not inlined, like what compares addresses.
#[inline(never)]
fn listener(context: &SockAddrContext, pod: &EnrolledPod, to: &AddressPort) -> SocketAddress {
    let (address, port) = if context::is_bound_to_interface(context::socket_of(context)) {
        redirect_rules::outbound_listener_of_bound_socket(pod, to)
    } else {
        redirect_rules::outbound_listener_address(pod, to)
    };
    SocketAddress::new(address, port)
}

/// Of a process that is in no enrolled pod: nothing to do with it, unless it is a probe.
#[inline(always)]
fn outside(context: &SockAddrContext, netns: u64, to: AddressPort) -> Step {
    let socket = context::socket_of(context);
    if probe::remember(netns, socket, &to) {
        context::forget_peer(socket);
        return Step::Leave;
    }
    leave(context)
}

/// A socket that was redirected once and connects again elsewhere shows its true peer from now on.
#[inline(always)]
fn leave(context: &SockAddrContext) -> Step {
    context::forget_peer(context::socket_of(context));
    context::forget_direct(context::socket_of(context));
    Step::Leave
}

#[inline(always)]
fn protocol(raw: *mut bpf_sock_addr) -> u32 {
    // SAFETY: the kernel passes a valid context for the length of the program.
    unsafe { (*raw).protocol }
}
