//! The configuration model of nodemesh.
//!
//! Reading order follows the data: [`kind`] has the kinds that are known, [`manifest`] reads documents,
//! [`resource`] gives them types and checks them, [`compile`] turns them into the [`wire`] types that the
//! control plane serves, and [`plan`] is what the agent and `meshctl` hold and decide with. [`identity`],
//! [`hbone_request`] and [`admin`] are the small vocabularies used throughout, [`persistent_table`] what
//! both sides keep many things in, [`regular_expression`] the expressions that users write.
//!
//! Nothing in here opens a socket or reads a clock.
#![forbid(unsafe_code)]

pub mod admin;
pub mod compile;
pub(crate) mod document;
pub mod hbone_request;
pub mod identity;
pub mod kind;
pub mod manifest;
pub mod persistent_table;
pub mod plan;
pub mod regular_expression;
pub mod resource;
pub mod wire;
