//! Trial load of the agent's programs: as by a keeper, but neither pinned nor attached, and gone when it is
//! dropped.

use aya::maps::{Array, MapData, MapError};
use aya::{Ebpf, EbpfLoader};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::map_helpers::take_map;
use super::programs_and_pod_maps::{OBJECT, load_object};
use super::{Error, attach, map_error};

/// The agent's own programs, loaded for a trial: this kernel accepts them.
pub struct TrialLoad {
    ebpf: Ebpf,
}

impl TrialLoad {
    /// Has the kernel check all programs. Errors: it refuses one, or lacks something that one needs.
    pub fn load() -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotEmbedded);
        }
        let ebpf = load_object(&mut EbpfLoader::new())?;
        attach::load_pod_identity_prologue(&ebpf, 1)?;
        Ok(Self { ebpf })
    }

    /// Reads a map on a thread without any capability, as a proxy does all the time. Errors: the kernel
    /// refuses that, as those before 5.19 do where `kernel.unprivileged_bpf_disabled` is set (kernel:
    /// `__sys_bpf`).
    pub fn check_unprivileged_map_read(&mut self) -> Result<(), Error> {
        const MAP: &str = "WORKERS";
        let map: Array<MapData, u32> = take_map(&mut self.ebpf, MAP)?;
        let read = move || {
            let none = CapabilitySet::empty();
            // This thread's alone, which ends here.
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .map_err(|error| MapError::IoError(error.into()))?;
            map.get(&0, 0)
        };
        let read = std::thread::spawn(read).join();
        // A panic on that thread counts as a refusal.
        let read = read.unwrap_or(Err(MapError::ElementNotFound));
        read.map(drop).map_err(map_error(MAP))
    }
}
