//! The real program, as a runtime starts it, against an agent that is none.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mesh_cni::agent::{Answer, RECORD, asked};
use mesh_cni::{SOCKET, STATE};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recvmsg, send, socket_with,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const UID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
const NO_NETNS: &str = "/nonexistent/netns";

/// A node with a namespace `shop` in the mesh, and in it one pod that is not.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        node.write_state(r#"{"namespaces": ["shop"], "pods": {"uid-out": false}}"#);
        File::create(node.netns()).unwrap();
        node
    }

    fn write_state(&self, text: &str) {
        let fresh = self.path("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path(STATE)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Stands for the network namespace: a descriptor of it is all that counts here.
    fn netns(&self) -> PathBuf {
        self.path("netns")
    }

    fn configuration(&self) -> Value {
        json!({
            "cniVersion": "0.4.0", "name": "net", "type": "nodemesh-cni",
            "socket": self.path(SOCKET), "state": self.path(STATE),
            "prevResult": {
                "cniVersion": "0.4.0", "unheardOf": [1.0],
                "ips": [{"version": "4", "address": "10.0.0.2/24"}], "dns": {},
            },
        })
    }

    fn start(&self, command: &str, namespace: &str, uid: &str, netns: &str) -> Child {
        Self::start_with(command, namespace, uid, netns, &self.configuration().to_string())
    }

    fn start_with(command: &str, namespace: &str, uid: &str, netns: &str, configuration: &str) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-cni"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_NETNS", netns)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID={uid}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(configuration.as_bytes()).unwrap();
        child
    }

    fn add(&self, namespace: &str, uid: &str, netns: &str) -> Output {
        self.start("ADD", namespace, uid, netns).wait_with_output().unwrap()
    }

    /// An agent's socket. It is there, and answers nothing by itself.
    fn listen(&self) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(self.path(SOCKET)).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        socket
    }
}

/// Takes one question, and the inode of the descriptor beside it.
fn question(listener: &OwnedFd) -> (OwnedFd, String, u64) {
    let channel = accept_with(listener, SocketFlags::CLOEXEC).unwrap();
    let mut record = [0; RECORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&channel, &mut [IoSliceMut::new(&mut record)], &mut beside, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, RECORD);
    let descriptor = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let inode = File::from(descriptor.unwrap()).metadata().unwrap().ino();
    (channel, asked(&record).unwrap().to_owned(), inode)
}

fn answer(channel: &OwnedFd, answer: &Answer) {
    send(channel, &answer.encode(), SendFlags::empty()).unwrap();
}

fn passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let expected = Node::new().configuration()["prevResult"].to_string();
    assert_eq!(text, expected, "the result of the plugins before is passed on as it came");
}

fn failed(output: &Output, code: u32) -> Value {
    assert!(!output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["code"], code, "{told}");
    assert_eq!(told["cniVersion"], "0.4.0");
    assert!(told["msg"].is_string() && told["details"].is_string());
    told
}

fn nobody_asked(listener: &OwnedFd) {
    rustix::io::ioctl_fionbio(listener, true).unwrap();
    assert!(accept_with(listener, SocketFlags::CLOEXEC).is_err(), "the agent was asked");
}

#[test]
fn a_pod_outside_of_the_mesh_starts_and_nobody_is_asked() {
    let node = Node::new();
    let listener = node.listen();
    // Its namespace can't be opened, which nobody notices since nobody tries.
    for (namespace, uid) in [("bank", UID), ("shop", "uid-out"), ("", "")] {
        passed(&node.add(namespace, uid, NO_NETNS));
    }
    nobody_asked(&listener);
}

#[test]
fn a_pod_outside_of_the_mesh_starts_whatever_is_broken_of_ours() {
    let node = Node::new();
    let hung = node.listen();
    passed(&node.add("bank", UID, NO_NETNS));
    drop(hung);
    for state in ["", "{", "\0", r#"{"namespaces": 7}"#] {
        node.write_state(state);
        for namespace in ["bank", "shop"] {
            let output = node.add(namespace, UID, NO_NETNS);
            passed(&output);
            assert!(String::from_utf8_lossy(&output.stderr).contains(STATE), "it says why");
        }
    }
    fs::remove_file(node.path(STATE)).unwrap();
    passed(&node.add("shop", UID, NO_NETNS));
}

#[test]
fn a_pod_of_the_mesh_starts_when_the_agent_has_it() {
    let node = Node::new();
    let listener = node.listen();
    let mut child = node.start("ADD", "shop", UID, node.netns().to_str().unwrap());
    let (channel, uid, inode) = question(&listener);
    assert_eq!(uid, UID);
    assert_eq!(inode, fs::metadata(node.netns()).unwrap().ino(), "the agent has the pod's own namespace");
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    answer(&channel, &Answer::Enrolled);
    passed(&child.wait_with_output().unwrap());
}

#[test]
fn an_agent_that_goes_away_is_waited_for() {
    let node = Node::new();
    let listener = node.listen();
    let child = node.start("ADD", "shop", UID, node.netns().to_str().unwrap());
    drop(question(&listener));
    let (channel, _, _) = question(&listener);
    answer(&channel, &Answer::Refused("no room".into()));
    let (channel, _, _) = question(&listener);
    drop(listener);
    fs::remove_file(node.path(SOCKET)).unwrap();
    drop(channel);
    let next = node.listen();
    let (channel, _, _) = question(&next);
    answer(&channel, &Answer::Enrolled);
    passed(&child.wait_with_output().unwrap());
}

#[test]
fn a_pod_of_the_mesh_does_not_start_without_an_agent() {
    let node = Node::new();
    let start = Instant::now();
    let told = failed(&node.add("shop", UID, node.netns().to_str().unwrap()), 11);
    assert!(told["details"].as_str().unwrap().contains("mesh-agent cleanup"), "{told}");
    let bound = Duration::from_secs(4)..Duration::from_secs(15);
    assert!(bound.contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[test]
fn an_agent_that_hangs_or_refuses_is_given_up() {
    let node = Node::new();
    let listener = node.listen();
    let hung = failed(&node.add("shop", UID, node.netns().to_str().unwrap()), 11);
    assert!(hung["details"].as_str().unwrap().contains("in time"), "{hung}");
    drop(question(&listener));
    let child = node.start("ADD", "shop", UID, node.netns().to_str().unwrap());
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let (channel, _, _) = question(&listener);
        answer(&channel, &Answer::Refused("4096 pods are in the mesh already".into()));
    }
    drop(listener);
    fs::remove_file(node.path(SOCKET)).unwrap();
    let told = failed(&child.wait_with_output().unwrap(), 11);
    assert!(told["details"].as_str().unwrap().starts_with("shop/web: "), "{told}");
}

#[test]
fn a_pod_that_turns_out_not_to_be_of_the_mesh_is_let_go() {
    let node = Node::new();
    let listener = node.listen();
    let child = node.start("ADD", "shop", UID, node.netns().to_str().unwrap());
    let _hangs = question(&listener);
    node.write_state(&format!(r#"{{"namespaces": ["shop"], "pods": {{"{UID}": false}}}}"#));
    passed(&child.wait_with_output().unwrap());
}

#[test]
fn a_runtime_that_does_not_say_whose_namespace_it_is_is_told() {
    let node = Node::new();
    failed(&node.add("shop", "", node.netns().to_str().unwrap()), 4);
    failed(&node.add("shop", UID, NO_NETNS), 5);
}

#[test]
fn everything_else_succeeds_at_once_and_looks_at_nothing() {
    let node = Node::new();
    let listener = node.listen();
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        for configuration in [node.configuration().to_string(), "{".into(), String::new()] {
            let child = Node::start_with(command, "shop", UID, NO_NETNS, &configuration);
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success() && output.stdout.is_empty(), "{command}: {output:?}");
        }
    }
    let versions = node.start("VERSION", "", "", "").wait_with_output().unwrap();
    let versions: Value = serde_json::from_slice(&versions.stdout).unwrap();
    let supported = versions["supportedVersions"].as_array().unwrap();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        assert!(supported.contains(&version.into()), "{versions}");
    }
    nobody_asked(&listener);
}

#[test]
fn what_is_no_call_is_told_as_the_specification_has_it() {
    let node = Node::new();
    let output = node.start("MOVE", "shop", UID, NO_NETNS).wait_with_output().unwrap();
    failed(&output, 4);
    let output = Node::start_with("ADD", "shop", UID, NO_NETNS, "{").wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["code"], &told["cniVersion"]), (&json!(6), &json!("1.1.0")));
    let first = json!({"cniVersion": "1.0.0", "state": node.path(STATE), "socket": "/s"}).to_string();
    let output = Node::start_with("ADD", "bank", UID, NO_NETNS, &first).wait_with_output().unwrap();
    assert_eq!(output.stdout, br#"{"cniVersion":"1.0.0"}"#, "where it is the only plugin");
}
