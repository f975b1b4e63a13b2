//! Gives up the proxy's privileges, which are capabilities, before it reads anything.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// Takes all capabilities from the calling thread and those that it starts, for good: none is left in any
/// set, and none can be gained by starting a program. Errors: the kernel refuses, and then nothing may go on.
pub fn drop_all_capabilities() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // The kernel does not know it, or this process may not (`CAP_SETPCAP`): then it is enough that no
            // program can give any.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
