//! Buffers that messages are read into. They belong to the worker and are lent to connections that have
//! something to read: idle ones hold none, and none is allocated for each message.

use std::cell::RefCell;

use bytes::BytesMut;

use super::READ_SIZE;

/// Most buffers that a worker keeps for later; more are freed.
const KEPT: usize = 32;
/// Buffers that [`trim`] leaves.
const LEAST_KEPT: usize = 2;
/// Bytes of a buffer that is not kept: a large head made it grow.
const TOO_LARGE: usize = 4 * READ_SIZE;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Makes room for [`READ_SIZE`] bytes behind what `input` holds.
pub(super) fn make_room(input: &mut BytesMut) {
    if input.capacity() == 0
        && let Some(free) = FREE.with_borrow_mut(Vec::pop)
    {
        *input = free;
    }
    input.reserve(READ_SIZE);
}

/// Takes the memory of `input`, which holds nothing.
pub(super) fn give_back(input: &mut BytesMut) {
    let mut buffer = std::mem::take(input);
    buffer.clear();
    // Not if a part of it is still in use elsewhere.
    if buffer.try_reclaim(READ_SIZE) && buffer.capacity() < TOO_LARGE {
        FREE.with_borrow_mut(|free| {
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

/// Frees the buffers that a burst has left.
pub fn trim() {
    FREE.with_borrow_mut(|free| free.truncate(LEAST_KEPT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nothing_of_it_is_in_use() {
        let mut input = BytesMut::new();
        make_room(&mut input);
        input.extend_from_slice(b"head and body");
        let start = input.as_ptr();
        let head = input.split_to(input.len());
        give_back(&mut input);
        assert_eq!(input.capacity(), 0);
        make_room(&mut input);
        assert_ne!(input.as_ptr(), start, "the head is still there");
        assert_eq!(&head[..], b"head and body");
        drop(head);

        let start = input.as_ptr();
        input.extend_from_slice(b"another");
        drop(input.split_to(7));
        give_back(&mut input);
        make_room(&mut input);
        assert_eq!((input.as_ptr(), input.len()), (start, 0));
    }

    #[test]
    fn what_grew_too_large_is_freed() {
        let mut input = BytesMut::with_capacity(TOO_LARGE);
        let start = input.as_ptr();
        give_back(&mut input);
        // The allocator might return the same place: what matters is its size.
        make_room(&mut input);
        assert!(input.capacity() < TOO_LARGE, "{start:?}");
    }
}
