//! Buffers that belong to the worker and are lent to active connections.

use std::cell::RefCell;

/// Bytes of a buffer: several full records, so that one system call moves much.
pub const BUFFER_LEN: usize = 128 * 1024;

/// Most buffers that a worker keeps for later; more are freed.
const KEPT: usize = 16;

thread_local! {
    /// Empty buffers, to append to.
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Buffers of full length, to read into.
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that [`trim`] leaves.
const LEAST_KEPT: usize = 2;

/// Frees the buffers that a burst has left.
pub fn trim() {
    ROOMS.with_borrow_mut(|rooms| rooms.truncate(LEAST_KEPT));
    FREE.with_borrow_mut(|free| free.truncate(LEAST_KEPT));
}

/// Lends a buffer of at least [`BUFFER_LEN`] bytes to read into; its contents mean nothing.
pub(crate) fn take_full_length() -> Vec<u8> {
    ROOMS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_LEN])
}

/// Takes such a buffer back.
pub(crate) fn return_full_length(room: Vec<u8>) {
    ROOMS.with_borrow_mut(|rooms| {
        if (BUFFER_LEN..=4 * BUFFER_LEN).contains(&room.len()) && rooms.len() < KEPT {
            rooms.push(room);
        }
    });
}

/// Lends an empty buffer with room for [`BUFFER_LEN`] bytes.
pub fn take_empty() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN))
}

/// Takes such a buffer back.
pub fn return_empty(mut buffer: Vec<u8>) {
    // A buffer that grew too far, or was never allocated in full, is not worth keeping.
    if buffer.capacity() < BUFFER_LEN || buffer.capacity() > 4 * BUFFER_LEN {
        return;
    }
    buffer.clear();
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}
