//! What can be read on the link between nodes, and on the bridge of a node's pods. A capture is of all that
//! passes there, so this file's tests run by themselves.

use anyhow::{Result, ensure};
use mesh_e2e::{Capture, Enrolled, SOON, Scope, cluster, eventually, mesh};

const FAMILIES: [&str; 2] = ["-4", "-6"];
const SECRET: &str = "a secret that nobody between the nodes may read";

/// The bridge of the local cluster's pods, on each node.
const BRIDGE: &str = "cni0";

/// Sends `SECRET` from the client to the server by both families, and returns what passed on an interface of
/// a node meanwhile.
fn captured(scope: &Scope, node: &str, interface: &str) -> Result<Vec<u8>> {
    for family in FAMILIES {
        let post = || scope.curl("client", &[family, "-d", SECRET, "http://web"]);
        eventually("the Service answers", SOON, post)?;
    }
    let capture = Capture::start_on(node, interface)?;
    for family in FAMILIES {
        for _ in 0..5 {
            let answer = scope.curl("client", &[family, "-d", SECRET, "http://web"])?;
            ensure!(answer.contains(SECRET), "{answer}");
        }
    }
    capture.stop()
}

fn holds(packets: &[u8], text: &str) -> bool {
    packets.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The first half shows that the capture would find plaintext.
#[test]
fn nothing_between_nodes_is_readable() -> Result<()> {
    let [_, second] = cluster::nodes()?;
    let packets = captured(&Scope::across_nodes("plaintext", Enrolled::No)?, &second, "eth0")?;
    ensure!(holds(&packets, SECRET) && holds(&packets, "POST / HTTP"), "the capture misses what was sent");

    let scope = Scope::across_nodes("mtls", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    let packets = captured(&scope, &second, "eth0")?;
    ensure!(packets.len() > 5000, "{} bytes are too few for ten requests", packets.len());
    unreadable(&packets, &[SECRET, "POST / HTTP", "Content-Length"])
}

/// Pods of one node talk from veth to veth: their bridge, where a pod with `NET_RAW` could listen, carries
/// handshakes alone. The first half shows that the capture would find the rest.
#[test]
fn nothing_between_pods_of_a_node_is_readable_on_their_bridge() -> Result<()> {
    let [first, _] = cluster::nodes()?;
    let packets = captured(&Scope::on_one_node("bridge-plain", Enrolled::No)?, &first, BRIDGE)?;
    ensure!(holds(&packets, SECRET) && holds(&packets, "POST / HTTP"), "the capture misses what was sent");

    let scope = Scope::on_one_node("bridge", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    let packets = captured(&scope, &first, BRIDGE)?;
    // Answers to the kubelet's probes pass there, too.
    unreadable(&packets, &[SECRET, "POST / HTTP"])
}

fn unreadable(packets: &[u8], texts: &[&str]) -> Result<()> {
    for text in texts {
        ensure!(!holds(packets, text), "`{text}` was readable");
    }
    Ok(())
}
