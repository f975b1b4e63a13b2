//! What a proxy left to the next one: the one that left it may have been taken over.

#[path = "../../mesh-proxy/src/inheritance/certificate_file.rs"]
pub mod certificate_file;
#[path = "../../mesh-proxy/src/inheritance/journal_frames.rs"]
pub mod journal_frames;

use certificate_file::{MAX_IDENTITIES, MAX_ROOTS};
use journal_frames::{JOURNAL_MAGIC, JournalFrames, MAX_UNPACKED_FRAME_BYTES, compress_frame};

/// A file of certificates, or a journal.
pub fn check(data: &[u8]) {
    if let Some(contents) = certificate_file::parse_certificate_file(data) {
        assert!(contents.roots.len() <= MAX_ROOTS && contents.entries.len() <= MAX_IDENTITIES);
        let mut written = Vec::new();
        certificate_file::write_certificate_file(&contents, &mut written).expect("memory takes it");
        assert_eq!(written, data, "what is read is what was written");
    }
    let Some(frames) = JournalFrames::up_to_complete_state(data) else { return };
    let mut again = JOURNAL_MAGIC.to_vec();
    let mut all = Vec::new();
    for bytes in frames.take(16).map_while(|bytes| bytes) {
        assert!(bytes.len() <= MAX_UNPACKED_FRAME_BYTES);
        again.extend(compress_frame(&bytes, true).expect("it fits"));
        all.push(bytes);
    }
    let read: Vec<_> = JournalFrames::up_to_complete_state(&again).into_iter().flatten().flatten().collect();
    assert_eq!(read, all, "what is written is read again");
}
