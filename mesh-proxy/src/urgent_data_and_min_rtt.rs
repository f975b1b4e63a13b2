//! System calls on single connections that no library wraps. They need no privilege.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Request number of `asm-generic/sockios.h`, which the libraries do not have.
pub const SIOCATMARK: libc::Ioctl = 0x8905;

/// Registers a connection with tokio for urgent data too, which tokio's own type does not. Errors: the kernel
/// has no room for it.
pub fn async_fd_with_urgent(connection: TcpStream) -> io::Result<AsyncFd<TcpStream>> {
    let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
    // SAFETY: a `TcpStream` has one descriptor, which is open as long as it lives; it is moved in here.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(connection, interest) };
    Ok(registered?)
}

/// Whether the next byte to be read is an urgent one (`sockatmark(3)`). Errors: those of `ioctl(2)`.
pub fn is_at_urgent_mark(connection: &impl AsRawFd) -> io::Result<bool> {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: the descriptor is open for the length of the call, and `at_mark` is valid for writing the
    // integer that the kernel answers with. There is no safe way: no library that we have wraps this.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(connection.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    if result == 0 { Ok(at_mark != 0) } else { Err(io::Error::last_os_error()) }
}

/// Returns the shortest time between a packet and its acknowledgement (`tcpi_min_rtt`, Linux 4.9); zero where
/// it is not known.
pub fn min_rtt(connection: &impl AsRawFd) -> Duration {
    /// Offset in `struct tcp_info` of `linux/tcp.h`, where it is in microseconds; the libraries' structures
    /// end before.
    const MIN_RTT: usize = 148;
    /// Value where nothing was acknowledged yet.
    const NONE: u32 = u32::MAX;
    let mut info = [0; MIN_RTT + 4];
    let Ok(mut length) = libc::socklen_t::try_from(info.len()) else { return Duration::ZERO };
    // SAFETY: the descriptor is open for the length of the call, `info` is valid for writing the `length`
    // bytes that the kernel is told of, and `length` itself is. There is no safe way: no library reads as
    // much.
    #[allow(unsafe_code)]
    let result = unsafe {
        let (info, length) = (info.as_mut_ptr().cast(), &raw mut length);
        libc::getsockopt(connection.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, length)
    };
    if result != 0 {
        return Duration::ZERO;
    }
    let [.., a, b, c, d] = info;
    let known = Some(u32::from_ne_bytes([a, b, c, d])).filter(|shortest| *shortest != NONE);
    known.map_or(Duration::ZERO, |shortest| Duration::from_micros(shortest.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_how_far_a_peer_is() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let round_trip = min_rtt(&client);
        assert!(!round_trip.is_zero() && round_trip < Duration::from_secs(1), "{round_trip:?}");
        assert_eq!(min_rtt(&listener), Duration::ZERO, "no connection");
    }
}
