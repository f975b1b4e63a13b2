//! Buffers that belong to the worker and are lent to active connections.

use std::cell::RefCell;

/// Bytes of a buffer: several full records, so that one system call moves much.
pub const SIZE: usize = 128 * 1024;

/// Most buffers that a worker keeps for later; more are freed.
const KEPT: usize = 16;

thread_local! {
    /// Empty buffers, to append to.
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Buffers of full length, to read into.
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that [`give_back`] leaves.
const LEAST_KEPT: usize = 2;

/// Frees the buffers that a burst has left.
pub fn give_back() {
    ROOMS.with_borrow_mut(|rooms| rooms.truncate(LEAST_KEPT));
    FREE.with_borrow_mut(|free| free.truncate(LEAST_KEPT));
}

/// Lends a buffer of at least [`SIZE`] bytes to read into; its contents mean nothing.
pub(crate) fn take_room() -> Vec<u8> {
    ROOMS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE])
}

/// Takes such a buffer back.
pub(crate) fn give_room(room: Vec<u8>) {
    ROOMS.with_borrow_mut(|rooms| {
        if (SIZE..=4 * SIZE).contains(&room.len()) && rooms.len() < KEPT {
            rooms.push(room);
        }
    });
}

/// Lends an empty buffer with room for [`SIZE`] bytes.
pub fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SIZE))
}

/// Takes such a buffer back.
pub fn give(mut buffer: Vec<u8>) {
    // A buffer that grew too far, or was never allocated in full, is not worth keeping.
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
