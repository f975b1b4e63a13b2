//! Reading and writing the kernel's contexts: the only place that knows their layout.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid};
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use core::ptr;
use mesh_common::address::Address;
use mesh_common::direct::DirectSocket;
use mesh_common::maps::{AddressPort, ProxyProcess};
use mesh_common::veth::VethFlowSocket;

use crate::maps::{DIRECT, MPTCP, PEER, PROXIES};

/// `BPF_SK_STORAGE_GET_F_CREATE` of `linux/bpf.h`.
const CREATE: u64 = 1;

/// Whether the current task is a proxy, whose own sockets are never redirected.
#[inline(always)]
pub fn is_proxy() -> bool {
    // SAFETY: helpers without arguments, always callable; of the entry only its presence is looked at.
    unsafe {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        PROXIES.get(ProxyProcess::new(bpf_get_current_cgroup_id(), tgid)).is_some()
    }
}

/// Cookie of the network namespace that the context's socket is in.
#[inline(always)]
pub fn netns_cookie(context: *mut c_void) -> u64 {
    // SAFETY: `context` is the program's own context, which this helper asks for.
    unsafe { bpf_get_netns_cookie(context) }
}

/// Destination that a `connect()` names, or the peer that a `getpeername()` is about to show.
#[inline(always)]
pub fn user_endpoint_v4(context: &SockAddrContext) -> AddressPort {
    // SAFETY: the kernel passes a valid context for the length of the program; the verifier checks each load.
    let (ip, port) = unsafe { ((*context.sock_addr).user_ip4, (*context.sock_addr).user_port) };
    AddressPort::new(Address::from_be32(ip), u16::from_be(port as u16))
}

/// As [`user_endpoint_v4`], for IPv6 sockets (which may name an IPv4-mapped address).
#[inline(always)]
pub fn user_endpoint_v6(context: &SockAddrContext) -> AddressPort {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: as above. Word by word and volatile, because the verifier refuses the wider loads that the
    // compiler would otherwise merge them into.
    let (words, port) = unsafe {
        let ip = ptr::addr_of!((*raw).user_ip6).cast::<u32>();
        (
            [
                ptr::read_volatile(ip),
                ptr::read_volatile(ip.add(1)),
                ptr::read_volatile(ip.add(2)),
                ptr::read_volatile(ip.add(3)),
            ],
            (*raw).user_port,
        )
    };
    AddressPort::new(Address::from_be32x4(words), u16::from_be(port as u16))
}

/// An address and port in words, which the compiler moves as such. An [`AddressPort`] it moves byte by byte,
/// with a slot of the stack for each.
#[derive(Clone, Copy)]
pub struct SocketAddress {
    /// The address, in network order.
    pub words: [u32; 4],
    /// The port, in host order.
    pub port: u32,
}

impl SocketAddress {
    /// An address and port.
    #[inline(always)]
    pub fn new(address: Address, port: u16) -> Self {
        Self { words: address.to_be32x4(), port: u32::from(port) }
    }
}

/// Replaces the address of an IPv4 socket's call.
#[inline(always)]
pub fn set_user_endpoint_v4(context: &SockAddrContext, address: Address, port: u16) {
    set_user_socket_address_v4(context, SocketAddress::new(address, port));
}

/// As [`set_user_endpoint_v4`].
#[inline(always)]
pub fn set_user_socket_address_v4(context: &SockAddrContext, address: SocketAddress) {
    // SAFETY: as above; both fields are writable in these programs.
    unsafe {
        (*context.sock_addr).user_ip4 = address.words[3];
        (*context.sock_addr).user_port = u32::from((address.port as u16).to_be());
    }
}

/// Replaces the address of an IPv6 socket's call.
#[inline(always)]
pub fn set_user_endpoint_v6(context: &SockAddrContext, address: Address, port: u16) {
    set_user_socket_address_v6(context, SocketAddress::new(address, port));
}

/// As [`set_user_endpoint_v6`].
#[inline(always)]
pub fn set_user_socket_address_v6(context: &SockAddrContext, address: SocketAddress) {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    let SocketAddress { words, port } = address;
    // SAFETY: as above.
    unsafe {
        let ip = ptr::addr_of_mut!((*raw).user_ip6).cast::<u32>();
        ptr::write_volatile(ip, words[0]);
        ptr::write_volatile(ip.add(1), words[1]);
        ptr::write_volatile(ip.add(2), words[2]);
        ptr::write_volatile(ip.add(3), words[3]);
        (*raw).user_port = u32::from((port as u16).to_be());
    }
}

/// The socket of a `connect()` or `getpeername()`.
#[inline(always)]
pub fn socket_of(context: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: as above; never null in cgroup socket-address programs.
    unsafe { (*context.sock_addr).__bindgen_anon_1.sk }
}

/// Whether a socket's program has bound it to an interface (`SO_BINDTODEVICE`).
#[inline(always)]
pub fn is_bound_to_interface(socket: *mut bpf_sock) -> bool {
    // SAFETY: as above; the verifier checks reads through the socket pointer too.
    unsafe { (*socket).bound_dev_if != 0 }
}

/// The socket's own address, for IPv4 connections.
#[inline(always)]
pub fn own_address_v4(context: &SockAddrContext) -> Address {
    // SAFETY: as above; the verifier checks reads through the socket pointer too.
    Address::from_be32(unsafe { (*socket_of(context)).src_ip4 })
}

/// The socket's own address, for IPv6 connections.
#[inline(always)]
pub fn own_address_v6(context: &SockAddrContext) -> Address {
    // SAFETY: as above.
    unsafe {
        let words = ptr::addr_of!((*socket_of(context)).src_ip6).cast::<u32>();
        Address::from_be32x4([
            ptr::read_volatile(words),
            ptr::read_volatile(words.add(1)),
            ptr::read_volatile(words.add(2)),
            ptr::read_volatile(words.add(3)),
        ])
    }
}

/// The socket of a socket-operations callback; may be null.
#[inline(always)]
pub fn socket_of_ops(ops: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: the kernel passes a valid context for the length of the program.
    unsafe { (*ops).__bindgen_anon_2.sk }
}

/// A socket's value in one of the maps of what is remembered with sockets, if there is one; to be used before
/// the program ends. The helpers are called directly because aya's wrapper takes `connect` contexts only.
#[inline(always)]
fn stored<T>(map: &SkStorage<T>, socket: *mut bpf_sock) -> Option<&'static T> {
    // SAFETY: `socket` comes from the context and was checked for null by the caller where it may be; the
    // helper answers null or a pointer to this map's value, which lives as long as the socket.
    unsafe {
        let value = bpf_sk_storage_get(map_pointer(map), socket.cast(), ptr::null_mut(), 0);
        value.cast::<T>().as_ref()
    }
}

/// Remembers a value with a socket. Returns false when there is no memory for it.
#[inline(always)]
fn store<T: Copy>(map: &SkStorage<T>, socket: *mut bpf_sock, mut value: T) -> bool {
    // SAFETY: as above; `value` outlives the call, which copies it when it creates the entry.
    unsafe {
        let slot =
            bpf_sk_storage_get(map_pointer(map), socket.cast(), ptr::from_mut(&mut value).cast(), CREATE);
        match slot.cast::<T>().as_mut() {
            // An older value is there when a socket connects again.
            Some(slot) => {
                *slot = value;
                true
            }
            None => false,
        }
    }
}

#[inline(always)]
fn forget<T>(map: &SkStorage<T>, socket: *mut bpf_sock) {
    // SAFETY: as above. The answer says only whether there was a value.
    unsafe {
        bpf_sk_storage_delete(map_pointer(map), socket.cast());
    }
}

#[inline(always)]
fn map_pointer<T>(map: &SkStorage<T>) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}

/// What the owner of a socket is to see as its peer, if that was replaced.
#[inline(always)]
pub fn shown_peer(socket: *mut bpf_sock) -> Option<AddressPort> {
    stored(&PEER, socket).copied()
}

/// Replaces what the owner of a socket is to see as its peer. Returns false when there is no memory for it.
#[inline(always)]
#[must_use]
pub fn show_peer(socket: *mut bpf_sock, peer: AddressPort) -> bool {
    let whole = mptcp_of(socket);
    store(&PEER, socket, peer) && (whole.is_null() || store(&PEER, whole, peer))
}

/// Shows the owner of a socket its true peer again.
#[inline(always)]
pub fn forget_peer(socket: *mut bpf_sock) {
    let whole = mptcp_of(socket);
    if !whole.is_null() {
        forget(&PEER, whole);
    }
    forget(&PEER, socket);
}

/// The MPTCP socket that a connection is a part of, or null. It is what a program holds and asks for its
/// peer, while it is the part that connects.
#[inline(always)]
fn mptcp_of(socket: *mut bpf_sock) -> *mut bpf_sock {
    // SAFETY: a byte of read-only data that is there as long as the program; volatile because the agent sets
    // it after compilation. Where it is zero the verifier leaves out the helper, which not every kernel has.
    if unsafe { ptr::read_volatile(&raw const MPTCP) } == 0 {
        return ptr::null_mut();
    }
    // SAFETY: `socket` is the context's, and not null; the answer is null or a socket, which the helpers
    // above take.
    unsafe { bpf_skc_to_mptcp_sock(socket.cast()).cast() }
}

/// What is remembered with a socket of a direct connection, of either kind. It stays as long as the socket,
/// whose next connection may be another's: to take it away and make it anew costs more than a word.
pub struct DirectNotes {
    /// Of the client's socket, where `is_direct` is not 0.
    direct: DirectSocket,
    /// Of either socket, where `is_veth_end` is not 0.
    veth_end: VethFlowSocket,
    is_direct: u32,
    is_veth_end: u32,
}

/// The notes of a socket, empty ones if it had none. None when there is no memory for them.
#[inline(always)]
fn notes(socket: *mut bpf_sock) -> Option<&'static mut DirectNotes> {
    // SAFETY: as in `stored`; without a value the kernel makes one of zeroes (kernel: `bpf_selem_alloc`).
    unsafe {
        let notes = bpf_sk_storage_get(map_pointer(&DIRECT), socket.cast(), ptr::null_mut(), CREATE);
        notes.cast::<DirectNotes>().as_mut()
    }
}

/// The notes of a socket that has some, to change them.
#[inline(always)]
fn present_notes(socket: *mut bpf_sock) -> Option<&'static mut DirectNotes> {
    // SAFETY: as in `stored`.
    unsafe {
        let notes = bpf_sk_storage_get(map_pointer(&DIRECT), socket.cast(), ptr::null_mut(), 0);
        notes.cast::<DirectNotes>().as_mut()
    }
}

/// What is remembered with the client's socket of a direct connection.
#[inline(always)]
pub fn direct_of(socket: *mut bpf_sock) -> Option<&'static DirectSocket> {
    stored(&DIRECT, socket).filter(|notes| notes.is_direct != 0).map(|notes| &notes.direct)
}

/// Makes a socket's connection a direct one. Returns false when there is no memory for it.
#[inline(always)]
#[must_use]
pub fn make_direct(socket: *mut bpf_sock, direct: DirectSocket) -> bool {
    let Some(notes) = notes(socket) else { return false };
    notes.direct = direct;
    notes.is_direct = 1;
    true
}

/// A socket that was a direct connection's connects again, some other way.
#[inline(always)]
pub fn forget_direct(socket: *mut bpf_sock) {
    if let Some(notes) = present_notes(socket) {
        notes.is_direct = 0;
    }
}

/// What is remembered with either socket of a connection that goes from veth to veth.
#[inline(always)]
pub fn veth_end_of(socket: *mut bpf_sock) -> Option<&'static VethFlowSocket> {
    stored(&DIRECT, socket).filter(|notes| notes.is_veth_end != 0).map(|notes| &notes.veth_end)
}

/// Makes a socket one of a connection that goes from veth to veth. Returns false when there is no memory for
/// it.
#[inline(always)]
#[must_use]
pub fn make_veth_end(socket: *mut bpf_sock, end: VethFlowSocket) -> bool {
    let Some(notes) = notes(socket) else { return false };
    notes.veth_end = end;
    notes.is_veth_end = 1;
    true
}

/// A socket that was one connects again, some other way.
#[inline(always)]
pub fn forget_veth_end(socket: *mut bpf_sock) {
    if let Some(notes) = present_notes(socket) {
        notes.is_veth_end = 0;
    }
}

/// The raw pointer of a context, as helpers ask for it.
#[inline(always)]
pub fn raw(context: &SockAddrContext) -> *mut c_void {
    context.as_ptr()
}
