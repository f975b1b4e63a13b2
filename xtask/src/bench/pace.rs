//! A load of requests that are due at fixed moments: `xtask pace`, which the benchmark runs in a client's
//! pod.
//!
//! Latency counts from when a request was due, not from when it was sent: a path that stalls is charged for
//! the requests that had to wait meanwhile ("coordinated omission" is what leaves them out). A thread for
//! each connection, since those sleep more exactly than what shares a timer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

/// What to ask, and how often.
#[derive(Args, Clone)]
pub struct Load {
    /// Name or address of the server
    pub host: String,
    /// Its port
    pub port: u16,
    /// Connections
    #[arg(long)]
    pub connections: u32,
    /// Requests a second on each of them
    #[arg(long)]
    pub rate: f64,
    /// For how long
    #[arg(long)]
    pub seconds: u32,
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: paced\r\n\r\n";

/// The servers' whole answer ends with this (`NGINX` in `paths.rs`).
const END: &[u8] = b"ok";

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks, and prints a line for each answer: microseconds since it was due.
pub fn run(load: &Load) -> Result<()> {
    ensure!(load.rate > 0.0, "a rate above nothing");
    // Once, and before the clock runs: of so many questions at once a name server may lose one, for five
    // seconds.
    let server = (load.host.as_str(), load.port).to_socket_addrs();
    let server: Vec<_> = server.with_context(|| format!("resolving {}", load.host))?.collect();
    // All are connected before the first is due.
    let start = Instant::now() + Duration::from_millis(500);
    let interval = Duration::from_secs_f64(1.0 / load.rate);
    let threads: Vec<_> = (0..load.connections)
        .map(|number| {
            let (load, server) = (load.clone(), server.clone());
            // Spread over an interval, so that they do not all come at once.
            let first = start + interval * number / load.connections;
            thread::Builder::new().stack_size(128 * 1024).spawn(move || one(&load, &server, first, interval))
        })
        .collect::<std::io::Result<_>>()?;
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| anyhow!("a connection's thread panicked"))??);
    }
    let lines: Vec<_> = latencies.iter().map(|latency| latency.as_micros().to_string()).collect();
    say!("{}", lines.join("\n"));
    Ok(())
}

fn one(load: &Load, server: &[SocketAddr], first: Instant, interval: Duration) -> Result<Vec<Duration>> {
    let mut socket =
        TcpStream::connect(server).with_context(|| format!("connecting to {}:{}", load.host, load.port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let end = first + Duration::from_secs(load.seconds.into());
    let (mut due, mut latencies) = (first, Vec::new());
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        ask(&mut socket)?;
        latencies.push(due.elapsed());
        due += interval;
    }
    Ok(latencies)
}

fn ask(socket: &mut TcpStream) -> Result<()> {
    socket.write_all(REQUEST)?;
    let (mut buffer, mut filled) = ([0; 1024], 0);
    while !buffer[..filled].ends_with(END) {
        let read = socket.read(&mut buffer[filled..]).context("waiting for an answer")?;
        ensure!(read > 0, "the connection ended, or the answer is not the server's");
        filled += read;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_stall_counts_for_all_that_were_due_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let load =
            Load { host: "127.0.0.1".into(), port: address.port(), connections: 1, rate: 100.0, seconds: 1 };
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            for answered in 0.. {
                if socket.read(&mut buffer).unwrap() == 0 {
                    return answered;
                }
                if answered == 0 {
                    thread::sleep(Duration::from_millis(200));
                }
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").unwrap();
            }
            0
        });
        let latencies = one(&load, &[address], Instant::now(), Duration::from_millis(10)).unwrap();
        assert_eq!(latencies.len(), 100);
        let late = latencies.iter().filter(|latency| **latency > Duration::from_millis(50)).count();
        assert!(late >= 15, "one stalled, and {late} were late");
        assert_eq!(server.join().unwrap(), 100);
    }
}
