//! Large answers that are on their way to somebody: how many of each there may be.
//!
//! A scrape of a large node has megabytes. Connections that ask for it and do not read would hold one each,
//! so that, when there are three of a path already, whoever asks gets the last one of them: it costs nothing,
//! and is no older than the time for an answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::Response;
use http::response::Parts;

/// Smaller ones are bounded by the number of connections.
const LARGE: usize = 16 << 10;
/// Of each path.
const MOST: usize = 3;

/// The large answers that somebody still holds a piece of, by path.
#[derive(Default)]
pub(super) struct Copies(Mutex<HashMap<String, Vec<Copy>>>);

struct Copy {
    head: Parts,
    body: Weak<Bytes>,
}

/// Keeps an answer counted for as long as a piece of it is held.
struct Counted(Arc<Bytes>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Copies {
    /// The last answer of a path, if there are as many as may be.
    pub fn last_of_too_many(&self, path: &str) -> Option<Response<Bytes>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = all.get_mut(path)?;
        copies.retain(|copy| copy.body.strong_count() > 0);
        if copies.is_empty() {
            all.remove(path);
            return None;
        }
        if copies.len() < MOST {
            return None;
        }
        let last = copies.last()?;
        let body = Counted(last.body.upgrade()?);
        Some(Response::from_parts(last.head.clone(), Bytes::from_owner(body)))
    }

    /// The answer, counted from now on if it is a large one.
    pub fn keep(&self, path: String, response: Response<Bytes>) -> Response<Bytes> {
        if response.body().len() < LARGE || !response.status().is_success() {
            return response;
        }
        let (head, body) = response.into_parts();
        let body = Arc::new(body);
        let copy = Copy { head: head.clone(), body: Arc::downgrade(&body) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(path).or_default().push(copy);
        Response::from_parts(head, Bytes::from_owner(Counted(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(first: u8) -> Response<Bytes> {
        let mut body = vec![b'x'; LARGE];
        body[0] = first;
        Response::new(body.into())
    }

    #[test]
    fn a_fourth_gets_the_third_until_one_is_read() {
        let copies = Copies::default();
        let mut held: Vec<_> = (1..=3).map(|n| copies.keep("/a".to_owned(), answer(n))).collect();
        assert!(copies.last_of_too_many("/b").is_none());
        let again = copies.last_of_too_many("/a").unwrap();
        assert_eq!(again.body()[0], 3);
        // A piece that is still to be written holds all of it.
        let piece = held[0].body_mut().split_to(1);
        held.remove(0);
        assert!(copies.last_of_too_many("/a").is_some());
        drop(piece);
        assert!(copies.last_of_too_many("/a").is_none());
        drop((held, again));
        assert!(copies.last_of_too_many("/a").is_none());
        assert!(copies.0.lock().unwrap().is_empty());
    }

    #[test]
    fn small_ones_and_failures_are_not_counted() {
        let copies = Copies::default();
        let small = Response::new(Bytes::from_static(b"ready\n"));
        let mut failure = answer(1);
        *failure.status_mut() = http::StatusCode::NOT_FOUND;
        let _held = (copies.keep("/a".to_owned(), small), copies.keep("/b".to_owned(), failure));
        assert!(copies.0.lock().unwrap().is_empty());
    }
}
