//! The control plane's responses as they came: the whole state at first, and each change behind it, so that
//! writing a change costs only its own length. Once the changes are as long as the whole, that is written
//! anew.
//!
//! A frame that a dying proxy did not finish is ignored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mesh_api::plan::{Store, StoredResources};
use mesh_api::wire::xds::DeltaDiscoveryResponse;
use prost::Message;

use super::journal_frames::{JOURNAL_MAGIC, JournalFrames, MAX_UNPACKED_FRAME_BYTES, compress_frame};
use super::{BequestSender, create_empty_memfd, read_whole_file, seal_against_shrinking};
use crate::inheritance::InheritedKind;

/// Resources per frame when the whole state is written.
const PART: usize = 500;
/// Most bytes of a journal. A mesh of 100,000 workloads takes some 10 MB.
pub const MAX_JOURNAL_BYTES: u64 = 128 << 20;
/// Bytes of changes up to which the whole state is never written anew.
const FEW: u64 = 1 << 20;

/// A journal that is being written.
pub struct XdsJournal {
    inheritance: BequestSender,
    file: Option<File>,
    length: u64,
    /// Length of the whole state at its beginning, bytes.
    whole: u64,
    /// Whether writing failed, which was logged; nothing is written any more.
    given_up: bool,
}

/// A response that is to be written; empty where only the whole state is.
pub struct EncodedResponse(Option<Vec<u8>>);

impl XdsJournal {
    /// Creates a journal; nothing is written before [`Self::append_or_rewrite`] is told of a complete state.
    pub fn new(inheritance: BequestSender) -> Self {
        Self { inheritance, file: None, length: 0, whole: 0, given_up: false }
    }

    /// Encodes a response, before the store takes it apart.
    pub fn encode_response(&self, response: &DeltaDiscoveryResponse) -> EncodedResponse {
        // For a longer one the whole state is written anew, in parts.
        let fits = self.file.is_some() && response.encoded_len() <= MAX_UNPACKED_FRAME_BYTES;
        EncodedResponse(fits.then(|| response.encode_to_vec()))
    }

    /// Appends a response that was taken, or writes the whole state anew where that is shorter or nothing is
    /// written yet. `complete` is whether the state is complete with the response, and `whole` returns it.
    pub fn append_or_rewrite(
        &mut self,
        entry: EncodedResponse,
        complete: bool,
        whole: impl FnOnce() -> StoredResources,
    ) {
        if self.given_up {
            return;
        }
        let due = self.length - self.whole > FEW.max(self.whole);
        let written = match (entry.0, &self.file) {
            (Some(bytes), Some(file)) if !(due && complete) => {
                append(file, &mut self.length, &bytes, complete)
            }
            _ if complete => self.write_whole(&whole()),
            // More is to follow. With the last response the whole state is written.
            _ => {
                self.file = None;
                Ok(())
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "a proxy after this one will wait for the control plane");
            self.given_up = true;
            self.file = None;
            self.inheritance.bequeath(InheritedKind::Configuration, None);
        }
    }

    fn write_whole(&mut self, whole: &StoredResources) -> io::Result<()> {
        let file = create_empty_memfd(c"nodemesh-configuration")?;
        seal_against_shrinking(&file)?;
        file.write_all_at(JOURNAL_MAGIC, 0)?;
        let mut length = JOURNAL_MAGIC.len() as u64;
        for part in whole.discovery_responses(PART) {
            append(&file, &mut length, &part.encode_to_vec(), false)?;
        }
        append(&file, &mut length, &[], true)?;
        self.inheritance.bequeath(InheritedKind::Configuration, Some(file.try_clone()?));
        (self.file, self.length, self.whole) = (Some(file), length, length);
        Ok(())
    }
}

fn append(file: &File, length: &mut u64, bytes: &[u8], complete: bool) -> io::Result<()> {
    let frame = compress_frame(bytes, complete).ok_or(io::ErrorKind::FileTooLarge)?;
    if *length + frame.len() as u64 > MAX_JOURNAL_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    file.write_all_at(&frame, *length)?;
    *length += frame.len() as u64;
    Ok(())
}

/// Returns the last complete state of a journal; none if it has none, is something else, or has a frame that
/// can't be read.
pub fn replay_into_store(file: &File) -> Option<Store> {
    let journal = read_whole_file(file, MAX_JOURNAL_BYTES).ok()?;
    let mut store = Store::default();
    for bytes in JournalFrames::up_to_complete_state(&journal)? {
        let response = DeltaDiscoveryResponse::decode(&*bytes?).ok()?;
        // Rejected resources are rejected again, and those held in their place stay.
        let _rejected =
            store.apply_response(&response.type_url, response.resources, response.removed_resources);
    }
    Some(store)
}

#[cfg(test)]
mod tests {
    use mesh_api::plan::XdsResourceType;
    use mesh_api::wire::type_url;
    use mesh_api::wire::workload::{Address, Workload, address};
    use mesh_api::wire::xds::Resource;
    use prost_types::Any;

    use super::*;

    fn response(uids: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |uid: &&str| {
            let (name, namespace) = ((*uid).to_owned(), "shop".to_owned());
            let workload = Workload { uid: name.clone(), name, namespace, ..Workload::default() };
            let address = Address { r#type: Some(address::Type::Workload(workload)) };
            let any = Any { type_url: type_url::ADDRESS.to_owned(), value: address.encode_to_vec() };
            let (name, version) = ((*uid).to_owned(), "1".to_owned());
            Resource { name, version, resource: Some(any), ..Resource::default() }
        };
        DeltaDiscoveryResponse {
            type_url: type_url::ADDRESS.to_owned(),
            resources: uids.iter().map(resource).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    struct Told {
        store: Store,
        journal: XdsJournal,
        left: tokio::sync::mpsc::UnboundedReceiver<crate::inheritance::Bequest>,
        files: usize,
        file: Option<File>,
    }

    impl Told {
        fn new() -> Self {
            let (inheritance, left) = BequestSender::channel();
            Self {
                store: Store::default(),
                journal: XdsJournal::new(inheritance),
                left,
                files: 0,
                file: None,
            }
        }

        fn tell(&mut self, response: DeltaDiscoveryResponse, complete: bool) {
            let entry = self.journal.encode_response(&response);
            let DeltaDiscoveryResponse { type_url, resources, removed_resources, .. } = response;
            assert!(self.store.apply_response(&type_url, resources, removed_resources).is_empty());
            self.journal.append_or_rewrite(entry, complete, || self.store.contents());
            while let Ok((_, file)) = self.left.try_recv() {
                self.files += 1;
                self.file = file.map(File::from);
            }
        }

        fn known(&self) -> Vec<String> {
            let mut store = replay_into_store(self.file.as_ref().expect("left")).expect("a state");
            let mut known: Vec<_> = store
                .snapshot_as_generation_0()
                .workloads()
                .map(|workload| workload.uid.to_string())
                .collect();
            known.sort();
            known
        }
    }

    #[test]
    fn the_last_complete_state_is_found_again() {
        let mut told = Told::new();
        told.tell(response(&["a"]), false);
        assert!(told.file.is_none(), "there is no state yet");
        told.tell(response(&["b"]), true);
        assert_eq!(told.known(), ["a", "b"]);
        let mut change = response(&["c"]);
        change.removed_resources = vec!["a".to_owned()];
        told.tell(change, false);
        assert_eq!(told.known(), ["a", "b"], "more is to follow");
        told.tell(response(&["d"]), true);
        assert_eq!(told.known(), ["b", "c", "d"]);
        assert_eq!(told.files, 1, "a change is appended");
    }

    #[test]
    fn what_a_dying_proxy_did_not_finish_is_none() {
        let mut told = Told::new();
        told.tell(response(&["a"]), true);
        let whole = journal_bytes(&told);
        told.tell(response(&["b"]), true);
        let bytes = journal_bytes(&told);
        for length in 0..bytes.len() {
            let file = create_empty_memfd(c"test").unwrap();
            file.write_all_at(&bytes[..length], 0).unwrap();
            let found = replay_into_store(&file)
                .map(|store| store.contents().resources(&XdsResourceType::ADDRESS).count());
            assert_eq!(found, (length >= whole.len()).then_some(1), "cut at {length}");
        }
        for place in 0..bytes.len() {
            let mut strange = bytes.clone();
            strange[place] ^= 0xff;
            let file = create_empty_memfd(c"test").unwrap();
            file.write_all_at(&strange, 0).unwrap();
            let _total = replay_into_store(&file);
        }
    }

    fn journal_bytes(told: &Told) -> Vec<u8> {
        read_whole_file(told.file.as_ref().unwrap(), MAX_JOURNAL_BYTES).unwrap()
    }

    #[test]
    fn changes_do_not_pile_up() {
        let mut told = Told::new();
        told.tell(response(&["a"]), true);
        // Nothing that could be packed.
        let name = |number: u32| {
            let word = |at: u32| u128::from(number.wrapping_mul(0x9e37_79b1) ^ at).pow(3);
            format!("{number}-{:x}-{:x}-{:x}", word(1), word(2), word(3))
        };
        for number in 0..10_000 {
            let (new, old) = (name(number), name(number.wrapping_sub(1)));
            let mut change = response(&[&new]);
            change.removed_resources = vec![old];
            told.tell(change, true);
        }
        assert!(told.files > 2, "the whole was written anew {} times", told.files);
        assert!(journal_bytes(&told).len() < 3 << 20);
        let mut known = vec!["a".to_owned(), name(9999)];
        known.sort();
        assert_eq!(told.known(), known);
    }
}
