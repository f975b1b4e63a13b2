//! What can be read on the link between nodes. The capture is of all that passes there, so this file's test runs by itself.

use anyhow::{Result, ensure};
use mesh_e2e::{Capture, Enrolled, SOON, Scope, cluster, eventually, mesh};

const FAMILIES: [&str; 2] = ["-4", "-6"];
const SECRET: &str = "a secret that nobody between the nodes may read";

/// Sends `SECRET` from the first node to the second by both families, and returns what passed between them.
fn captured(scope: &Scope) -> Result<Vec<u8>> {
    for family in FAMILIES {
        let post = || scope.curl("client", &[family, "-d", SECRET, "http://web"]);
        eventually("the Service answers", SOON, post)?;
    }
    let [_, second] = cluster::nodes()?;
    let capture = Capture::start(&second)?;
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
    let packets = captured(&Scope::across_nodes("plaintext", Enrolled::No)?)?;
    ensure!(holds(&packets, SECRET) && holds(&packets, "POST / HTTP"), "the capture misses what was sent");

    let scope = Scope::across_nodes("mtls", Enrolled::Yes)?;
    scope.apply(&mesh::strict())?;
    let packets = captured(&scope)?;
    ensure!(packets.len() > 5000, "{} bytes are too few for ten requests", packets.len());
    for text in [SECRET, "POST / HTTP", "Content-Length"] {
        ensure!(!holds(&packets, text), "`{text}` was readable between the nodes");
    }
    Ok(())
}
