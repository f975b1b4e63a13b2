//! What a node's probes are opened by: a program of its own in the node's cgroup, as a kubelet is. The lab's
//! daemon is in no node's cgroup, so an agent could not tell its probes from anything else.
//!
//! Questions go in and answers come out as lines of JSON.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use http_body_util::Empty;
use hyper::Request;
use mesh_api::resource::pod::HttpHeader;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{Node, http};
use crate::{
    enter::Place,
    host::{During, HostError},
};

/// Between the end of a prober and the start of the next.
const PAUSE: Duration = Duration::from_millis(200);

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A connection that is opened and closed.
    Connect(SocketAddr),
    /// A GET, good if the status is 200 to 399.
    Get {
        /// Where to.
        address: SocketAddr,
        /// What for.
        path: String,
        /// Names and values.
        headers: Vec<(String, String)>,
    },
}

#[derive(Serialize, Deserialize)]
struct Question {
    number: u64,
    probe: Probe,
    milliseconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    number: u64,
    failure: Option<String>,
}

type Waiting = (Probe, Duration, oneshot::Sender<Result<(), String>>);

/// Asks a node's prober.
#[derive(Clone, Debug)]
pub struct Prober {
    asks: mpsc::UnboundedSender<Waiting>,
}

/// The prober's end of it.
pub type Asked = mpsc::UnboundedReceiver<Waiting>;

impl Prober {
    /// A way to ask, and what is asked.
    pub fn new() -> (Self, Asked) {
        let (asks, asked) = mpsc::unbounded_channel();
        (Self { asks }, asked)
    }

    /// Probes once. Errors: why it failed.
    pub async fn ask(&self, probe: Probe, limit: Duration) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        // Without a prober the other end is dropped, and says so.
        let _ = self.asks.send((probe, limit, answer));
        answered.await.unwrap_or_else(|_| Err("the node's prober ended".to_owned()))
    }
}

/// A GET of a probe.
pub fn get(address: SocketAddr, path: &str, headers: &[HttpHeader]) -> Probe {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut all = vec![
        ("user-agent".to_owned(), "kube-probe/lab".to_owned()),
        ("connection".to_owned(), "close".to_owned()),
    ];
    if !headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        all.push(("host".to_owned(), address.to_string()));
    }
    all.extend(headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.value.clone())));
    Probe::Get { address, path, headers: all }
}

/// Keeps a prober running, and asks it. Runs for as long as the lab does.
pub async fn keep(node: &Node, mut asked: Asked) {
    loop {
        match start(node) {
            Ok(mut child) => {
                if let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) {
                    pass_on(&mut asked, questions, BufReader::new(answers).lines()).await;
                }
                let status = child.wait().await;
                tracing::error!(?status, "the node's prober ended");
            }
            Err(error) => tracing::error!(%error, "no prober on the node"),
        }
        sleep(PAUSE).await;
    }
}

fn start(node: &Node) -> Result<Child, HostError> {
    let place = Place { cgroup: Some(node.paths.system_cgroup()), like: None, netns: None, workdir: None };
    let mut command = tokio::process::Command::from(place.command(["/proc/self/exe", "internal-prober"]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().during(|| "start the node's prober".to_owned())
}

/// Until it ends. Who still waits then hears that it did.
async fn pass_on(asked: &mut Asked, mut questions: ChildStdin, mut answers: Lines<BufReader<ChildStdout>>) {
    let mut waiting = HashMap::new();
    let mut number = 0;
    loop {
        tokio::select! {
            Some((probe, limit, answer)) = asked.recv() => {
                number += 1;
                let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                if questions.write_all(&line(&Question { number, probe, milliseconds })).await.is_err() {
                    return;
                }
                waiting.insert(number, answer);
            }
            answer = answers.next_line() => {
                let Ok(Some(text)) = answer else { return };
                let Ok(Answer { number, failure }) = serde_json::from_str(&text) else { return };
                if let Some(waits) = waiting.remove(&number) {
                    // Who asked may have given up.
                    let _ = waits.send(failure.map_or(Ok(()), Err));
                }
            }
        }
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Maps and sequences of text and numbers always have a form.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What the prober's process does, until nobody asks any more.
pub async fn serve() -> io::Result<()> {
    let (heard, mut questions) = mpsc::unbounded_channel();
    // Reading standard input blocks.
    std::thread::spawn(move || io::stdin().lines().try_for_each(|text| heard.send(text)));
    let output = Arc::new(std::sync::Mutex::new(io::stdout()));
    while let Some(text) = questions.recv().await {
        let question: Question = serde_json::from_str(&text?)?;
        let output = Arc::clone(&output);
        tokio::spawn(async move {
            let limit = Duration::from_millis(question.milliseconds);
            let late = |_| Err(format!("no answer within {} s", limit.as_secs_f32()));
            let outcome = timeout(limit, probe(question.probe)).await.unwrap_or_else(late);
            let answer = line(&Answer { number: question.number, failure: outcome.err() });
            let mut output = output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // The lab has ended, and this process with it.
            let _ = output.write_all(&answer).and_then(|()| output.flush());
        });
    }
    Ok(())
}

async fn probe(probe: Probe) -> Result<(), String> {
    match probe {
        Probe::Connect(address) => connect(address).await.map(drop),
        Probe::Get { address, path, headers } => {
            let mut request = Request::get(path);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
            let response = http::send(connect(address).await?, request).await?;
            match response.status().as_u16() {
                200..400 => Ok(()),
                status => Err(format!("{address} answered {status}")),
            }
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))
}
