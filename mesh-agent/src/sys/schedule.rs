//! How soon the kernel lets a worker run.

use std::io;
use std::time::Duration;

/// Asks the kernel for short turns of the processor for the calling thread: it waits less for each, and still gets its
/// share and no more (EEVDF's custom slice, `sched_setattr(2)`, Linux 6.12; older kernels take no notice). A worker does
/// little at a time and others wait for it, so on a busy node this is worth most where it counts, in the tail.
/// The kernel keeps it between 100 µs and 100 ms. Errors: the kernel refuses.
pub fn prefer_short_turns(turn: Duration) -> io::Result<()> {
    // SAFETY: a C structure of integers, for which all zeroes is a value: policy `SCHED_OTHER`, nice 0, no flags.
    #[allow(unsafe_code)]
    let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
    wish.size = u32::try_from(size_of_val(&wish)).unwrap_or(0);
    wish.sched_runtime = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
    let (this_thread, flags) = (0, 0);
    // SAFETY: `wish` is valid for reading as many bytes as its `size` says; the kernel keeps no pointer to it. There is
    // no safe way: no library wraps this call.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, this_thread, &raw const wish, flags) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_it() {
        std::thread::spawn(|| {
            prefer_short_turns(Duration::from_micros(250)).unwrap();
            let state = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
            if let Some(line) = state.lines().find(|line| line.starts_with("se.slice")) {
                assert!(line.ends_with(" 250000"), "{line}");
            }
        })
        .join()
        .unwrap();
    }
}
