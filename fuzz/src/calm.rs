//! What stands between TLS and HTTP/2: it looks at a peer's frames, and must neither change nor lose a byte.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use mesh_calm::head::{HEADER, Head, PREFACE, Scanner};
use mesh_calm::{Guarded, Role, price};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that sends its bytes in pieces of one size, and reads nothing.
struct Peer<'a> {
    sends: &'a [u8],
    piece: usize,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.sends.split_at(self.piece.min(buffer.remaining()).min(self.sends.len()));
        buffer.put_slice(now);
        self.sends = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Three bytes say who the peer is, in which pieces it sends, and how much is read at a time; the rest is
/// what it sends.
pub fn check(data: &[u8]) {
    let Some((&[role, piece, room], sent)) = data.split_first_chunk() else { return };
    let (role, preface) = if role % 2 == 0 { (Role::Server, PREFACE.len()) } else { (Role::Client, 0) };
    let (piece, room) = (usize::from(piece) + 1, usize::from(room) * 8 + 1);
    let heads = simple(sent, preface);
    assert_eq!(scanned(sent, piece, role), heads, "the scanner's headers are those of a simple reader");
    let (read, flooded) = read_all(Guarded::new(Peer { sends: sent, piece }, role), room);
    assert!(sent.starts_with(&read), "nothing is changed");
    assert!(flooded || read.len() == sent.len(), "nothing is lost");
    let cost: u64 = heads.iter().map(|head| u64::from(price::received(*head).cost)).sum();
    let patient = price::patience().spend(u32::try_from(cost).unwrap_or(u32::MAX));
    assert!(!(flooded && patient), "cut off for no reason: {cost}");
}

/// Frame by frame from one slice.
fn simple(sent: &[u8], preface: usize) -> Vec<Head> {
    let (mut heads, mut rest) = (Vec::new(), sent.get(preface..).unwrap_or_default());
    while let Some((&[l1, l2, l3, kind, flags, ..], after)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_be_bytes([0, l1, l2, l3]);
        heads.push(Head { kind, flags, length });
        rest = after.get(length as usize..).unwrap_or_default();
    }
    heads
}

fn scanned(sent: &[u8], piece: usize, role: Role) -> Vec<Head> {
    let mut scanner = if role == Role::Server { Scanner::of_client() } else { Scanner::of_server() };
    let mut heads = Vec::new();
    for mut piece in sent.chunks(piece) {
        while let Some(head) = scanner.next(&mut piece) {
            heads.push(head);
        }
    }
    heads
}

/// Reads to the end, and says whether that was a flood's.
fn read_all(mut guarded: Guarded<Peer<'_>>, room: usize) -> (Vec<u8>, bool) {
    let (mut read, mut space) = (Vec::new(), vec![0; room]);
    let mut context = Context::from_waker(Waker::noop());
    let mut waited = false;
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(&mut guarded).poll_read(&mut context, &mut buffer) {
            Poll::Pending => {
                assert!(!waited, "after a turn comes another one");
                waited = true;
            }
            Poll::Ready(Err(_)) => return (read, true),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return (read, false),
            Poll::Ready(Ok(())) => {
                waited = false;
                read.extend_from_slice(buffer.filled());
            }
        }
    }
}
