//! Roots: made once, kept, given, and replaced without a refused certificate.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking too

mod common;

use std::io::pipe;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use common::{Agent, Mesh, WEB, eventually};
use mesh_control::ca::rotation::RootStore;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

fn roots_in(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

/// Whether an agent with that certificate is let in, trusting what it was given with it.
async fn accepted(mesh: &Mesh, signed: &common::Signed) -> bool {
    let endpoint = mesh.endpoint().tls_config(Mesh::tls(&signed.roots, Some(signed))).unwrap();
    match endpoint.connect().await {
        Ok(channel) => Agent::open(channel, "node1").await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_restart_keeps_the_root() {
    let mut mesh = Mesh::start().await;
    let before = mesh.bundle();
    let signed = mesh.sign("node1", None, 3600).await;
    mesh.stop().await;
    mesh.begin().await;
    assert_eq!(mesh.bundle(), before);
    assert!(accepted(&mesh, &signed).await);
}

#[tokio::test]
async fn keys_are_for_the_owner_only() {
    let mesh = Mesh::start().await;
    for entry in std::fs::read_dir(mesh.path("state/ca")).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_rotation_refuses_nobody_until_the_old_root_is_dropped() {
    let mesh = Mesh::start().await;
    let old = mesh.sign("node1", None, 3600).await;

    assert_eq!(mesh.admin("POST /rotate-root?step=sign").await.0, 409);
    assert_eq!(mesh.admin("POST /rotate-root?step=add").await.0, 200);
    let both = mesh.sign("node1", None, 3600).await;
    assert_eq!((roots_in(&both.roots), roots_in(&mesh.bundle())), (2, 2));

    assert_eq!(mesh.admin("POST /rotate-root?step=sign").await.0, 409, "certificates live for 24 h");
    assert_eq!(mesh.admin("POST /rotate-root?step=sign&force=true").await.0, 200);
    eventually("the server's own certificate is new", async || !accepted(&mesh, &old).await).await;
    let new = mesh.sign("node1", None, 3600).await;
    // `old` trusts the old root only, as an agent that skipped the wait would: it is let in with fresh roots.
    let renewed = common::Signed { roots: both.roots.clone(), ..old };
    for signed in [&renewed, &both, &new] {
        assert!(accepted(&mesh, signed).await);
    }

    assert_eq!(mesh.admin("POST /rotate-root?step=drop&force=true").await.0, 200);
    assert_eq!(roots_in(&mesh.bundle()), 1);
    eventually("the old root is not trusted", async || !accepted(&mesh, &renewed).await).await;
    assert!(accepted(&mesh, &new).await);
}

#[tokio::test]
async fn the_running_server_follows_the_command_line() {
    let mesh = Mesh::start().await;
    let store = RootStore::at(&mesh.path("state"));
    store.rotate(None, false, "cluster.local", std::time::SystemTime::now()).unwrap();
    eventually("both roots are handed out", async || {
        roots_in(&mesh.sign("node1", Some(WEB), 60).await.roots) == 2
    })
    .await;
}

#[tokio::test]
async fn a_given_intermediate_signs_and_its_root_is_trusted() {
    let home = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let (root_params, root_key) = authority("company root");
    let root = root_params.self_signed(&root_key).unwrap();
    let (params, key) = authority("mesh intermediate");
    let intermediate = params.signed_by(&key, &rcgen::Issuer::new(root_params, root_key)).unwrap();
    let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("cert"), intermediate.pem()).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    std::fs::write(path("chain"), root.pem()).unwrap();

    let (cert, key, chain) = (path("cert"), path("key"), path("chain"));
    let mesh = Mesh::start_with(&["--ca-cert", &cert, "--ca-key", &key, "--ca-chain", &chain]).await;
    let signed = mesh.sign("node1", None, 3600).await;
    assert_eq!((roots_in(&signed.chain), roots_in(&signed.roots)), (2, 1));
    assert!(accepted(&mesh, &signed).await);
    let (status, text) = mesh.admin("POST /rotate-root").await;
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("--ca-cert"));
}

#[test]
fn a_rotation_whose_reader_has_gone_ends_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let store = RootStore::at(directory.path());
    store.prepare("cluster.local", Duration::from_hours(1)).unwrap();
    for form in [&["--json"][..], &["--force"]] {
        let (read, write) = pipe().unwrap();
        drop(read);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        command.args(["rotate-root", "--state-dir"]).arg(directory.path()).args(form).stdout(write);
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{form:?}: {output:?}");
    }
}
