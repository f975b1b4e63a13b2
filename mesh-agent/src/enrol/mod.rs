//! Takes pods into the mesh and lets them go, as their labels say, without touching the pods.

mod enroller;
mod known_destinations;
mod plaintext_check;
mod preexisting_connections;

pub use enroller::{Enroller, EnrollerSetup, PodStatuses, ReportNotEnrolledFn};
pub use known_destinations::KnownDestinations;
