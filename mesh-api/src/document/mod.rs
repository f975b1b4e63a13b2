//! A YAML or JSON document, before it is known what it is: values that remember their line, and what is wrong
//! with them. Knows nothing of kinds.
//!
//! Reading order: `split_documents` cuts a text into documents, `yaml_tree` parses one of them (`yaml_scalar`
//! says what a plain word is, `merge_keys` puts merge keys in place), `list_items` takes lists apart,
//! `cursor` walks strict kinds field by field and `nearest_word` finds what was probably meant.

pub(crate) mod cursor;
pub(crate) mod list_items;
pub(crate) mod manifest_error;
mod merge_keys;
pub(crate) mod nearest_word;
pub(crate) mod split_documents;
mod yaml_scalar;
pub(crate) mod yaml_tree;
