//! What signals do to this process: those to stop come as a descriptor to read, since a keeper waits for
//! other things as well; a proxy gets them as usual, and ends with its keeper.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Signal, set_parent_process_death_signal};

/// `SIGTERM` and `SIGINT`, blocked from now on and read from here (`signalfd(2)`).
#[derive(Debug)]
pub struct StopSignals(OwnedFd);

impl StopSignals {
    /// Blocks the signals on the calling thread, and on those that it starts. Errors: those of `signalfd(2)`.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set before anything reads it, the signals are valid, and the
        // pointers are to a local that outlives the calls. The descriptor is a new one that nobody else owns.
        // There is no safe way: no library that we have wraps signalfd.
        #[allow(unsafe_code)]
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Self(OwnedFd::from_raw_fd(descriptor))),
            }
        }
    }

    /// Whether one has come since the last call.
    pub fn take_received(&self) -> bool {
        /// Bytes of `struct signalfd_siginfo`.
        const LENGTH: usize = 128;
        let mut information = [0; LENGTH];
        rustix::io::read(&self.0, &mut information).is_ok_and(|length| length == LENGTH)
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Unblocks all signals, which a program that a keeper started inherits as blocked. Errors: the kernel's.
pub fn unblock_all_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set before anything reads it, and it outlives the calls. There is
    // no safe way: no library that we have wraps it.
    #[allow(unsafe_code)]
    let failed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

/// Has the kernel kill this process when the thread that started it ends: a proxy's keeper. Errors: the
/// kernel's.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}
