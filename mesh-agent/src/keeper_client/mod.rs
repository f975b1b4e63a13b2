//! The proxy's end of its talk with the keeper: [`KeeperClient`] takes pods in and lets them go, a
//! [`SocketPool`] has sockets in pods opened ahead of need, [`receive_start_kit`] returns what a proxy starts
//! with.

mod client;
mod fair_request_queue;
mod socket_pool;

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

pub use client::{EnrolResult, KeeperClient};
pub use socket_pool::SocketPool;

use crate::keeper::channel;
use crate::keeper::protocol::StartMessage;
use crate::sys::ebpf::{MapsHandedToProxy, PROXY_MAP_NAMES};

/// Timeout of the start message: longer than loading the programs takes on the slowest machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Everything that a proxy starts with.
pub struct StartKit {
    /// The enroller's channel.
    pub control: OwnedFd,
    /// Maps of the eBPF programs.
    pub maps: MapsHandedToProxy,
    /// The node's own listeners.
    pub admin_listeners: AdminListeners,
    /// Certificates that the proxy before has left.
    pub certificates: Option<File>,
    /// Configuration that the proxy before has left.
    pub configuration: Option<File>,
    /// One channel for each worker that is to run.
    pub workers: Vec<OwnedFd>,
    /// Whether another proxy serves until this one says that it is ready.
    pub beside: bool,
}

/// The node's own listeners.
pub struct AdminListeners {
    /// For the admin endpoint.
    pub admin: TcpListener,
    /// For metrics.
    pub metrics: TcpListener,
    /// For health.
    pub health: TcpListener,
    /// Unix socket of the admin endpoint, if there is one.
    pub admin_socket: Option<UnixListener>,
}

/// Waits for the start message, on the channel that is this process's standard input. Errors: no keeper is at
/// the other end.
pub fn receive_start_kit() -> io::Result<StartKit> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let (record, descriptors) = channel::receive_with_timeout(&control, PATIENCE)?;
    let message = StartMessage::decode(&record).ok_or(io::ErrorKind::InvalidData)?;
    sort(control, message, descriptors).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn sort(control: OwnedFd, message: StartMessage, descriptors: Vec<OwnedFd>) -> Option<StartKit> {
    let mut all = descriptors.into_iter();
    let maps: Vec<_> = all.by_ref().take(PROXY_MAP_NAMES.len()).collect();
    let admin_listeners = AdminListeners {
        admin: all.next()?.into(),
        metrics: all.next()?.into(),
        health: all.next()?.into(),
        admin_socket: if message.admin_socket { Some(all.next()?.into()) } else { None },
    };
    let mut file = |there: bool| if there { all.next().map(|it| Some(it.into())) } else { Some(None) };
    let (certificates, configuration) = (file(message.inherited[0])?, file(message.inherited[1])?);
    let workers: Vec<_> = all.collect();
    let complete = workers.len() == usize::from(message.workers);
    let maps = MapsHandedToProxy::new(maps.try_into().ok()?);
    let beside = message.beside;
    complete.then_some(StartKit {
        control,
        maps,
        admin_listeners,
        certificates,
        configuration,
        workers,
        beside,
    })
}

/// Wraps a channel for a runtime. To it the channel is a datagram socket, which keeps records apart as well.
/// Errors: it can't be polled.
fn asynchronous(channel: OwnedFd) -> io::Result<tokio::net::UnixDatagram> {
    let socket = UnixDatagram::from(channel);
    socket.set_nonblocking(true)?;
    tokio::net::UnixDatagram::from_std(socket)
}
