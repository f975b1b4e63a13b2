//! What nobody should send: refused, logged, and nothing that policy would not have given.

use std::path::Path;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::world::{PORT, World, eventually, mutual_tls};

const GARBAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/garbage.py");

pub fn send(world: &World, from: (&str, &str), arguments: &[&str]) -> String {
    let mut program = vec!["python3", GARBAGE];
    program.extend(arguments);
    world.exec(from.0, from.1, &program).text
}

#[test]
fn garbage_at_the_mesh_ports_of_a_pod_is_refused_and_nothing_leaks() {
    let world = World::new("garbage");
    world.apply(&mutual_tls("app", "STRICT"));
    let outside = ("out", "client");
    for target in world.addresses("app", "server") {
        eventually("STRICT", || !world.client("out", "client", &["who", &target, PORT]).ok);
        for kind in ["random", "silent", "handshake"] {
            assert_eq!(send(&world, outside, &[&target, "15008", kind]), "closed", "{kind} at 15008");
        }
        for port in ["15006", "15001", "9"] {
            assert_eq!(send(&world, outside, &[&target, port, "plaintext"]), "closed", "plaintext at {port}");
        }
    }
    world.logged("node2", "HBONE connection refused");
    world.logged("node2", "is the mesh's own");
    eventually("nothing stays open", || world.admin("node2", "/status")["openConnections"] == 0);
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok, "and the mesh goes on");
}

#[test]
fn programs_that_connect_to_the_mesh_ports_get_nothing() {
    let world = World::new("ownports");
    let server = world.addresses("app", "server")[0].clone();
    for port in ["15001", "15006", "15008"] {
        for target in ["127.0.0.1", "::1", &world.addresses("app", "client")[0], &server] {
            let answer = send(&world, ("app", "client"), &[target, port, "plaintext"]);
            assert_eq!(answer, "closed", "{target}:{port}");
        }
    }
    for port in ["15001", "15006", "15008"] {
        world.logged("node1", &format!("mesh's port {port} itself"));
    }
}

#[test]
fn strangers_certificates_are_refused() {
    let world = World::new("strangers");
    let target = world.addresses("app", "server")[0].clone();
    let directory = std::env::temp_dir().join(format!("nodemesh-strangers-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (case, uri) in [
        ("unknown-root", "spiffe://cluster.local/ns/app/sa/client"),
        ("other-domain", "spiffe://example.org/ns/app/sa/client"),
    ] {
        let (certificate, key) = self_made(&directory, case, uri);
        let answer = send(
            &world,
            ("out", "client"),
            &[&target, "15008", "connect", &certificate, &key, &format!("{target}:{PORT}")],
        );
        assert_eq!(answer, "closed", "{case}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
    world.logged("node2", "UnknownIssuer");
}

/// A certificate under a root of our own.
fn self_made(directory: &Path, name: &str, uri: &str) -> (String, String) {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let leaf = leaf.signed_by(&key, &root).unwrap();
    write(directory, name, &leaf.pem(), &key.serialize_pem())
}

fn write(directory: &Path, name: &str, certificate: &str, key: &str) -> (String, String) {
    let paths = ["crt", "key"].map(|kind| directory.join(format!("{name}.{kind}")));
    std::fs::write(&paths[0], certificate).unwrap();
    std::fs::write(&paths[1], key).unwrap();
    let [certificate, key] = paths.map(|path| path.to_string_lossy().into_owned());
    (certificate, key)
}

#[test]
fn bad_requests_from_a_member_of_the_mesh_are_answered_and_refused() {
    let world = World::new("badconnect");
    let [server, _] = world.addresses("app", "server");
    let other = world.addresses("app", "neighbour")[0].clone();
    let directory = std::env::temp_dir().join(format!("nodemesh-bad-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (certificate, key) = member(&world, &directory, "spiffe://cluster.local/ns/app/sa/client", "1h");
    let ask = |kind: &str, authority: &str| {
        send(&world, ("out", "client"), &[&server, "15008", kind, &certificate, &key, authority])
    };
    assert_eq!(ask("connect", &format!("{server}:{PORT}")), "200", "the certificate is good");
    assert_eq!(ask("get", &format!("{server}:{PORT}")), "refused", "not CONNECT, and without a path");
    assert_eq!(ask("connect", "not an address"), "refused", "no authority at all");
    assert_eq!(ask("connect", "server.app:7000"), "400", "a name, which nodes do not resolve for others");
    assert_eq!(ask("connect", &format!("{other}:{PORT}")), "400", "another pod's address");
    assert_eq!(ask("connect", &format!("127.0.0.1:{PORT}")), "400", "loopback");
    assert_eq!(ask("connect", &format!("{server}:15008")), "400", "the mesh's own port");
    assert_eq!(ask("connect", &format!("{server}:15001")), "400", "the mesh's own port");
    let (certificate, key) = member(&world, &directory, "spiffe://example.org/ns/app/sa/client", "1h");
    let foreign = send(
        &world,
        ("out", "client"),
        &[&server, "15008", "connect", &certificate, &key, &format!("{server}:{PORT}")],
    );
    assert_eq!(foreign, "closed", "of our root, but another trust domain");
    let (certificate, key) = member(&world, &directory, "spiffe://cluster.local/ns/app/sa/client", "expired");
    let expired = send(
        &world,
        ("out", "client"),
        &[&server, "15008", "connect", &certificate, &key, &format!("{server}:{PORT}")],
    );
    assert_eq!(expired, "closed", "expired");
    world.logged("node2", "not of the trust domain");
    world.logged("node2", "certificate expired");
    // Last, since it is a flood: the address is refused for a second.
    let authority = format!("{server}:{PORT}");
    assert_eq!(ask("frames", ""), "closed");
    eventually("the address is let in again", || ask("connect", &authority) == "200");
    std::fs::remove_dir_all(&directory).unwrap();
}

const DENY_ALL: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: app}\nspec:\n  selector: {matchLabels: {app: server}}\n  action: DENY\n  rules: [{}]\n";

/// The same in the mesh's own protocol: reasons 1 denied, 2 unavailable, 3 bad request, 4 busy; goodbye 1
/// violation.
#[test]
fn bad_frames_from_a_member_of_the_mesh_are_cut_off() {
    let world = World::new("badframes");
    let [server, server6] = world.addresses("app", "server");
    let other = world.addresses("app", "neighbour")[0].clone();
    let directory = std::env::temp_dir().join(format!("nodemesh-frames-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (certificate, key) = member(&world, &directory, "spiffe://cluster.local/ns/app/sa/client", "1h");
    let say = |what: &str, authority: &str| {
        send(&world, ("out", "client"), &[&server, "15008", "mesh", &certificate, &key, authority, what])
    };
    let good = format!("{server}:{PORT}");
    assert_eq!(say("open", &good), "accept, open", "the certificate and the frames are good");
    assert_eq!(say("open", &format!("[{server6}]:{PORT}")), "accept, open", "its other address");
    assert_eq!(say("open", &format!("{other}:{PORT}")), "open, refuse 3", "another pod's address");
    assert_eq!(say("open", &format!("127.0.0.1:{PORT}")), "open, refuse 3", "loopback");
    assert_eq!(say("open", &format!("{server}:15008")), "open, refuse 3", "the mesh's own port");
    assert_eq!(say("open", &format!("{server}:9")), "open, refuse 2", "nothing listens there");
    for bad in ["random", "http2", "no-stream", "cut-short"] {
        assert_eq!(say(bad, &good), "closed, goaway 1", "{bad}");
    }
    let cut = say("no-credit", &good);
    assert!(cut.ends_with("closed, goaway 1"), "more early data than there may be: {cut}");
    let many = say("streams", &good);
    assert!(many.contains("refuse 4") && many.contains("accept"), "more streams than there may be: {many}");
    // Of one peer there is a line in a second.
    for (what, reason) in [
        ("random", "the peer broke the protocol: frame of unknown kind"),
        ("no-credit", "more data on stream 1 than it has credit for"),
    ] {
        eventually(reason, || {
            say(what, &good);
            world.agent_log("node2").contains(reason)
        });
    }
    world.apply(DENY_ALL);
    eventually("denied", || say("open", &good) == "open, refuse 1");
    eventually("nothing stays open", || world.admin("node2", "/status")["openConnections"] == 0);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Whoever answers at a pod's address has to be that pod: another account of the same mesh is not enough.
#[test]
fn a_server_with_another_accounts_certificate_gets_no_byte() {
    let world = World::new("impostor");
    world.lab.agent("node2").stop().unwrap();
    world.clean_up("node2");
    let directory = std::env::temp_dir().join(format!("nodemesh-impostor-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (account, answer) in [("other", "closed"), ("server", "trusted")] {
        let uri = format!("spiffe://cluster.local/ns/app/sa/{account}");
        let (certificate, key) = member(&world, &directory, &uri, "1h");
        let program = ["python3", GARBAGE, "::", "15008", "impostor", &certificate, &key];
        let server =
            world.lab.exec_command("app", "server", &program).stdout(Stdio::piped()).spawn().unwrap();
        eventually("the impostor listens", || {
            world.exec("app", "server", &["ss", "-Hltn", "sport = :15008"]).text.contains("15008")
        });
        let ran = world.client("app", "client", &["who", "server.app", PORT]);
        assert!(!ran.ok, "{account}: {ran:?}");
        let told = String::from_utf8(server.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(told.lines().last(), Some(answer), "{account}: {told}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
    let refused = "the endpoint is spiffe://cluster.local/ns/app/sa/other and not spiffe://cluster.local/ns/app/sa/server";
    eventually("the client's node says why", || world.agent_log("node1").contains(refused));
}

/// A certificate under the mesh's own root, made with its key, as only a thief could.
pub fn member(world: &World, directory: &Path, uri: &str, lifetime: &str) -> (String, String) {
    let authority = world.lab.layout().control().state().join("ca");
    let pem = std::fs::read_dir(authority)
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == "pem"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .unwrap();
    let root_key = KeyPair::from_pem(&pem).unwrap();
    // Key and certificate share the file.
    let certificate = &pem[pem.find("-----BEGIN CERTIFICATE").unwrap()..];
    let root = rcgen::Issuer::from_ca_cert_pem(certificate, root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = if lifetime == "expired" {
        rcgen::date_time_ymd(2021, 1, 1)
    } else {
        rcgen::date_time_ymd(2096, 1, 1)
    };
    let leaf = leaf.signed_by(&key, &root).unwrap();
    let name = format!("member-{}-{lifetime}", uri.len());
    write(directory, &name, &leaf.pem(), &key.serialize_pem())
}
