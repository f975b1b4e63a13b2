//! Failures inside the programs, and the one table of what then happens to the connection.

use crate::maps::AddressPort;

/// A failure inside an eBPF program.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The original destination could not be stored with the socket (out of memory).
    SocketStorage = 1,
    /// The original destination could not be handed to the proxy.
    HandoffFull = 2,
    /// The number of workers is missing: the agent never finished starting.
    AgentUnknown = 3,
    /// No listener of the proxy for an enrolled pod: the agent is gone or starting.
    ListenerMissing = 4,
    /// The kernel refused to hand the connection to the proxy's listener.
    ListenerRefused = 5,
    /// The real client's address could not be stored with an accepted socket.
    ClientStorage = 6,
    /// A connection could not be direct, or was direct and could not be announced to the other end or the
    /// agent.
    DirectFull = 7,
    /// A direct connection could not be listed for the next proxy.
    OpenFull = 8,
    /// A direct connection's SYN was sent after its yes from `connect()` had been withdrawn.
    Withdrawn = 9,
    /// A direct connection had no way without others on it when its SYN was about to be sent.
    NoWay = 10,
    /// Not a failure: the pod may not connect to destinations that the mesh does not know, and this one is
    /// not excepted.
    EgressRefused = 11,
    /// Not a failure: the service has no such port, or no endpoint for it.
    NobodyThere = 12,
    /// Not a failure: the destination has just refused a connection.
    RefusedLately = 13,
}

/// What happens to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// The connection is refused.
    Refuse,
    /// The connection goes on; the fault is only reported.
    GoOn,
}

impl Fault {
    /// Returns what happens to the connection then: the table of the kernel side's fail modes. Mesh-bound
    /// traffic fails closed.
    #[inline(always)]
    pub const fn fail_mode(self) -> FailMode {
        match self {
            Self::SocketStorage
            | Self::HandoffFull
            | Self::AgentUnknown
            | Self::ListenerMissing
            | Self::ListenerRefused
            | Self::Withdrawn
            | Self::NoWay
            | Self::EgressRefused
            | Self::NobodyThere
            | Self::RefusedLately => FailMode::Refuse,
            // The first: the connection is made and was allowed; only `getpeername` shows the proxy's
            // address. The second: it goes through the proxy; one that was announced in vain arrives like one
            // from outside the mesh, and the policy for those decides. The third: the running proxy knows of
            // it and applies policy; only the next one will not.
            Self::ClientStorage | Self::DirectFull | Self::OpenFull => FailMode::GoOn,
        }
    }

    /// Returns the fault with a number from the ring buffer.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::SocketStorage,
            2 => Self::HandoffFull,
            3 => Self::AgentUnknown,
            4 => Self::ListenerMissing,
            5 => Self::ListenerRefused,
            6 => Self::ClientStorage,
            7 => Self::DirectFull,
            8 => Self::OpenFull,
            9 => Self::Withdrawn,
            10 => Self::NoWay,
            11 => Self::EgressRefused,
            12 => Self::NobodyThere,
            13 => Self::RefusedLately,
            _ => return None,
        })
    }

    /// Returns a sentence for the log.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::SocketStorage => "no memory to remember the connection's destination",
            Self::HandoffFull => "no room to hand the connection's destination to the proxy",
            Self::AgentUnknown => "the agent has not said how many workers listen",
            Self::ListenerMissing => "the pod has no listener of the proxy",
            Self::ListenerRefused => "the kernel refused the proxy's listener",
            Self::ClientStorage => "no memory to remember the client's address",
            Self::DirectFull => "no room to announce a direct connection",
            Self::OpenFull => "no room to remember a direct connection for the next proxy",
            Self::Withdrawn => "a direct connection was no longer allowed when its first packet left",
            Self::NoWay => {
                "a direct connection found no way from veth to veth when its first packet was to leave"
            }
            Self::EgressRefused => {
                "strict egress: the mesh does not know the destination, and no rule names it"
            }
            Self::NobodyThere => "the service has no such port, or nobody behind it",
            Self::RefusedLately => "the destination has refused a connection a moment ago",
        }
    }
}

/// A record of the ring buffer `EVENTS`: a fault and the connection that it hit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Cookie of the pod's network namespace; 0 where the program can't know it (`sk_lookup`).
    pub netns: u64,
    /// A [`Fault`] as its number.
    pub fault: u32,
    /// Where the connection was going.
    pub destination: AddressPort,
}
const _: () = assert!(size_of::<FaultEvent>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_faults_agree() {
        let all: Vec<Fault> = (0..100).filter_map(Fault::from_number).collect();
        assert_eq!(all.len(), 13);
        for fault in all {
            assert_eq!(Fault::from_number(fault as u32), Some(fault));
        }
    }
}
