//! Many connections at a steady rate, or held open, while agents come and go. The test program itself is what
//! runs in the pods: a thread for each connection, so that one that waits holds no other up.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::world::World;

/// Longer than any agent needs to come back; a connection that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where storms' servers listen.
const PORT: u16 = 7100;
/// Small, since there is one for each connection that waits.
const STACK: usize = 128 * 1024;

/// A moment, in microseconds since 1970: two processes compare theirs.
type Moment = u64;

/// A connection that was not as it should be.
#[derive(Clone, Debug)]
pub struct Broken {
    pub began: Moment,
    pub ended: Moment,
    pub error: String,
}

/// What came of a storm.
#[derive(Debug, Default)]
pub struct Storm {
    pub done: u64,
    /// The longest that one took, whether it waited for an agent or not.
    pub longest: Duration,
    pub broken: Vec<Broken>,
}

/// A time in which an agent's process ended.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from: Moment,
    pub to: Moment,
}

pub fn now() -> Moment {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

impl Storm {
    /// Those that were not open while a process ended: nothing excuses them.
    pub fn failed(&self, ends: &[Window]) -> Vec<Broken> {
        let excused = |broken: &Broken| {
            let overlaps = |end: &Window| broken.began <= end.to && broken.ended >= end.from;
            !broken.error.contains("timed out") && ends.iter().any(overlaps)
        };
        self.broken.iter().filter(|broken| !excused(broken)).cloned().collect()
    }
}

/// A server in a pod.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(world: &World, pod: &str) -> Self {
        let address = SocketAddr::new(world.addresses("app", pod)[0].parse().unwrap(), PORT);
        let mut child = program(world, pod, "serve").stdout(Stdio::piped()).spawn().unwrap();
        wait_for(&mut child, "listening");
        Self { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A storm under way.
pub struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    input: Option<ChildStdin>,
}

impl Running {
    /// So many connections a second, each with a byte to and fro, until it is told to end.
    pub fn connect(world: &World, pod: &str, server: &Server, rate: u32) -> Self {
        Self::start(world, pod, &format!("connect {} {rate}", server.address))
    }

    /// So many connections that are all used all the time.
    pub fn hold(world: &World, pod: &str, server: &Server, count: u32) -> Self {
        Self::start(world, pod, &format!("hold {} {count}", server.address))
    }

    fn start(world: &World, pod: &str, what: &str) -> Self {
        let mut command = program(world, pod, what);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = wait_for(&mut child, "running");
        let input = child.stdin.take();
        Self { child, lines, input }
    }

    /// Tells it to end, waits until the last connection has, and answers what came of them.
    pub fn end(mut self) -> Storm {
        drop(self.input.take());
        let mut storm = Storm::default();
        for line in self.lines.by_ref().map_while(Result::ok) {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            match words[..] {
                ["STORM", "broken", began, ended, error] => storm.broken.push(Broken {
                    began: began.parse().unwrap(),
                    ended: ended.parse().unwrap(),
                    error: error.to_owned(),
                }),
                ["STORM", "done", done, longest] => {
                    storm.done = done.parse().unwrap();
                    storm.longest = Duration::from_micros(longest.parse().unwrap());
                }
                _ => {}
            }
        }
        self.child.wait().unwrap();
        storm
    }
}

fn program(world: &World, pod: &str, what: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let (what, own) = (format!("STORM={what}"), own.to_string_lossy().into_owned());
    let words = [
        "env",
        &what,
        &own,
        "--exact",
        "storm::what_runs_in_pods",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ];
    world.lab.exec_command("app", pod, &words)
}

fn wait_for(child: &mut Child, word: &str) -> std::io::Lines<BufReader<std::process::ChildStdout>> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let wanted = format!("STORM {word}");
    // The test's name is printed before it, on the same line.
    assert!(lines.any(|line| line.unwrap().ends_with(&wanted)), "it did not say {word}");
    lines
}

/// Not a test: what the others start in pods.
#[test]
#[ignore = "other tests start it in pods"]
fn what_runs_in_pods() {
    let order = std::env::var("STORM").unwrap();
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["serve"] => serve(),
        ["connect", server, rate] => storm(server.parse().unwrap(), rate.parse().unwrap()),
        ["hold", server, count] => hold(server.parse().unwrap(), count.parse().unwrap()),
        _ => panic!("{order}?"),
    }
}

/// Every byte back, until the other end closes.
fn serve() {
    let listener = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    println!("STORM listening");
    for socket in listener.incoming() {
        let Ok(mut socket) = socket else { continue };
        let echo = move || {
            let mut byte = [0];
            while matches!(socket.read(&mut byte), Ok(1)) && socket.write_all(&byte).is_ok() {}
        };
        thread::Builder::new().stack_size(STACK).spawn(echo).unwrap();
    }
}

static STORM: Mutex<Storm> = Mutex::new(Storm { done: 0, longest: Duration::ZERO, broken: Vec::new() });
static OPEN: AtomicU64 = AtomicU64::new(0);

fn storm(server: SocketAddr, rate: u32) {
    println!("STORM running");
    let over = told_to_end();
    let (start, mut count) = (Instant::now(), 0_u32);
    while over.try_recv().is_err() {
        count += 1;
        let next = start + Duration::from_secs(1) * count / rate;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        OPEN.fetch_add(1, Ordering::SeqCst);
        thread::Builder::new().stack_size(STACK).spawn(move || one(server)).unwrap();
    }
    while OPEN.load(Ordering::SeqCst) > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    tell();
}

fn one(server: SocketAddr) {
    let (began, started) = (now(), Instant::now());
    let result = connect(server).and_then(|mut socket| exchange(&mut socket));
    let took = started.elapsed();
    let mut storm = STORM.lock().unwrap();
    match result {
        Ok(()) => storm.done += 1,
        Err(error) => storm.broken.push(Broken { began, ended: now(), error: error.to_string() }),
    }
    storm.longest = storm.longest.max(took);
    drop(storm);
    OPEN.fetch_sub(1, Ordering::SeqCst);
}

fn hold(server: SocketAddr, count: usize) {
    let began = now();
    let mut sockets: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut socket = connect(server).unwrap();
            exchange(&mut socket).unwrap();
            socket
        })
        .collect();
    println!("STORM running");
    let over = told_to_end();
    while over.try_recv().is_err() {
        sockets.retain_mut(|socket| match exchange(socket) {
            Ok(()) => true,
            Err(error) => {
                let broken = Broken { began, ended: now(), error: error.to_string() };
                STORM.lock().unwrap().broken.push(broken);
                false
            }
        });
        thread::sleep(Duration::from_millis(50));
    }
    STORM.lock().unwrap().done = sockets.len() as u64;
    tell();
}

fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&server, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn exchange(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    socket.write_all(b"x")?;
    let late = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock => std::io::Error::other("timed out"),
        _ => error,
    };
    socket.read_exact(&mut byte).map_err(late)
}

fn told_to_end() -> std::sync::mpsc::Receiver<()> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _until_it_is_closed = std::io::stdin().read_to_end(&mut Vec::new());
        let _gone = sender.send(());
    });
    receiver
}

fn tell() {
    let storm = STORM.lock().unwrap();
    for broken in &storm.broken {
        println!("STORM broken {} {} {}", broken.began, broken.ended, broken.error);
    }
    println!("STORM done {} {}", storm.done, storm.longest.as_micros());
}
