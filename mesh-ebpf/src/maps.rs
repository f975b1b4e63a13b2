//! The maps, each with who writes and who reads it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockHash};
use mesh_common::address::Address;
use mesh_common::deferred_accept::{DEFERRED_SYNS_RING_BYTES, MAX_DECISIONS, RecentResult, SynDecision};
use mesh_common::direct::{
    DIRECT_EVENTS_RING_BYTES, DirectEvent, DirectFlowEntry, DirectFlowKey, DirectRoute, DirectRouteKey,
    MAX_DIRECT_FLOWS, MAX_DIRECT_OPEN, MAX_PROBES, MAX_ROUTES,
};
use mesh_common::maps::{
    AddressPort, EnrolledPod, ListenerKey, MAX_DESTINATIONS, MAX_HANDOFFS, MAX_LISTENERS, MAX_NODE_CGROUPS,
    MAX_OPEN_PORTS, MAX_PODS, MAX_PROBE_PORTS, MAX_PROXIES, MAX_RECENT_RESULTS, NetnsConnection,
    ProxyProcess, SandboxOwner,
};
use mesh_common::redirect_rules;
use mesh_common::strict_egress::{EgressKey, MAX_EGRESS_ENTRIES};
use mesh_common::veth::{FlowDirection, MAX_VETH_FLOWS, NEIGHBOUR_SLOTS, PodVeth, VethFlow};

use crate::context::DirectNotes;

/// The proxies, which are exempt. Written by the keeper when one starts and when it ends, read by every
/// program.
#[map]
pub static PROXIES: HashMap<ProxyProcess, u32> = HashMap::with_max_entries(MAX_PROXIES, 0);

/// Workers that have listeners in `LISTENERS`. Written by the keeper, read by `sk_lookup`.
#[map]
pub static WORKERS: Array<u32> = Array::with_max_entries(1, 0);

/// How many connections of other nodes have arrived at the pods that share an entry
/// ([`redirect_rules::turn_counter_of_pod`]). Written by `sk_lookup`.
#[map]
pub static TURNS: Array<u32> = Array::with_max_entries(redirect_rules::TURN_COUNTERS, 0);

/// Enrolled pods by network namespace cookie. Written by the keeper, read by `connect`.
#[map]
pub static PODS: HashMap<u64, EnrolledPod> = HashMap::with_max_entries(MAX_PODS, 0);

/// Which pod a network namespace was found to be the sandbox of, by its cookie. Written and read by keepers
/// alone, so that the next one need not ask the pod again.
#[map]
pub static SANDBOXES: HashMap<u64, SandboxOwner> = HashMap::with_max_entries(MAX_PODS, 0);

/// Addresses that the mesh knows, and how it is told whether somebody is there
/// ([`mesh_common::maps::DESTINATION_OPEN_PORTS`]). Written by the proxy from each snapshot, read by
/// `connect`.
#[map]
pub static DESTINATIONS: HashMap<Address, u32> =
    HashMap::with_max_entries(MAX_DESTINATIONS, BPF_F_NO_PREALLOC);

/// Ports of services behind which there is somebody. Written by the proxy from each snapshot, read by
/// `connect`.
#[map]
pub static OPEN_PORTS: HashMap<AddressPort, u32> =
    HashMap::with_max_entries(MAX_OPEN_PORTS, BPF_F_NO_PREALLOC);

/// What the last connection of a pod to a destination has met with: one that was refused is not tried again
/// for a moment, and one that was taken has the next ones not wait. By the pod, so that none has others
/// refused. Written by the proxy, read by `connect` and by the filter at the outbound listeners.
#[map]
pub static LATELY: LruHashMap<DirectRouteKey, RecentResult> =
    LruHashMap::with_max_entries(MAX_RECENT_RESULTS, 0);

/// SYNs that wait at the outbound listeners. Written by the filter there, read by the proxy.
#[map]
pub static DEFERRED_SYNS: RingBuf = RingBuf::with_byte_size(DEFERRED_SYNS_RING_BYTES, 0);

/// What becomes of connections whose SYN has waited. Written by the proxy, read by the filter and by
/// `sk_lookup`.
#[map]
pub static DECISIONS: LruHashMap<NetnsConnection, SynDecision> =
    LruHashMap::with_max_entries(MAX_DECISIONS, 0);

/// Pods that may not go to destinations which the mesh does not know, and what is excepted. Written by the
/// proxy, read by `connect`.
#[map]
pub static EGRESS: LpmTrie<EgressKey, u32> = LpmTrie::with_max_entries(MAX_EGRESS_ENTRIES, BPF_F_NO_PREALLOC);

/// What the end that accepts a connection is to see as its peer, from its SYN to the end of its handshake.
/// Written and taken by `sockops`. Least recently used entries go first, so what a failed handshake left does
/// not fill it.
#[map]
pub static HANDOFFS: LruHashMap<NetnsConnection, AddressPort> = LruHashMap::with_max_entries(MAX_HANDOFFS, 0);

/// What a socket's owner is to see as its peer: for a redirected client the address that it asked for; for
/// the proxy's side of that connection the same; for an application's side of a delivered connection its real
/// client. Goes away with the socket, so it needs no limit and no cleaning. The proxy writes it for the
/// sockets that it delivers with and reads it from those that it accepts.
#[btf_map]
pub static PEER: SkStorage<AddressPort> = SkStorage::new();

/// Whether the kernel knows MPTCP. The keeper sets it when it loads the programs.
#[unsafe(no_mangle)]
pub static MPTCP: u8 = 0;

/// Where connections of this node's pods may go without the proxy. Written by the proxy, read by `connect`,
/// which counts the turns in it, and again by `sockops` when the SYN leaves.
#[map]
pub static ROUTES: HashMap<DirectRouteKey, DirectRoute> =
    HashMap::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);

/// The enrolled pod that owns an address now, by the cookie of its network namespace. Written by the keeper,
/// read by `connect`, `sockops` and `sk_lookup`.
#[map]
pub static OWNERS: HashMap<Address, u64> = HashMap::with_max_entries(2 * MAX_PODS, BPF_F_NO_PREALLOC);

/// When the proxy last said that it lives, in nanoseconds of `CLOCK_MONOTONIC`. Read by `connect`, `sockops`
/// and `sk_lookup`.
#[map]
pub static PULSE: Array<u64> = Array::with_max_entries(1, 0);

/// Direct connections from their SYN to the end of their handshake, and the namespace that each may arrive
/// in. Written by the connecting end in `sockops`, read by `sk_lookup`, taken by the accepting end, or by the
/// connecting one at its end; the proxy takes back what policy forbids meanwhile, and what is left behind.
/// What grants something is never forgotten to make room: where there is none, the connection is not direct.
#[map]
pub static DIRECT_FLOWS: HashMap<DirectFlowKey, DirectFlowEntry> =
    HashMap::with_max_entries(MAX_DIRECT_FLOWS, BPF_F_NO_PREALLOC);

/// Until when no connection goes directly for want of room, in nanoseconds of `CLOCK_MONOTONIC`. Written by
/// `connect` and `sockops`, read by `connect`.
#[map]
pub static NO_ROOM: Array<u64> = Array::with_max_entries(1, 0);

/// What is remembered with the sockets of direct connections. Written by `connect` and `sockops`, read by
/// `sockops` and the guard.
#[btf_map]
pub static DIRECT: SkStorage<DirectNotes> = SkStorage::new();

/// Whether connections that the mesh leaves alone are counted. The keeper sets it when it loads the programs.
#[unsafe(no_mangle)]
pub static COUNT_UNTOUCHED: u8 = 0;

/// The direct connections that are open, by the cookie of the client's socket: the event by which each began,
/// for a proxy that was not there then. Written by `sockops`; read by the proxy when it begins to serve, and
/// to find out which connections ended without its hearing of it.
#[map]
pub static DIRECT_OPEN: HashMap<u64, DirectEvent> =
    HashMap::with_max_entries(MAX_DIRECT_OPEN, BPF_F_NO_PREALLOC);

/// What becomes of direct connections, for the proxy's records. Read ten times a second, and when it fills
/// up: there is room for some thousand, whose memory every node pays for.
#[map]
pub static DIRECT_EVENTS: RingBuf = RingBuf::with_byte_size(DIRECT_EVENTS_RING_BYTES, 0);

/// The pod that something arrives at, by the cookie of its network namespace, which `sk_lookup` programs
/// can't ask for: a few instructions at each pod's namespace write it and go on with the program in
/// `INBOUND`, on the same processor and without being interrupted by another packet.
#[map]
pub static HERE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The program that decides for all pods what becomes of a connection that arrives. Written by the keeper.
#[map]
pub static INBOUND: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// How pods are connected to the node, by the cookie of their network namespace. Written by the keeper; read
/// by `connect` and `sockops`, and by the proxy.
#[map]
pub static VETHS: HashMap<u64, PodVeth> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);

/// A bit for the slot of each address of a pod of this node ([`mesh_common::veth::neighbour_slot`]): a
/// cheap first look, since most packets go elsewhere. Written by the keeper.
#[map]
pub static NEIGHBOURS: Array<u64> = Array::with_max_entries(NEIGHBOUR_SLOTS / 64, 0);

/// Both directions of the connections that go from veth to veth. Written by `sockops`, read and written by
/// the programs at the veths, read by the guard; the proxy removes what is left behind. Never forgotten to
/// make room.
#[map]
pub static VETH_FLOWS: HashMap<FlowDirection, VethFlow> =
    HashMap::with_max_entries(MAX_VETH_FLOWS, BPF_F_NO_PREALLOC);

/// Clients, by the cookie of their network namespace, that have as many direct connections as they may; or
/// all of them ([`mesh_common::veth::CROWDED_ALL_CLIENTS`]). Written by `sockops` and the proxy, read by
/// `connect`.
#[map]
pub static CROWDED: HashMap<u64, u32> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);

/// How many of these connections there are, by the index of the host's end of the client's veth, and in all
/// ([`mesh_common::veth::COUNT_OF_ALL_CLIENTS`]). Written by `sockops`; the proxy puts right what two
/// processors counted at once.
#[map]
pub static VETH_COUNTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PODS + 1, BPF_F_NO_PREALLOC);

/// A [`mesh_common::veth::DirectPathMode`] as its number. The keeper sets it when it loads the programs.
#[unsafe(no_mangle)]
pub static SAME_NODE: u8 = 0;

/// The inbound listeners. Written by the keeper, which holds them, read by `sk_lookup`.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(MAX_LISTENERS, 0);

/// Ports that the node's pods declare in their probes, by pod address. Written by the keeper, read by
/// `connect`, `sockops` and `sk_lookup`.
#[map]
pub static PROBE_PORTS: HashMap<AddressPort, u32> =
    HashMap::with_max_entries(MAX_PROBE_PORTS, BPF_F_NO_PREALLOC);

/// The node's own network namespace, by its cookie. Written by the keeper, read by `connect`.
#[map]
pub static HOME: Array<u64> = Array::with_max_entries(1, 0);

/// Cgroups outside of all pods', by their ids; each stands for all that is below it. Written by the keeper,
/// read by `connect`.
#[map]
pub static NODE_CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_NODE_CGROUPS, BPF_F_NO_PREALLOC);

/// The node's probes from their SYN to their end, and the namespace that each may arrive in. Written by
/// `sockops`, read by `sk_lookup`; the proxy sweeps up what is left behind. Not among `DIRECT_FLOWS`, which
/// pods can fill up.
#[map]
pub static PROBES: HashMap<DirectFlowKey, DirectFlowEntry> =
    HashMap::with_max_entries(MAX_PROBES, BPF_F_NO_PREALLOC);

/// Faults, for the proxy's log and metrics.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);
