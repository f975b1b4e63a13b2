//! A thread and a runtime for what is to hold up nobody else.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use tokio::runtime;

/// Runs what `start` makes, in a thread of that name with a single-threaded runtime of its own, until it
/// ends. `start` is called on that runtime, and has ended when this returns. `nice` is added to the thread's
/// nice value (`setpriority(2)`): with some, whoever serves traffic goes first where cores are scarce.
///
/// Errors: there is no thread or no runtime, or those of `start`.
pub fn apart<F>(
    name: &str,
    nice: i32,
    start: impl FnOnce() -> io::Result<F> + Send + 'static,
) -> io::Result<JoinHandle<()>>
where
    F: Future<Output = ()> + 'static,
{
    let (started, result) = mpsc::sync_channel(1);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        give_way(nice);
        let begun = runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let serving = {
                let _entered = runtime.enter();
                start()?
            };
            Ok((runtime, serving))
        });
        match begun {
            Ok((runtime, serving)) => {
                // Fails only if whoever started this thread is gone.
                let _ = started.send(Ok(()));
                runtime.block_on(serving);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    result.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended before it had begun")))?;
    Ok(thread)
}

/// Without an id `setpriority` means the thread that calls. Refused, it serves all the same.
fn give_way(nice: i32) {
    if nice > 0 {
        let usual = rustix::process::getpriority_process(None).unwrap_or(0);
        let _as_before = rustix::process::setpriority_process(None, usual.saturating_add(nice));
    }
}
