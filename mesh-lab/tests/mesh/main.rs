//! The mesh as a whole: real agents and a real control plane on a lab's nodes, real programs in its pods.
//! Needs root.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

mod attacks;
mod certificates;
mod clock;
mod egress;
mod floods;
mod full;
mod garbage;
mod gateway;
mod held;
mod http_routes;
mod inheritance;
mod leftovers;
mod lifetimes;
mod limits;
mod listeners;
mod logs;
mod plaintext;
mod pods;
mod policy;
mod programs;
mod redirects;
mod restarts;
mod same_node;
mod sandboxes;
mod services;
mod sockets;
mod storm;
mod streams;
mod veth;
mod world;
