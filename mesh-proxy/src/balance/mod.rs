//! Choosing an endpoint of a service: session affinity, ejected endpoints, connection limits, and the
//! [`Picker`]. Candidates and policy come with the plan; this module keeps what changes from one connection
//! to the next.

mod affinity;
#[cfg(test)]
mod fixture;
mod health;
mod left_out;
mod limit;
mod picker;

pub use affinity::{Affinity, Client as AffinityClient};
pub use health::Health;
pub use left_out::LeftOut;
pub use limit::{Limits, Slot};
pub use picker::{Active, Pick, Picker, Picks};
