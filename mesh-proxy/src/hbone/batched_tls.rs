//! An HTTP/2 connection and the TLS session below it, driven together: everything that streams wrote in one
//! wakeup is sent in one system call.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::{TlsStream, UnbufferedConnection};

/// A TLS session that the HTTP/2 connection and its driver share.
pub(super) struct BatchedTls<C>(Rc<RefCell<TlsStream<C>>>);

impl<C> Clone for BatchedTls<C> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<C: UnbufferedConnection> BatchedTls<C> {
    pub(super) fn new(tls: TlsStream<C>) -> Self {
        Self(Rc::new(RefCell::new(tls)))
    }

    /// Polls `work`, which reads and writes the session, and then sends what it wrote.
    ///
    /// `work` runs after every task that was ready before it, since a task that writes to a stream wakes it
    /// and the runtime's queue is first in, first out. So one flush serves them all.
    pub(super) fn poll_then_send<T>(
        &self,
        context: &mut Context<'_>,
        work: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<io::Result<T>> {
        let polled = work(context);
        let sent = self.0.borrow_mut().poll_send_all(context);
        match (polled, sent) {
            (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (polled, _) => polled.map(Ok),
        }
    }

    /// Sends what was written, and TLS's `close_notify`.
    pub(super) fn flush_and_close(self) -> impl Future<Output = ()> {
        std::future::poll_fn(move |context| {
            let mut tls = self.0.borrow_mut();
            Pin::new(&mut *tls).poll_shutdown(context).map(drop)
        })
    }
}

impl<C: UnbufferedConnection> AsyncRead for BatchedTls<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(context, buffer)
    }
}

impl<C: UnbufferedConnection> AsyncWrite for BatchedTls<C> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(context, piece)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(context)
    }
}
