//! Who may read metrics: they name workloads and identities of all namespaces.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Peer;

/// Processes of the same host, addresses within blocks, and pods of namespaces; written like
/// `10.1.2.3,fd00::/8,monitoring`.
///
/// A pod is known by its address here, which is no proof: who can speak with another pod's address, as one
/// with `NET_RAW` can on some networks, reads what that one may. Nothing but reading is given by this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Readers {
    blocks: Vec<IpNet>,
    namespaces: Vec<String>,
}

impl Readers {
    /// Pods of these namespaces.
    pub fn of_namespaces(names: &[&str]) -> Self {
        Self { blocks: Vec::new(), namespaces: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    /// Whether a peer is one of them, where `namespace_of` says which namespace's pod has an address, as far
    /// as is known. Errors: a sentence for the peer.
    pub fn admit(
        &self,
        peer: &Peer,
        namespace_of: impl FnOnce(IpAddr) -> Option<String>,
    ) -> Result<(), String> {
        let Some(address) = peer.address() else { return Ok(()) };
        if peer.is_this_host() || self.blocks.iter().any(|block| block.contains(&address)) {
            return Ok(());
        }
        if namespace_of(address).is_some_and(|namespace| self.namespaces.contains(&namespace)) {
            return Ok(());
        }
        Err(format!("{address} may not read metrics: it is of no namespace or block of --metrics-allow"))
    }
}

impl FromStr for Readers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut readers = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if let Ok(block) = part.parse::<IpNet>() {
                readers.blocks.push(block.trunc());
            } else if let Ok(address) = part.parse::<IpAddr>() {
                readers.blocks.push(address.to_canonical().into());
            } else if is_label(part) {
                readers.namespaces.push(part.to_owned());
            } else {
                return Err(format!(
                    "`{part}` is neither an address, a block such as 10.0.0.0/8, nor a namespace"
                ));
            }
        }
        Ok(readers)
    }
}

/// A name of a namespace: a label of RFC 1123, which no address and no block is.
fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 63 && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

impl fmt::Display for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.blocks.iter().map(ToString::to_string);
        let all: Vec<_> = blocks.chain(self.namespaces.iter().cloned()).collect();
        f.write_str(&all.join(","))
    }
}

impl TryFrom<String> for Readers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Readers> for String {
    fn from(readers: Readers) -> Self {
        readers.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace_of(address: IpAddr) -> Option<String> {
        match address.to_string().as_str() {
            "10.244.1.1" => Some("monitoring".to_owned()),
            "10.244.1.2" => Some("shop".to_owned()),
            _ => None,
        }
    }

    fn reads(readers: &str, from: &str) -> bool {
        let end = |text: &str| text.parse().unwrap();
        let peer = Peer::Network { from: end(from), to: end("[::ffff:10.0.0.1]:15020") };
        readers.parse::<Readers>().unwrap().admit(&peer, namespace_of).is_ok()
    }

    #[test]
    fn the_node_a_block_and_a_namespace_may_read_and_nobody_else() {
        for readers in ["", "monitoring,192.168.0.0/16"] {
            assert!(reads(readers, "127.0.0.1:1") && reads(readers, "10.0.0.1:1"), "the host itself");
            assert!(!reads(readers, "10.0.0.2:1") && !reads(readers, "10.244.1.2:1"));
        }
        assert!(reads("monitoring", "10.244.1.1:1") && !reads("", "10.244.1.1:1"));
        assert!(reads("monitoring", "[::ffff:10.244.1.1]:1"), "in whichever form");
        assert!(reads("10.0.0.2", "10.0.0.2:1") && reads("10.0.0.0/24", "[::ffff:10.0.0.2]:1"));
        assert!(!reads("10.0.0.2", "10.0.0.3:1") && !reads("::/0", "10.0.0.3:1"));
        assert!(reads("0.0.0.0/0,::/0", "10.0.0.3:1") && reads("0.0.0.0/0,::/0", "[fd00::3]:1"));
    }

    #[test]
    fn what_is_written_reads_back_the_same_and_what_can_not_be_meant_is_refused() {
        let readers: Readers = " 10.0.0.7/8, monitoring,fd00::1".parse().unwrap();
        assert_eq!(readers.to_string(), "10.0.0.0/8,fd00::1/128,monitoring");
        assert_eq!(readers.to_string().parse::<Readers>().unwrap(), readers);
        for wrong in ["10.0.0.1/33", "Monitoring", "a b", "10.0.0.300", "a.b", "-a", &"a".repeat(64)] {
            assert!(wrong.parse::<Readers>().is_err(), "{wrong}");
        }
    }
}
