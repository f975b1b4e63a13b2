//! What pods and strangers try in order to get around the mesh, or to use it up.

mod addresses;
mod delayed;
mod probes;
