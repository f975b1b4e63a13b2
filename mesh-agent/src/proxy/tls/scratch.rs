//! Buffers that belong to the core and are lent to the connection that is active.

use std::cell::RefCell;

/// Size of a buffer: several full records, so that one system call moves much.
pub(super) const SIZE: usize = 128 * 1024;

/// Buffers kept for later use by one core; more are given back to the allocator.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for [`SIZE`] bytes.
pub(super) fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SIZE))
}

/// Gives a buffer back.
pub(super) fn give(mut buffer: Vec<u8>) {
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
