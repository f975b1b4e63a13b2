//! What the kernel is asked of single connections beyond a library's reach. No privilege is needed for it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// From `asm-generic/sockios.h`; the libraries do not name it.
pub const SIOCATMARK: libc::Ioctl = 0x8905;

/// Has tokio tell what a connection is ready for, urgent data included, which its own type does not ask for.
/// Errors: the kernel has no room for it.
pub fn with_urgent(connection: TcpStream) -> io::Result<AsyncFd<TcpStream>> {
    let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
    // SAFETY: a `TcpStream` has one descriptor, which is open as long as it lives; it is moved in here.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(connection, interest) };
    Ok(registered?)
}

/// Whether the next byte that a connection reads is an urgent one: `sockatmark(3)`.
pub fn is_at_mark(connection: &impl AsRawFd) -> io::Result<bool> {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: the descriptor is open for the length of the call, and `at_mark` is valid for writing the
    // integer that the kernel answers with. There is no safe way: no library that we have wraps this.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(connection.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    if result == 0 { Ok(at_mark != 0) } else { Err(io::Error::last_os_error()) }
}

/// The shortest time that a packet of a connection and its acknowledgement took: `tcpi_min_rtt`, Linux 4.9.
/// Zero where it is not known.
pub fn shortest_round_trip(connection: &impl AsRawFd) -> Duration {
    /// Where `struct tcp_info` of `linux/tcp.h` has it, in microseconds; the libraries' ends before.
    const MIN_RTT: usize = 148;
    /// Nothing was acknowledged yet.
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
        let round_trip = shortest_round_trip(&client);
        assert!(!round_trip.is_zero() && round_trip < Duration::from_secs(1), "{round_trip:?}");
        assert_eq!(shortest_round_trip(&listener), Duration::ZERO, "no connection");
    }
}
