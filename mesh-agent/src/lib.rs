//! The node agent of nodemesh.
#![deny(unsafe_code)]

pub mod admin;
pub mod check;
pub mod config;
pub mod control;
pub mod enrol;
pub mod identity;
pub mod pods;
pub mod proxy;
pub mod sys;
pub mod telemetry;
