//! The protocol between proxy and keeper: records of one size, so that nothing has to be put together or
//! allocated. The proxy is not trusted: from any bytes [`KeeperRequest::decode`] returns a request with every
//! part within its bounds, or none.
//!
//! Descriptors are sent beside a record (`SCM_RIGHTS`, unix(7)). This file uses nothing but plain types: the
//! fuzz target `keeper` includes it.

use std::net::{IpAddr, SocketAddr};

use mesh_common::address::Address;

use crate::sys::{Connection, PreexistingConnection, SocketKind};

/// Bytes of every record.
pub const RECORD_LEN: usize = 384;
/// Most addresses of a pod.
pub const MOST_ADDRESSES: usize = 8;
/// Most probe ports of a pod.
pub const MOST_PROBE_PORTS: usize = 64;
/// Most sockets of one answer.
pub const MOST_SOCKETS: u8 = 32;
/// Most workers, so that the listeners of a pod and its namespace fit beside one record (`SCM_MAX_FD` is
/// 253).
pub const MOST_WORKERS: u8 = 64;
/// Bytes of a pod's uid: 36 of a UUID, or 32 of a static pod's hash.
const UID: usize = 36;
/// Offset of the request id in a record: the last four bytes.
const REQUEST_ID: usize = RECORD_LEN - 4;
/// Most bytes of a reason.
const REASON: usize = REQUEST_ID - 3;
/// Bytes of one connection in a list.
const PREEXISTING: usize = 1 + 8 + 2 * 18;

/// The bytes of a record.
pub type RecordBytes = [u8; RECORD_LEN];

/// The claim to a pod that should be in the mesh, within the bounds of [`Claim::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub(super) uid: String,
    /// Addresses, canonical, as far as they are known.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) probe_ports: Vec<u16>,
    pub(super) own_userns: bool,
}

/// Kinds of files that a proxy leaves to the next one. The keeper holds them, and never reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InheritedKind {
    /// Certificates and their keys, in a sealed file.
    Certificates = 1,
    /// What the control plane told, in a file that grows.
    Configuration = 2,
}

impl InheritedKind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Certificates, Self::Configuration].into_iter().find(|it| *it as u8 == number)
    }
}

/// The first record to a proxy. Beside it come the maps, the node's own listeners, inherited files, and a
/// channel for each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartMessage {
    /// Number of workers to run.
    pub workers: u8,
    /// Whether there is a Unix socket among the listeners, behind those for admin, metrics and health.
    pub admin_socket: bool,
    /// Whether another proxy serves until this one says that it is [ready](KeeperRequest::Ready).
    pub beside: bool,
    /// Which inherited files are beside it: [`InheritedKind::Certificates`],
    /// [`InheritedKind::Configuration`].
    pub inherited: [bool; 2],
}

/// Why a pod can't be claimed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidClaim {
    /// Its uid is not valid.
    #[error("{0:?} is not the uid of a pod")]
    Uid(String),
    /// It has more addresses than [`MOST_ADDRESSES`].
    #[error("more than {MOST_ADDRESSES} addresses")]
    Addresses,
    /// It has more probe ports than [`MOST_PROBE_PORTS`].
    #[error("more than {MOST_PROBE_PORTS} probe ports")]
    ProbePorts,
}

/// A request of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeeperRequest {
    /// Enrol a pod, or say again how it is enrolled. Answer: [`KeeperAnswer::Enrolled`], with its listeners,
    /// or [`KeeperAnswer::NotYet`].
    Enrol(Claim),
    /// Let a pod go, by the cookie of its network namespace.
    Unenrol(u64),
    /// Let go every pod that this proxy has not asked for.
    UnenrolUnclaimed,
    /// Close a connection of a pod. Answer: [`KeeperAnswer::Gone`] if it was closed already.
    Destroy(u64, Connection),
    /// List the connections of a pod. Answer: [`KeeperAnswer::Listed`], with a file.
    List(u64),
    /// Let a pod's first program run: everything is in place.
    LetStart(u64),
    /// Note that a pod's preexisting connections have been judged.
    PreexistingJudged(u64),
    /// Open that many sockets in a pod, or as many as there is room for. They come beside
    /// [`KeeperAnswer::Done`].
    Sockets(u64, SocketKind, u8),
    /// Note that this proxy serves.
    Ready,
    /// Leave nothing behind: the mesh is being uninstalled.
    Uninstalled,
    /// Write that many bytes of the memory file (`memfd_create(2)`) beside this, for the CNI plugin.
    WritePluginState(u32),
    /// Hold the file beside this for the next proxy, in place of the one before; without a file hold none.
    Bequeath(InheritedKind),
}

/// An answer of the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeeperAnswer {
    /// It is done.
    Done,
    /// The pod is enrolled: the cookie of its network namespace, its addresses, and whether its preexisting
    /// connections are [judged](KeeperRequest::PreexistingJudged). Beside it come its listeners: outbound,
    /// inbound, HBONE for each worker.
    Enrolled(u64, Vec<IpAddr>, bool),
    /// The pod has no process in a network namespace of its own yet, or no address there.
    NotYet,
    /// It had been done before.
    Gone,
    /// The number of connections in the file beside it, for [`decode_preexisting`], and whether there are
    /// more.
    Listed(u32, bool),
    /// News, not an answer: the runtime has made a new network namespace for an enrolled pod, by its uid.
    Moved(String),
    /// It can't be done, and why in words.
    Refused(String),
}

impl Claim {
    /// Claims a pod by its uid, with its known addresses (none: those of its namespace) and the ports of its
    /// probes. Errors: see [`InvalidClaim`].
    pub fn new(uid: &str, addresses: &[IpAddr], probe_ports: &[u16]) -> Result<Self, InvalidClaim> {
        let is_uid = (32..=UID).contains(&uid.len())
            && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !is_uid {
            return Err(InvalidClaim::Uid(uid.to_owned()));
        }
        if addresses.len() > MOST_ADDRESSES {
            return Err(InvalidClaim::Addresses);
        }
        if probe_ports.len() > MOST_PROBE_PORTS {
            return Err(InvalidClaim::ProbePorts);
        }
        let addresses = addresses.iter().map(IpAddr::to_canonical).collect();
        let (uid, probe_ports) = (uid.to_owned(), probe_ports.to_vec());
        Ok(Self { uid, addresses, probe_ports, own_userns: false })
    }

    /// Sets whether the runtime makes the pod a user namespace of its own.
    #[must_use]
    pub fn with_own_userns(self, own_userns: bool) -> Self {
        Self { own_userns, ..self }
    }

    /// Returns the pod's uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub(super) fn encode(&self, to: Writer) -> Writer {
        let to = to.text(&self.uid).addresses(&self.addresses).count(self.probe_ports.len());
        self.probe_ports.iter().fold(to, |to, port| to.u16(*port)).u8(self.own_userns.into())
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Option<Self> {
        let uid = from.text()?;
        let addresses = from.addresses()?;
        let count = from.u8()?;
        let probe_ports = (0..count).map(|_| from.u16()).collect::<Option<Vec<_>>>()?;
        let own_userns = from.u8()? != 0;
        Some(Self::new(&uid, &addresses, &probe_ports).ok()?.with_own_userns(own_userns))
    }
}

impl StartMessage {
    /// Encodes the start message as a record.
    pub fn encode(self) -> RecordBytes {
        let to = Writer::new(self.workers).u8(self.admin_socket.into()).u8(self.beside.into());
        self.inherited.into_iter().fold(to, |to, there| to.u8(there.into())).record
    }

    /// Decodes a start message; `None` if the record is no valid one.
    pub fn decode(record: &RecordBytes) -> Option<Self> {
        let mut from = Reader::of(record);
        let workers = from.u8()?;
        let mut flag = || from.u8().map(|flag| flag != 0);
        Some(Self { workers, admin_socket: flag()?, beside: flag()?, inherited: [flag()?, flag()?] })
    }
}

impl KeeperRequest {
    /// Encodes the request as a record.
    pub fn encode(&self) -> RecordBytes {
        match self {
            Self::Enrol(claim) => claim.encode(Writer::new(1)),
            Self::Unenrol(pod) => Writer::new(2).u64(*pod),
            Self::UnenrolUnclaimed => Writer::new(3),
            Self::Destroy(pod, Connection { cookie, local, remote }) => {
                Writer::new(4).u64(*pod).u64(*cookie).endpoint(*local).endpoint(*remote)
            }
            Self::Sockets(pod, kind, count) => Writer::new(5).u64(*pod).u8(*kind as u8).u8(*count),
            Self::Ready => Writer::new(6),
            Self::Uninstalled => Writer::new(7),
            Self::List(pod) => Writer::new(8).u64(*pod),
            Self::PreexistingJudged(pod) => Writer::new(9).u64(*pod),
            Self::WritePluginState(length) => Writer::new(10).u32(*length),
            Self::Bequeath(what) => Writer::new(11).u8(*what as u8),
            Self::LetStart(pod) => Writer::new(12).u64(*pod),
        }
        .record
    }

    /// Decodes a request; `None` if it is not valid or out of bounds.
    pub fn decode(record: &RecordBytes) -> Option<Self> {
        let mut from = Reader::of(record);
        Some(match from.u8()? {
            1 => Self::Enrol(Claim::decode(&mut from)?),
            2 => Self::Unenrol(from.u64()?),
            3 => Self::UnenrolUnclaimed,
            4 => {
                let (pod, cookie) = (from.u64()?, from.u64()?);
                let (local, remote) = (from.endpoint()?, from.endpoint()?);
                let same_family = local.is_ipv4() == remote.is_ipv4();
                same_family.then_some(Self::Destroy(pod, Connection { cookie, local, remote }))?
            }
            5 => {
                let (pod, kind, count) = (from.u64()?, SocketKind::from_number(from.u8()?)?, from.u8()?);
                (1..=MOST_SOCKETS).contains(&count).then_some(Self::Sockets(pod, kind, count))?
            }
            6 => Self::Ready,
            7 => Self::Uninstalled,
            8 => Self::List(from.u64()?),
            9 => Self::PreexistingJudged(from.u64()?),
            10 => Self::WritePluginState(from.u32()?),
            11 => Self::Bequeath(InheritedKind::from_number(from.u8()?)?),
            12 => Self::LetStart(from.u64()?),
            _ => return None,
        })
    }
}

impl KeeperAnswer {
    /// Encodes the answer as a record. A reason that is too long is cut.
    pub fn encode(&self) -> RecordBytes {
        match self {
            Self::Done => Writer::new(1),
            Self::Enrolled(pod, addresses, judged) => {
                let addresses = addresses.get(..MOST_ADDRESSES).unwrap_or(addresses);
                Writer::new(2).u64(*pod).addresses(addresses).u8((*judged).into())
            }
            Self::NotYet => Writer::new(3),
            Self::Gone => Writer::new(5),
            Self::Listed(count, more) => Writer::new(6).u32(*count).u8((*more).into()),
            Self::Moved(uid) => Writer::new(7).text(uid),
            Self::Refused(reason) => Writer::new(4).text(&reason[..reason.floor_char_boundary(REASON)]),
        }
        .record
    }

    /// Decodes an answer; `None` if the record is no valid one.
    pub fn decode(record: &RecordBytes) -> Option<Self> {
        let mut from = Reader::of(record);
        Some(match from.u8()? {
            1 => Self::Done,
            2 => Self::Enrolled(from.u64()?, from.addresses()?, from.u8()? != 0),
            3 => Self::NotYet,
            4 => Self::Refused(from.text()?),
            5 => Self::Gone,
            6 => Self::Listed(from.u32()?, from.u8()? != 0),
            7 => Self::Moved(from.text()?),
            _ => return None,
        })
    }
}

/// Returns the id of a request, or of the request that an answer is to. Answers come in the order in
/// which requests are finished.
pub fn request_id(record: &RecordBytes) -> u32 {
    let request_id = record.last_chunk().copied();
    request_id.map_or(0, u32::from_le_bytes)
}

/// Sets the request id of a record.
pub fn with_request_id(mut record: RecordBytes, request_id: u32) -> RecordBytes {
    record[REQUEST_ID..].copy_from_slice(&request_id.to_le_bytes());
    record
}

/// Encodes connections for a file.
pub fn encode_preexisting(all: &[PreexistingConnection]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(all.len() * PREEXISTING);
    for PreexistingConnection { connection: Connection { cookie, local, remote }, taken } in all {
        let to = Writer::new((*taken).into()).u64(*cookie).endpoint(*local).endpoint(*remote);
        bytes.extend_from_slice(&to.record[..PREEXISTING]);
    }
    bytes
}

/// Returns the bytes of `count` connections.
pub fn encoded_preexisting_length(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(PREEXISTING)
}

/// Decodes connections from the bytes of a file.
pub fn decode_preexisting(bytes: &[u8]) -> Vec<PreexistingConnection> {
    let read = |bytes: &[u8]| {
        let mut from = Reader(bytes);
        let (taken, cookie) = (from.u8()? != 0, from.u64()?);
        Some(PreexistingConnection {
            connection: Connection { cookie, local: from.endpoint()?, remote: from.endpoint()? },
            taken,
        })
    };
    bytes.chunks_exact(PREEXISTING).filter_map(read).collect()
}

/// Writes a record. The types above bound what is written to less than a record; anything beyond would be
/// cut.
pub(super) struct Writer {
    pub(super) record: RecordBytes,
    at: usize,
}

impl Writer {
    /// Starts a record of a kind.
    pub(super) fn new(kind: u8) -> Self {
        Self { record: [0; RECORD_LEN], at: 0 }.u8(kind)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        for (place, byte) in self.record.iter_mut().skip(self.at).zip(bytes) {
            *place = *byte;
        }
        self.at += bytes.len();
        self
    }

    pub(super) fn u8(self, number: u8) -> Self {
        self.bytes(&[number])
    }

    pub(super) fn u16(self, number: u16) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    fn u64(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Writes a count; all lists are short.
    fn count(self, count: usize) -> Self {
        self.u8(u8::try_from(count).unwrap_or(u8::MAX))
    }

    /// Writes a text; none is longer than a record.
    fn text(self, text: &str) -> Self {
        self.u16(u16::try_from(text.len()).unwrap_or(u16::MAX)).bytes(text.as_bytes())
    }

    fn address(self, address: IpAddr) -> Self {
        self.bytes(&Address::from(address).0)
    }

    fn addresses(self, addresses: &[IpAddr]) -> Self {
        addresses.iter().fold(self.count(addresses.len()), |to, address| to.address(*address))
    }

    fn endpoint(self, endpoint: SocketAddr) -> Self {
        self.address(endpoint.ip()).u16(endpoint.port())
    }
}

/// Reads a record.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads everything but the request id.
    pub(super) fn of(record: &'a RecordBytes) -> Self {
        Self(&record[..REQUEST_ID])
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(ToOwned::to_owned)
    }

    fn address(&mut self) -> Option<IpAddr> {
        Some(IpAddr::from(Address(self.take()?)))
    }

    fn addresses(&mut self) -> Option<Vec<IpAddr>> {
        let count = usize::from(self.u8()?);
        if count > MOST_ADDRESSES {
            return None;
        }
        (0..count).map(|_| self.address()).collect()
    }

    fn endpoint(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address()?, self.u16()?))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const POD: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";

    fn requests() -> Vec<KeeperRequest> {
        let addresses: Vec<IpAddr> =
            (0..u8::try_from(MOST_ADDRESSES).unwrap()).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let ports: Vec<u16> = (0..u16::try_from(MOST_PROBE_PORTS).unwrap()).collect();
        let ends = |a: &str, b: &str| (a.parse().unwrap(), b.parse().unwrap());
        let (local, remote) = ends("10.0.0.1:80", "10.0.0.2:4000");
        let (local6, remote6) = ends("[fd00::1]:80", "[fd00::2]:4000");
        vec![
            KeeperRequest::Enrol(Claim::new(POD, &addresses, &ports).unwrap()),
            KeeperRequest::Enrol(Claim::new(&"f".repeat(32), &[], &[]).unwrap().with_own_userns(true)),
            KeeperRequest::Unenrol(u64::MAX),
            KeeperRequest::UnenrolUnclaimed,
            KeeperRequest::Destroy(7, Connection { cookie: 9, local, remote }),
            KeeperRequest::Destroy(7, Connection { cookie: 9, local: local6, remote: remote6 }),
            KeeperRequest::Sockets(7, SocketKind::OutboundV4, 1),
            KeeperRequest::Sockets(7, SocketKind::LoopbackPacketsV6, MOST_SOCKETS),
            KeeperRequest::Ready,
            KeeperRequest::Uninstalled,
            KeeperRequest::List(7),
            KeeperRequest::PreexistingJudged(7),
            KeeperRequest::WritePluginState(u32::MAX),
            KeeperRequest::Bequeath(InheritedKind::Certificates),
            KeeperRequest::Bequeath(InheritedKind::Configuration),
            KeeperRequest::LetStart(7),
        ]
    }

    fn answers() -> Vec<KeeperAnswer> {
        let addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        vec![
            KeeperAnswer::Done,
            KeeperAnswer::Enrolled(7, addresses, true),
            KeeperAnswer::Listed(3, true),
            KeeperAnswer::NotYet,
            KeeperAnswer::Gone,
            KeeperAnswer::Moved(POD.to_owned()),
            KeeperAnswer::Refused("port 15001 of the pod: in use".to_owned()),
        ]
    }

    #[test]
    #[ignore = "writes into the tree: the first inputs of the fuzz target `keeper`"]
    fn write_seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/keeper");
        std::fs::create_dir_all(&directory).unwrap();
        let requests = requests().into_iter().map(|request| request.encode());
        let answers = answers().into_iter().map(|answer| answer.encode());
        for (number, record) in requests.chain(answers).enumerate() {
            let length = record.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            std::fs::write(directory.join(format!("{number}-{}", record[0])), &record[..length]).unwrap();
        }
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for request in requests() {
            let record = with_request_id(request.encode(), u32::MAX - 1);
            assert_eq!((KeeperRequest::decode(&record), request_id(&record)), (Some(request), u32::MAX - 1));
        }
        for answer in answers() {
            assert_eq!(KeeperAnswer::decode(&answer.encode()), Some(answer));
        }
        let long = KeeperAnswer::decode(&KeeperAnswer::Refused("ä".repeat(RECORD_LEN)).encode());
        assert!(matches!(long, Some(KeeperAnswer::Refused(reason)) if reason.len() >= REASON - 1));
        let mut into_the_request_id = KeeperAnswer::Refused("a".repeat(REASON)).encode();
        into_the_request_id[1..3].copy_from_slice(&u16::try_from(REASON + 1).unwrap().to_le_bytes());
        assert_eq!(KeeperAnswer::decode(&into_the_request_id), None);
    }

    #[test]
    fn what_is_listed_is_what_is_read() {
        let open = |taken, local: &str, remote: &str| PreexistingConnection {
            connection: Connection {
                cookie: 1 << 40 | 7,
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
            },
            taken,
        };
        let all =
            vec![open(true, "10.0.0.1:80", "10.0.0.2:4000"), open(false, "[fd00::1]:80", "[fd00::2]:4000")];
        let bytes = encode_preexisting(&all);
        assert_eq!((bytes.len(), decode_preexisting(&bytes)), (encoded_preexisting_length(2), all.clone()));
        assert_eq!(decode_preexisting(&bytes[..bytes.len() - 1]), all[..1]);
    }

    #[test]
    fn what_is_out_of_bounds_is_no_request() {
        for uid in ["", "kubepods", "../../../../../../../../../../../etc", &"f".repeat(37), &"F".repeat(32)]
        {
            assert!(Claim::new(uid, &[], &[]).is_err(), "{uid}");
        }
        let address = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(Claim::new(POD, &[address; 9], &[]), Err(InvalidClaim::Addresses));
        assert_eq!(Claim::new(POD, &[], &[1; 65]), Err(InvalidClaim::ProbePorts));
        for count in [0, MOST_SOCKETS + 1, 255] {
            assert_eq!(
                KeeperRequest::decode(&KeeperRequest::Sockets(7, SocketKind::OutboundV4, count).encode()),
                None
            );
        }
        let mixed = Connection {
            cookie: 1,
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "[fd00::2]:4000".parse().unwrap(),
        };
        assert_eq!(KeeperRequest::decode(&KeeperRequest::Destroy(7, mixed).encode()), None);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        for request in requests() {
            let record = request.encode();
            // Each byte in turn is everything it can be.
            for place in 0..RECORD_LEN {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut strange = record;
                    strange[place] = value;
                    if let Some(understood) = KeeperRequest::decode(&strange) {
                        assert_eq!(KeeperRequest::decode(&understood.encode()), Some(understood));
                    }
                    let _total = KeeperAnswer::decode(&strange);
                }
            }
        }
    }
}
