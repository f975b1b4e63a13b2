//! Taking pods into the mesh and letting them go, as their labels say, without touching them.

mod enroller;
mod preexisting;
mod taken_for_plain;

pub use enroller::{Enroller, Report, Setup, Statuses};
