//! A pod's status: what its parts report, turned into the shape that Kubernetes gives it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_api::{
    manifest::{Kind, ObjectKey},
    resource::{Pod, pod::Container},
};
use serde_json::{Value, json};

use crate::cluster::{Store, key, now};

/// Where the parts of a pod report to. Every change is written to the store.
#[derive(Debug)]
pub struct Board {
    store: Arc<Store>,
    key: ObjectKey,
    uid: String,
    state: Mutex<State>,
}

impl Board {
    /// For a pod of which nothing runs yet.
    pub fn new(store: Arc<Store>, pod: &Pod) -> Self {
        let key = key(Kind::Pod, &pod.metadata.namespace, &pod.metadata.name);
        let containers = |all: &[Container]| all.iter().map(|c| ContainerState::new(&c.name)).collect();
        let state = State {
            start_time: now(),
            initialized: pod.spec.init_containers.is_empty(),
            mesh: None,
            init: containers(&pod.spec.init_containers),
            containers: containers(&pod.spec.containers),
            conditions: BTreeMap::new(),
        };
        Self { store, key, uid: pod.metadata.uid.clone(), state: Mutex::new(state) }
    }

    /// Changes the state and writes it out.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        // No change panics half way.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let written = self.store.edit(&self.key, |raw| {
            if raw["metadata"]["uid"] == self.uid.as_str() {
                state.write(&mut raw["status"]);
            }
        });
        if let Err(error) = written {
            tracing::error!(pod = %self.key, %error, "the pod's status was not written");
        }
    }
}

/// What is known of a pod.
#[derive(Debug)]
pub struct State {
    start_time: String,
    initialized: bool,
    mesh: Option<String>,
    init: Vec<ContainerState>,
    containers: Vec<ContainerState>,
    /// Status and time of the last change, by condition.
    conditions: BTreeMap<&'static str, (bool, String)>,
}

impl State {
    /// A container's part. The names come from the same manifest, so it is always there.
    pub fn container(&mut self, name: &str) -> &mut ContainerState {
        let found = self.containers.iter_mut().chain(&mut self.init).find(|container| container.name == name);
        found.unwrap_or_else(|| unreachable!("the pod has no container {name}"))
    }

    /// All init containers have succeeded.
    pub fn initialized(&mut self) {
        self.initialized = true;
    }

    /// The pod started before the mesh had dealt with it.
    pub fn not_settled(&mut self, message: String) {
        self.mesh = Some(message);
    }

    /// Nothing can start for now.
    pub fn wait_all(&mut self, reason: &str, message: &str) {
        for container in self.containers.iter_mut().chain(&mut self.init) {
            container.phase = Phase::Waiting { reason: reason.to_owned(), message: message.to_owned() };
        }
    }

    fn write(&mut self, status: &mut Value) {
        let unready = self.unready();
        let ready = unready.is_none();
        let reason =
            |message: &Option<String>| message.clone().map(|message| ("ContainersNotReady", message));
        let mut conditions = vec![
            self.condition("PodScheduled", true, None),
            self.condition("Initialized", self.initialized, None),
            self.condition("ContainersReady", ready, reason(&unready)),
            self.condition("Ready", ready, reason(&unready)),
        ];
        if let Some(message) = self.mesh.clone() {
            conditions.push(self.condition("nodemesh.io/Settled", false, Some(("Timeout", message))));
        }
        status["phase"] = self.phase().into();
        status["startTime"] = self.start_time.as_str().into();
        status["conditions"] = conditions.into();
        status["containerStatuses"] = self.containers.iter().map(ContainerState::to_json).collect();
        if !self.init.is_empty() {
            status["initContainerStatuses"] = self.init.iter().map(ContainerState::to_json).collect();
        }
    }

    fn condition(&mut self, kind: &'static str, holds: bool, why: Option<(&str, String)>) -> Value {
        let entry = self.conditions.entry(kind).or_insert_with(|| (holds, now()));
        if entry.0 != holds {
            *entry = (holds, now());
        }
        let status = if holds { "True" } else { "False" };
        let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": entry.1});
        if let Some((reason, message)) = why {
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        condition
    }

    /// Why the pod is not ready, if it is not.
    fn unready(&self) -> Option<String> {
        let why = |container: &ContainerState| {
            Some(format!("{}: {}", container.name, container.ready.as_ref().err()?))
        };
        let all: Vec<String> = self.containers.iter().filter_map(why).collect();
        if all.is_empty() { None } else { Some(all.join("; ")) }
    }

    fn phase(&self) -> &'static str {
        let ends = |container: &ContainerState| match &container.phase {
            Phase::Ended(ended) => Some(ended.is_success()),
            _ => None,
        };
        if self.init.iter().any(|container| ends(container) == Some(false)) {
            return "Failed";
        }
        let ended: Option<Vec<bool>> = self.containers.iter().map(ends).collect();
        match ended {
            Some(all) if all.iter().all(|success| *success) => "Succeeded",
            Some(_) => "Failed",
            None if self.containers.iter().any(|container| container.ever_ran) => "Running",
            None => "Pending",
        }
    }
}

/// What is known of a container.
#[derive(Debug)]
pub struct ContainerState {
    name: String,
    phase: Phase,
    last: Option<Ended>,
    restarts: u32,
    ever_ran: bool,
    has_started: bool,
    ready: Result<(), String>,
}

#[derive(Debug)]
enum Phase {
    Waiting { reason: String, message: String },
    Running { since: String },
    Ended(Ended),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit status; 128 and the signal's number if one ended it.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// What there is to say about it.
    pub message: Option<String>,
    /// When it started.
    pub started: String,
    /// When it ended.
    pub finished: String,
}

impl Ended {
    /// A program that could not be started.
    pub fn not_started(at: String, message: String) -> Self {
        // A container runtime's status for it.
        Self { code: 128, signal: None, message: Some(message), started: at.clone(), finished: at }
    }

    /// Whether the program says that it did what it was for.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }

    fn describe(&self) -> String {
        match (&self.message, self.signal) {
            (Some(message), _) => message.clone(),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => format!("ended with exit status {}, see its log", self.code),
        }
    }

    fn to_json(&self) -> Value {
        let reason = if self.is_success() { "Completed" } else { "Error" };
        let mut json = json!({
            "exitCode": self.code, "reason": reason, "startedAt": self.started, "finishedAt": self.finished,
        });
        if let Some(signal) = self.signal {
            json["signal"] = signal.into();
        }
        if let Some(message) = &self.message {
            json["message"] = message.as_str().into();
        }
        json
    }
}

impl ContainerState {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            phase: Phase::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() },
            last: None,
            restarts: 0,
            ever_ran: false,
            has_started: false,
            ready: Err("not started".to_owned()),
        }
    }

    /// Its program runs.
    pub fn running(&mut self, since: String) {
        self.phase = Phase::Running { since };
        self.ever_ran = true;
        self.ready = Err("not probed yet".to_owned());
    }

    /// Its startup probe has succeeded; without a readiness probe that is all there is to being ready.
    pub fn started(&mut self, ready: bool) {
        self.has_started = true;
        if ready {
            self.ready = Ok(());
        }
    }

    /// What its readiness probe says.
    pub fn set_ready(&mut self, ready: Result<(), String>) {
        self.ready = ready;
    }

    /// Its program has ended and will be started again.
    pub fn restarting(&mut self, ended: Ended, wait: String) {
        self.down(format!("{}; waiting to be started again", ended.describe()));
        self.phase = Phase::Waiting { reason: "CrashLoopBackOff".to_owned(), message: wait };
        self.restarts += 1;
        self.last = Some(ended);
    }

    /// Its program has ended for good.
    pub fn ended(&mut self, ended: Ended) {
        self.down(ended.describe());
        self.phase = Phase::Ended(ended);
    }

    fn down(&mut self, why: String) {
        self.has_started = false;
        self.ready = Err(why);
    }

    fn to_json(&self) -> Value {
        let state = match &self.phase {
            Phase::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
            Phase::Running { since } => json!({"running": {"startedAt": since}}),
            Phase::Ended(ended) => json!({"terminated": ended.to_json()}),
        };
        let last =
            self.last.as_ref().map_or_else(|| json!({}), |ended| json!({"terminated": ended.to_json()}));
        json!({
            "name": self.name, "ready": self.ready.is_ok(), "started": self.has_started,
            "restartCount": self.restarts, "state": state, "lastState": last,
        })
    }
}
