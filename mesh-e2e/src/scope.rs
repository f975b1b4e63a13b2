//! A namespace of a test's own.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{cluster, kubectl, workload};

/// Whether a namespace's pods are in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// From the first pod on.
    Yes,
    /// Until the test labels it.
    No,
}

const LABEL: &str = "nodemesh.io/dataplane";

/// A namespace that goes when the value does.
pub struct Scope {
    name: String,
}

impl Scope {
    /// Makes one; `subject` is a part of its name.
    pub fn new(subject: &str, enrolled: Enrolled) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{subject}-{}-{number}", std::process::id());
        kubectl::run(&["create", "namespace", &name])?;
        let scope = Self { name };
        if enrolled == Enrolled::Yes {
            scope.enrol()?;
        }
        Ok(scope)
    }

    /// One with a client on the first node and a web server on the second, which are ready.
    pub fn across_nodes(subject: &str, enrolled: Enrolled) -> Result<Self> {
        let [first, second] = cluster::nodes()?;
        let scope = Self::new(subject, enrolled)?;
        scope.apply(&workload::list(&[
            workload::server("web", 1, Some(&second)),
            workload::client("client", Some(&first)),
        ]))?;
        scope.ready()?;
        Ok(scope)
    }

    /// One with a client and a web server on the first node, which are ready.
    pub fn on_one_node(subject: &str, enrolled: Enrolled) -> Result<Self> {
        let [first, _] = cluster::nodes()?;
        let scope = Self::new(subject, enrolled)?;
        scope.apply(&workload::list(&[
            workload::server("web", 1, Some(&first)),
            workload::client("client", Some(&first)),
        ]))?;
        scope.ready()?;
        Ok(scope)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes its pods into the mesh.
    pub fn enrol(&self) -> Result<()> {
        kubectl::run(&["label", "namespace", &self.name, &format!("{LABEL}=enabled")]).map(drop)
    }

    /// Lets them go.
    pub fn unenrol(&self) -> Result<()> {
        kubectl::run(&["label", "namespace", &self.name, &format!("{LABEL}-")]).map(drop)
    }

    /// Runs kubectl in it.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl::output(Command::new("kubectl").args(["--namespace", &self.name]).args(arguments))
    }

    /// Asks for objects of it.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        kubectl::get(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Its objects of one kind.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(arguments)?;
        list["items"].as_array().cloned().context("a list has items")
    }

    /// Applies manifests to it.
    pub fn apply(&self, manifests: &impl ToString) -> Result<()> {
        kubectl::apply(&self.name, &manifests.to_string())
    }

    /// Waits until every Deployment is rolled out and every Pod ready.
    pub fn ready(&self) -> Result<()> {
        for deployment in self.list(&["deployments"])? {
            let name = deployment["metadata"]["name"].as_str().context("objects have names")?;
            self.kubectl(&["rollout", "status", "--timeout=180s", &format!("deployment/{name}")])?;
        }
        self.kubectl(&["wait", "pod", "--all", "--for=condition=Ready", "--timeout=180s"]).map(drop)
    }

    /// Runs a program in a pod.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// What curl in a pod gets from `url`; an error after 3 seconds.
    pub fn fetch(&self, pod: &str, url: &str) -> Result<String> {
        self.exec(pod, &["curl", "-sS", "-f", "-m", "3", url])
    }

    /// Runs `curl` in a pod with arguments of one's own.
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> Result<String> {
        self.exec(pod, &[&["curl", "-sS", "-f", "-m", "3"], arguments].concat())
    }

    /// The addresses of a pod or a Service, IPv4 first.
    pub fn addresses(&self, object: &str) -> Result<Vec<String>> {
        let object = self.get(&[object])?;
        let listed =
            object["status"]["podIPs"].as_array().map(|all| all.iter().map(|ip| &ip["ip"]).collect());
        let listed =
            listed.or_else(|| Some(object["spec"]["clusterIPs"].as_array()?.iter().collect::<Vec<_>>()));
        let mut addresses: Vec<String> = listed
            .context("it has no address")?
            .into_iter()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect();
        addresses.sort_by_key(|address| address.contains(':'));
        Ok(addresses)
    }

    /// An error if a container of a pod in it was restarted.
    pub fn ensure_no_restarts(&self) -> Result<()> {
        for pod in self.list(&["pods"])? {
            let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            let restarts: u64 = containers.iter().filter_map(|it| it["restartCount"].as_u64()).sum();
            ensure!(restarts == 0, "{} was restarted {restarts} times", pod["metadata"]["name"]);
        }
        Ok(())
    }

    /// `uid` and start of every pod's container: changes with every restart.
    pub fn incarnations(&self) -> Result<Vec<String>> {
        let pods = self.list(&["pods"])?;
        Ok(pods
            .iter()
            .map(|pod| {
                format!("{} {}", pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["containerID"])
            })
            .collect())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let deleted = kubectl::run(&["delete", "namespace", "--wait=false", &self.name]);
        if let Err(error) = deleted {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}
