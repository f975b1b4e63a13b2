//! The name server, and whether names resolve where pods will ask for them.

use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::kubectl::Kubectl;
use super::layout::{DNS, DOMAIN, Node};
use super::wait::until;
use crate::workspace::Workspace;

const TO_ANSWER: Duration = Duration::from_secs(30);
const ONE_ANSWER: Duration = Duration::from_millis(500);
/// Every cluster has this Service.
const NAME: &str = "kubernetes.default.svc";

/// Creates the name server's objects.
pub fn install(workspace: &Workspace, kubectl: &Kubectl) -> Result<()> {
    let path = workspace.root().join("deploy/cluster/coredns.yaml");
    let manifests = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    kubectl.apply(&manifests)
}

/// Waits until a name resolves on `node` by way of the name server's Service: kube-proxy works there, too.
pub fn wait_on(node: Node) -> Result<()> {
    let waiting = thread::spawn(move || -> Result<()> {
        let path = format!("/run/netns/{}", node.namespace());
        let namespace = File::open(&path).with_context(|| format!("can't open {path}"))?;
        // Of this thread only, and it ends with the question answered.
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("can't enter {path}"))?;
        until(&format!("names to resolve on {node}"), TO_ANSWER, || ask(DNS.parse()?, 53).map(Some))
    });
    waiting.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn ask(server: IpAddr, port: u16) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ONE_ANSWER))?;
    socket.send_to(&question(&format!("{NAME}.{DOMAIN}"))?, (server, port))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    answers(&answer[..length]).context("the name server knows no names yet")
}

/// Which IPv4 addresses `name` has: a DNS message as in RFC 1035, section 4.
fn question(name: &str) -> Result<Vec<u8>> {
    // An id, recursion desired, one question and no records.
    let mut message = vec![0x6e, 0x6d, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len())?);
        message.extend_from_slice(label.as_bytes());
    }
    // The end of the name, type A, class IN.
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(message)
}

/// Nothing unless the message says that there was no error and brings a record.
fn answers(message: &[u8]) -> Option<()> {
    let is_answer = message.get(2)? & 0x80 != 0;
    let error = message.get(3)? & 0x0f;
    let records = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    (is_answer && error == 0 && records > 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_a_name_by_its_labels() {
        let message = question("a.bc").unwrap();
        assert_eq!(message[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn only_a_record_is_an_answer() {
        assert!(answers(&[0x6e, 0x6d, 0x85, 0, 0, 1, 0, 1]).is_some());
        assert!(answers(&[0x6e, 0x6d, 0x85, 3, 0, 1, 0, 0]).is_none(), "no such name");
        assert!(answers(&[0x6e, 0x6d, 0x85, 0, 0, 1, 0, 0]).is_none(), "no record");
        assert!(answers(&question("a").unwrap()).is_none(), "our own question");
        assert!(answers(&[]).is_none());
    }
}
