//! How the kernel schedules the proxy's threads.

use std::io;

/// Time slice, nanoseconds: a worker does less than this for one connection. The kernel's own is 1.4 ms on
/// two cores, and 2.8 ms on many.
const TURN: u64 = 300_000;

/// Asks for short time slices, for the calling thread and those that it starts: as much time as any thread
/// has, in more and shorter slices, each so much sooner. If more threads want to run than there are cores,
/// clients wait less for the proxy (`Documentation/scheduler/sched-eevdf.rst` of the kernel: a slice by
/// `sched_setattr(2)`).
///
/// Before Linux 6.12 it changes nothing. Errors: the kernel refuses, and time slices stay as they were.
pub fn request_short_time_slices() -> io::Result<()> {
    let mut wanted = attributes()?;
    wanted.sched_runtime = TURN;
    // SAFETY: the kernel reads a structure that it has filled itself; its size is a field. There is no safe
    // way: neither rustix nor the standard library has the call.
    #[allow(unsafe_code)]
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the calling thread's scheduling attributes.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: numbers only, for which zeros are values.
    #[allow(unsafe_code)]
    let mut own: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size that it is told, which is the structure's. No safe way, as
    // above.
    #[allow(unsafe_code)]
    let asked = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut own, size_of_val(&own), 0) };
    if asked == 0 { Ok(own) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_what_their_creator_asked_for() {
        std::thread::spawn(|| {
            request_short_time_slices().unwrap();
            let of_a_worker = std::thread::spawn(|| attributes().unwrap().sched_runtime).join().unwrap();
            // Kernels before 6.12 tell zero.
            assert!([0, TURN].contains(&of_a_worker), "{of_a_worker}");
        })
        .join()
        .unwrap();
    }
}
