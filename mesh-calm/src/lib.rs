//! What a peer may have us do without a use to anybody: bounded, whatever it sends.
//!
//! HTTP/2 has many frames that carry no data and still cost something (PRIORITY, `WINDOW_UPDATE`, PING,
//! SETTINGS, empty DATA, CONTINUATION, streams that are reset at once, kinds that nobody knows). The library
//! that reads them takes as many in one poll as have arrived, so a flood holds up whoever shares the thread.
//! Hence bounds:
//!
//! - *A turn*: [`Guarded`] stands between TLS and HTTP/2, looks at the header of each frame as it passes, and
//!   lets through so much work at a time; then other tasks run ([`turn`]).
//! - *Patience*: frames without data cost points, and data, answers and time give them back ([`Patience`],
//!   [`price`]). Who has none left is told `ENHANCE_YOUR_CALM` (RFC 9113, sections 7 and 10.5) and cut off.
//! - *Barren bytes*: TLS records without data are counted below all of that ([`BarrenBytes`]).
//!
//! All are by connection and need no memory beyond it. [`Patience`] and [`turn::Turn`] are of use to other
//! framings as well.
#![forbid(unsafe_code)]

mod barren;
mod guarded;
pub mod head;
mod patience;
pub mod price;
pub mod turn;

pub use barren::BarrenBytes;
pub use guarded::{FLOOD, Flood, Guarded, Trial};
pub use patience::Patience;
pub use price::Role;
