//! A YAML or JSON document, before it is known what it is: values that remember their line, and what is wrong
//! with them. Knows nothing of kinds.
//!
//! Reading order: `split` cuts a text into documents, `tree` parses one of them (`scalar` says what a plain
//! word is, `merge` puts merge keys in place), `list` takes lists apart, `cursor` walks strict kinds field by
//! field and `suggest` finds what was probably meant.

pub(crate) mod cursor;
pub(crate) mod error;
pub(crate) mod list;
mod merge;
mod scalar;
pub(crate) mod split;
pub(crate) mod suggest;
pub(crate) mod tree;
