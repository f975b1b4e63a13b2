//! Takes pods into the mesh and lets them go, as their labels say, without touching the pods.

mod announced_as_plain_check;
mod enroller;
mod kernel_destinations;
mod preexisting_connection_judge;

pub use enroller::{Enroller, EnrollerSetup, PodStatuses, ReportNotEnrolledFn};
pub use kernel_destinations::KernelDestinations;
