//! Packets on a link of a node.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster;
use crate::wait::{SOON, eventually};

/// tcpdump on an interface of a node, until the value goes.
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts on the link of `node` to the other nodes; returns when packets are recorded.
    pub fn start(node: &str) -> Result<Self> {
        Self::start_on(node, "eth0")
    }

    /// Starts on an interface of `node`, such as the bridge of its pods; returns when packets are recorded.
    pub fn start_on(node: &str, interface: &str) -> Result<Self> {
        let name = format!("nodemesh-e2e-{}-{node}-{interface}.pcap", std::process::id());
        let file = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&file);
        let tcpdump = cluster::on_network_of(node)?
            .args(["tcpdump", "-i", interface, "--immediate-mode", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(&file)
            .arg("tcp")
            .spawn()
            .context("can't start tcpdump")?;
        let capture = Self { tcpdump, file };
        eventually("tcpdump writes", SOON, || {
            ensure!(fs::metadata(&capture.file)?.len() > 0, "the file is empty");
            Ok(())
        })?;
        Ok(capture)
    }

    /// Stops; all that was captured.
    pub fn stop(mut self) -> Result<Vec<u8>> {
        // What is on its way through the kernel's ring.
        thread::sleep(Duration::from_millis(300));
        self.tcpdump.kill()?;
        self.tcpdump.wait()?;
        fs::read(&self.file).context("the capture can't be read")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended, and its file may be gone.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = fs::remove_file(&self.file);
    }
}
