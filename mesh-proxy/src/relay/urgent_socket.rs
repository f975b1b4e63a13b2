//! A socket that finds urgent bytes among the others, at no cost where there are none.
//!
//! The data path's sockets have urgent bytes in line (`SO_OOBINLINE`), and a read ends before one (kernel:
//! `tcp_recvmsg_locked`). So it is enough to know when the next read may begin with one. That is what
//! readiness tells (`EPOLLPRI`), which tokio's own sockets do not ask for.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::urgent_data_and_min_rtt::{async_fd_with_urgent, is_at_urgent_mark};

pub(super) struct UrgentSocket {
    socket: AsyncFd<TcpStream>,
    /// Whether the last read left nothing behind, so that new bytes cause a new event.
    drained: Cell<bool>,
}

/// What was read, or is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    Ordinary,
    /// A single byte.
    Urgent,
}

impl UrgentSocket {
    /// Takes a socket over from tokio's own type. Errors: the kernel has no room for it.
    pub fn new(socket: tokio::net::TcpStream) -> io::Result<Self> {
        Ok(Self { socket: async_fd_with_urgent(socket.into_std()?)?, drained: Cell::new(true) })
    }

    /// Reads what is there, urgent bytes one at a time; zero bytes at the end. After a short read it knows
    /// that nothing more is there, which saves a system call. Errors: those of `recv(2)`.
    pub fn poll_read(
        &self,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, Urgency)>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let pending = self.is_urgent_pending();
            let urgency = self.next(pending)?;
            let room = if urgency == Urgency::Urgent { 1 } else { into.len() };
            match self.socket.get_ref().read(&mut into[..room]) {
                Ok(read) => {
                    self.drained.set(!pending && urgency == Urgency::Ordinary && 0 < read && read < room);
                    if self.drained.get() {
                        ready.clear_ready();
                    }
                    if urgency == Urgency::Urgent {
                        self.forget_urgent();
                    }
                    return Poll::Ready(Ok((read, urgency)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.drained.set(true);
                    ready.clear_ready();
                    self.forget_urgent();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Returns what the next read begins with. Where the last read left something behind, an urgent byte may
    /// follow that the last event did not tell of: then the kernel is asked. Errors: it does not answer.
    fn next(&self, pending: bool) -> io::Result<Urgency> {
        let ask = pending || !self.drained.get();
        Ok(if ask && is_at_urgent_mark(self.socket.get_ref())? { Urgency::Urgent } else { Urgency::Ordinary })
    }

    /// Whether an urgent byte is in the socket, maybe further on. (Also true once the other end is done,
    /// which has no event of its own: then there is little left to read.)
    fn is_urgent_pending(&self) -> bool {
        self.socket.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Waits for a new event to tell of the next urgent byte.
    fn forget_urgent(&self) {
        let forgotten: io::Result<()> =
            self.socket.try_io(Interest::PRIORITY, |_| Err(io::ErrorKind::WouldBlock.into()));
        debug_assert!(forgotten.is_err());
    }

    /// Writes as much as there is room for, without waiting. Errors: those of `send(2)`.
    pub fn try_write(&self, bytes: &[u8], urgency: Urgency) -> io::Result<usize> {
        let write = |mut socket: &TcpStream| match urgency {
            Urgency::Ordinary => socket.write(bytes),
            Urgency::Urgent => {
                SockRef::from(socket).send_with_flags(bytes, libc::MSG_OOB | libc::MSG_NOSIGNAL)
            }
        };
        match self.socket.try_io(Interest::WRITABLE, write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Writes everything. Errors: those of `send(2)`.
    pub async fn write_all(&self, mut bytes: &[u8], urgency: Urgency) -> io::Result<()> {
        while !bytes.is_empty() {
            // Stale readiness is found out by writing.
            let _ready = self.socket.writable().await?;
            bytes = &bytes[self.try_write(bytes, urgency)?..];
        }
        Ok(())
    }

    /// Shuts the writing side down. The other end may have closed already; then nobody is left to tell.
    pub fn shutdown_write(&self) {
        let _closed_already = self.socket.get_ref().shutdown(Shutdown::Write);
    }
}

impl AsFd for UrgentSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}
