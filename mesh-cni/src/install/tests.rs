use tempfile::TempDir;

use super::*;

const LIST: &str = "{\n  \"cniVersion\": \"0.4.0\", \"name\": \"net\", \"unheardOf\": [1.0],\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";

struct Node {
    root: TempDir,
    record: Record,
}

impl Node {
    fn new(configurations: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["bin", "net.d", "state"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("program"), "\x7fELF").unwrap();
        let at = |name| root.path().join(name);
        let record = Record::new(&at("bin"), &at("net.d"), &at("state"), Path::new("/run/nodemesh"));
        let node = Self { root, record };
        configurations.iter().for_each(|(name, text)| node.write(name, text));
        node
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.record.conf_dir.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.record.conf_dir.join(name)).unwrap()
    }

    fn install(&self) {
        self.record.install(&self.state(), &self.root.path().join("program")).unwrap();
    }

    /// Everything that is there, but the program to be installed.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for directory in ["bin", "net.d", "state"] {
            for entry in fs::read_dir(self.root.path().join(directory)).unwrap() {
                let path = entry.unwrap().path();
                all.push((path.clone(), fs::read(path).unwrap()));
            }
        }
        all.sort();
        all
    }
}

#[test]
fn what_was_installed_is_removed_without_a_trace() {
    let node = Node::new(&[("10-net.conflist", LIST), ("README", "not a configuration")]);
    let before = node.files();
    node.install();
    assert!(node.record.chain().unwrap());
    assert!(!node.record.chain().unwrap(), "once is enough");
    node.install();
    assert!(node.read("10-net.conflist").contains("\"/run/nodemesh/cni.sock\""));
    let program = fs::metadata(node.record.bin_dir.join(TYPE)).unwrap();
    assert_eq!(program.mode() & 0o777, 0o755);
    assert_eq!(Record::read(&node.state()).unwrap(), node.record);
    state::replace(&node.state().join(STATE), b"{}").unwrap();
    state::replace(&node.state().join(STATE), b"{}").unwrap();
    remove(&node.state()).unwrap();
    assert_eq!(node.files(), before);
    remove(&node.state()).unwrap();
}

#[test]
fn a_list_that_was_replaced_gets_it_again() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    node.install();
    node.record.chain().unwrap();
    node.write("10-net.conflist", &LIST.replace("bridge", "ptp"));
    assert!(node.record.chain().unwrap());
    // Another one comes before it: the runtime takes that.
    node.write("05-other.conflist", LIST);
    assert!(node.record.chain().unwrap());
    assert!(node.read("05-other.conflist").contains(TYPE));
    assert_eq!(node.read("10-net.conflist"), LIST.replace("bridge", "ptp"));
    remove(&node.state()).unwrap();
    assert_eq!(node.read("05-other.conflist"), LIST);
}

#[test]
fn what_is_no_network_is_left_alone_and_passed_over() {
    let garbage = [("00-broken.conflist", "{\"plugins\": ["), ("01-empty.conf", ""), ("02-x.json", "\u{7f}")];
    let node = Node::new(&garbage);
    node.install();
    assert!(matches!(node.record.chain(), Err(Error::NoNetwork(_))));
    node.write("10-net.conflist", LIST);
    assert!(node.record.chain().unwrap());
    remove(&node.state()).unwrap();
    for (name, text) in garbage {
        assert_eq!(node.read(name), text);
    }
}

#[test]
fn a_network_of_one_plugin_is_refused_with_the_way_out() {
    let single = r#"{"cniVersion": "0.4.0", "name": "x", "type": "ovn-k8s-cni-overlay"}"#;
    let node = Node::new(&[("10-ovn.conf", single), ("20-net.conflist", LIST)]);
    node.install();
    let error = node.record.chain().unwrap_err().to_string();
    assert!(error.contains("10-ovn.conf") && error.contains("agent.cni.enabled=false"), "{error}");
    assert_eq!((node.read("10-ovn.conf"), node.read("20-net.conflist")), (single.into(), LIST.into()));
}

#[test]
fn a_link_is_not_followed() {
    let node = Node::new(&[]);
    fs::write(node.root.path().join("elsewhere"), LIST).unwrap();
    std::os::unix::fs::symlink("../elsewhere", node.record.conf_dir.join("10-net.conflist")).unwrap();
    node.install();
    assert!(matches!(node.record.chain(), Err(Error::Link(_))));
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn without_the_record_nothing_is_removed_or_chained() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    remove(&node.state()).unwrap();
    assert_eq!(Record::read(&node.state()), None);
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn other_directories_are_left_for_new_ones() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    node.install();
    node.record.chain().unwrap();
    let elsewhere = node.root.path().join("other.d");
    fs::create_dir(&elsewhere).unwrap();
    let moved = Record { conf_dir: elsewhere, ..node.record.clone() };
    moved.install(&node.state(), &node.root.path().join("program")).unwrap();
    assert_eq!(node.read("10-net.conflist"), LIST);
    assert!(moved.bin_dir.join(TYPE).exists());
}

/// Whoever replaces the list at the same moment loses nothing.
#[test]
fn what_others_write_meanwhile_is_not_lost() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    let path = node.record.conf_dir.join("10-net.conflist");
    let newer = LIST.replace("bridge", "ptp");
    let written = std::cell::Cell::new(false);
    let changed = edit(&path, |text| {
        let with = conflist::chain(text, &node.record.entry);
        if !written.replace(true) {
            node.write("10-net.conflist", &newer);
        }
        with
    });
    assert!(changed.unwrap());
    assert_eq!(conflist::unchain(&node.read("10-net.conflist")), Some(newer));
}
