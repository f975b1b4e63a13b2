//! What the CNI plugin and its installation read: the network list of another CNI plugin, a configuration,
//! what the agent keeps on disk, the records between the two.

use mesh_cni::agent::{Answer, RECORD, asked, question};
use mesh_cni::call::{Call, Places};
use mesh_cni::conflist::{chain, unchain};
use mesh_cni::plugin;
use mesh_cni::state::State;
use serde_json::Value;

const ENTRY: &str = r#"{"type": "nodemesh-cni", "socket": "/s", "state": "/t"}"#;

/// Bytes, as each of these.
pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        check_list(text);
        check_configuration(text);
    }
    if let Ok(state) = serde_json::from_slice::<State>(data) {
        assert_eq!(serde_json::from_slice::<State>(&state.to_bytes()).ok(), Some(state));
    }
    check_record(data);
}

/// What is put in is all that is changed.
fn check_list(text: &str) {
    let Ok(changed) = chain(text, ENTRY) else { return };
    let with = changed.unwrap_or_else(|| text.to_owned());
    let parsed: Value = serde_json::from_str(&with).expect("it is still JSON");
    let entry: Value = serde_json::from_str(ENTRY).expect("it is JSON");
    let plugins = parsed["plugins"].as_array().expect("it has plugins");
    assert!(plugins.contains(&entry), "{with}");
    assert_eq!(chain(&with, ENTRY), Ok(None), "once is enough: {with}");
    let without = unchain(&with).expect("it is there");
    assert_eq!(unchain(&without), None, "{without}");
    assert_eq!(without, unchain(text).unwrap_or_else(|| text.to_owned()), "nothing else is changed");
}

/// What is not to wait is passed on, whatever the configuration says beside that.
fn check_configuration(text: &str) {
    let _total = Places::of(text);
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let call = Call { command: command.to_owned(), ..Call::default() };
        assert_eq!(plugin::run(&call, text), Ok(String::new()));
    }
    let call = Call { command: "MOVE".to_owned(), ..Call::default() };
    let failure = plugin::run(&call, text).expect_err("there is no such command").to_json(text);
    assert!(serde_json::from_str::<Value>(&failure).is_ok_and(|failure| failure["code"] == 4), "{failure}");
}

fn check_record(data: &[u8]) {
    let mut record = [0; RECORD];
    let length = data.len().min(RECORD);
    record[..length].copy_from_slice(&data[..length]);
    if let Some(uid) = asked(&record) {
        assert!((1..=36).contains(&uid.len()));
        assert_eq!(asked(&question(uid)), Some(uid));
    }
    if let Some(answer) = Answer::decode(&record) {
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }
}
