//! Takes pods into the mesh and lets them go, as their labels say, without touching the pods.

mod enroller;
mod preexisting;
mod taken_for_plain;

pub use enroller::{Enroller, Report, Setup, Statuses};
