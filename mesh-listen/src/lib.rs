//! What listens, bounded: in count, time, bytes, and share of each address.
//!
//! - [`Places`] is the accounting alone, without sockets: who may come in, and who has to go for it.
//! - [`Gate`] is the same for tasks: a [`Place`] for each connection, given back when it is dropped, which
//!   says when it is to end.
//! - [`http`] serves HTTP/1 within a gate: heads, idle connections and readers have their time, and answers
//!   that nobody reads hold a bounded amount of memory.
//! - [`ExhaustionBackoff`] and [`is_of_one_connection`] are for accept loops: how long to pause when the
//!   kernel can't accept, and when not to.
//! - [`Readers`] says who may read metrics.
//! - [`Listeners`] tells Prometheus what became of connections.
//! - [`apart`] runs a server in a thread and a runtime of its own.
//!
//! A listener that speaks something else takes the first two:
//!
//! ```
//! # use mesh_listen::{Bounds, Gate, Group, Standing};
//! # async fn handshake(_: tokio::net::TcpStream) -> Option<()> { None }
//! # async fn serve(_: ()) {}
//! # async fn example(listener: tokio::net::TcpListener) -> std::io::Result<()> {
//! let gate = Gate::new(Bounds { total: 1024, each: 64 });
//! loop {
//!     let (socket, address) = listener.accept().await?;
//!     // Full of connections that have proved who they are: the newcomer is refused.
//!     let Some(place) = gate.enter(Group::of(address.ip())) else { continue };
//!     tokio::spawn(async move {
//!         let proved = tokio::select! {
//!             proved = handshake(socket) => proved,
//!             // A newcomer needs the place. (A time for the handshake belongs here as well.)
//!             () = place.evicted() => None,
//!         };
//!         let Some(peer) = proved else { return };
//!         place.stand(Standing::Proven);
//!         // The place is held as long as the connection is.
//!         serve(peer).await;
//!     });
//! }
//! # }
//! ```
#![forbid(unsafe_code)]

mod accept;
mod apart;
mod exhaustion;
mod gate;
pub mod http;
mod listeners;
mod peer;
mod places;
mod readers;

pub use accept::Accept;
pub use apart::apart;
pub use exhaustion::{ExhaustionBackoff, is_of_one_connection};
pub use gate::{Counts, Gate, Place};
pub use listeners::Listeners;
pub use peer::{Group, Peer};
pub use places::{Bounds, Entry, PlaceId, Places, Standing};
pub use readers::Readers;
