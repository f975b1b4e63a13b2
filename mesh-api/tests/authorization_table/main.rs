//! The tables of Istio's API about who may talk to whom, row by row: manifests are parsed, compiled, sent
//! through a store as an agent does, and connections are put to the evaluator.
//!
//! A module is a table, a test is a row.

mod attachment;
mod conditions;
mod http;
mod matching;
mod mesh;
mod mutual_tls;
mod order;
