//! Choosing an endpoint. The candidates and the policy come with the plan; here is only what changes from one
//! connection to the next: turns, counts and health.

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
