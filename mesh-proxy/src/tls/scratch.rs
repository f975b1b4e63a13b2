//! Buffers that belong to the worker and are lent to the connection that is active.

use std::cell::RefCell;

/// Size of a buffer: several full records, so that one system call moves much.
pub const SIZE: usize = 128 * 1024;

/// Buffers kept for later use by one worker; more are given back to the allocator.
const KEPT: usize = 16;

thread_local! {
    /// Empty buffers to append to.
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Buffers of full length to read into.
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that stay with a worker that does little.
const LEAST_KEPT: usize = 2;

/// Gives back to the allocator what a burst has left.
pub fn give_back() {
    ROOMS.with_borrow_mut(|rooms| rooms.truncate(LEAST_KEPT));
    FREE.with_borrow_mut(|free| free.truncate(LEAST_KEPT));
}

/// A buffer of [`SIZE`] bytes at least to read into; what is in it is of no use.
pub(crate) fn take_room() -> Vec<u8> {
    ROOMS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE])
}

/// Gives such a buffer back.
pub(crate) fn give_room(room: Vec<u8>) {
    ROOMS.with_borrow_mut(|rooms| {
        if (SIZE..=4 * SIZE).contains(&room.len()) && rooms.len() < KEPT {
            rooms.push(room);
        }
    });
}

/// An empty buffer with room for [`SIZE`] bytes.
pub fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SIZE))
}

/// Gives a buffer back.
pub fn give(mut buffer: Vec<u8>) {
    // One that grew beyond its size, or that was never filled, is not worth keeping.
    if buffer.capacity() < SIZE || buffer.capacity() > 4 * SIZE {
        return;
    }
    buffer.clear();
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}
