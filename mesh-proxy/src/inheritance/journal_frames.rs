//! The frames of a journal: packed length, unpacked length, whether a state is complete with it, and a
//! response, packed with LZ4. Whoever wrote them is not trusted. This file uses nothing but plain types: the
//! fuzz target `inheritance` includes it.

/// First bytes of a journal; another layout has others.
pub const JOURNAL_MAGIC: &[u8; 8] = b"nm-jrnl\x01";
/// Most bytes of a frame, unpacked.
pub const MAX_UNPACKED_FRAME_BYTES: usize = 16 << 20;
const HEAD: usize = 9;

/// Compresses a response into a frame; `complete` is whether a state is complete with it. None if there are
/// more than [`MAX_UNPACKED_FRAME_BYTES`] bytes.
pub fn compress_frame(bytes: &[u8], complete: bool) -> Option<Vec<u8>> {
    let unpacked = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_UNPACKED_FRAME_BYTES)?;
    let packed = lz4_flex::block::compress(bytes);
    let mut frame = Vec::with_capacity(HEAD + packed.len());
    frame.extend(u32::try_from(packed.len()).ok()?.to_le_bytes());
    frame.extend(unpacked.to_le_bytes());
    frame.push(u8::from(complete));
    frame.extend(packed);
    Some(frame)
}

/// Iterator over the unpacked frames of a journal, up to its last complete state; none in the place of a
/// frame that can't be unpacked.
pub struct JournalFrames<'a>(&'a [u8]);

impl<'a> JournalFrames<'a> {
    /// Returns the frames up to the last complete state; none if there is no such state, or the bytes are no
    /// journal.
    pub fn up_to_complete_state(journal: &'a [u8]) -> Option<Self> {
        let all = journal.strip_prefix(JOURNAL_MAGIC)?;
        let (mut rest, mut end) = (all, None);
        while let Some((head, behind)) = head(rest) {
            rest = behind;
            if head.complete {
                end = Some(all.len() - behind.len());
            }
        }
        Some(Self(&all[..end?]))
    }
}

impl Iterator for JournalFrames<'_> {
    type Item = Option<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, behind) = head(self.0)?;
        self.0 = behind;
        Some(lz4_flex::block::decompress(head.packed, head.unpacked).ok())
    }
}

struct Head<'a> {
    packed: &'a [u8],
    unpacked: usize,
    complete: bool,
}

/// Splits off the frame at the front, if all of it is there.
fn head(bytes: &[u8]) -> Option<(Head<'_>, &[u8])> {
    let (packed, rest) = bytes.split_first_chunk()?;
    let (unpacked, rest) = rest.split_first_chunk()?;
    let (complete, rest) = rest.split_first()?;
    let unpacked =
        usize::try_from(u32::from_le_bytes(*unpacked)).ok().filter(|it| *it <= MAX_UNPACKED_FRAME_BYTES)?;
    let (packed, behind) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*packed)).ok()?)?;
    Some((Head { packed, unpacked, complete: *complete == 1 }, behind))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn example() -> Vec<u8> {
        let frames = [(&b"one"[..], false), (&[b'x'; 1000], true), (b"", false)];
        let frames =
            frames.into_iter().flat_map(|(bytes, complete)| compress_frame(bytes, complete).unwrap());
        JOURNAL_MAGIC.iter().copied().chain(frames).collect()
    }

    #[test]
    #[ignore = "writes into the tree: the first inputs of the fuzz target `inheritance`"]
    fn write_seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/inheritance");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("journal"), example()).unwrap();
    }

    #[test]
    fn frames_are_read_up_to_the_last_complete_state() {
        let journal = example();
        assert!(journal.len() < 100, "packed");
        let read: Vec<_> = JournalFrames::up_to_complete_state(&journal).unwrap().collect();
        assert_eq!(read, [Some(b"one".to_vec()), Some(vec![b'x'; 1000])]);
        assert!(compress_frame(&vec![0; MAX_UNPACKED_FRAME_BYTES + 1], true).is_none());
        assert!(
            JournalFrames::up_to_complete_state(JOURNAL_MAGIC).is_none()
                && JournalFrames::up_to_complete_state(b"").is_none()
        );
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let journal = example();
        for place in 0..journal.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut strange = journal.clone();
                strange[place] = value;
                let _total = JournalFrames::up_to_complete_state(&strange).map(Iterator::count);
                let _cut = JournalFrames::up_to_complete_state(&strange[..place]).map(Iterator::count);
            }
        }
    }
}
