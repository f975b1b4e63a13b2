//! What a proxy left to the next one: the one that left it may have been taken over.

#[path = "../../mesh-proxy/src/inheritance/certificates.rs"]
pub mod certificates;
#[path = "../../mesh-proxy/src/inheritance/frames.rs"]
pub mod frames;

use certificates::{MOST_ENTRIES, MOST_ROOTS};
use frames::{Frames, LONGEST, MAGIC, frame};

/// A file of certificates, or a journal.
pub fn check(data: &[u8]) {
    if let Some(contents) = certificates::read(data) {
        assert!(contents.roots.len() <= MOST_ROOTS && contents.entries.len() <= MOST_ENTRIES);
        let mut written = Vec::new();
        certificates::write(&contents, &mut written).expect("memory takes it");
        assert_eq!(written, data, "what is read is what was written");
    }
    let Some(frames) = Frames::of(data) else { return };
    let mut again = MAGIC.to_vec();
    let mut all = Vec::new();
    for bytes in frames.take(16).map_while(|bytes| bytes) {
        assert!(bytes.len() <= LONGEST);
        again.extend(frame(&bytes, true).expect("it fits"));
        all.push(bytes);
    }
    let read: Vec<_> = Frames::of(&again).into_iter().flatten().flatten().collect();
    assert_eq!(read, all, "what is written is read again");
}
