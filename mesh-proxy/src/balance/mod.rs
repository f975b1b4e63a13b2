//! Choosing an endpoint. The candidates and the policy come with the plan; here is only what changes from one
//! connection to the next: turns, counts and health.

mod affinity;
mod health;
mod limit;
mod picker;

pub use affinity::{Affinity, Client as AffinityClient};
pub use health::Health;
pub use limit::{Limits, Slot};
pub use picker::{Active, Picker};
