//! The fields of the Kubernetes API as one table, and what follows from it alone: strict
//! decoding, protobuf, server-side apply and OpenAPI.
//!
//! The table (`fields.txt`) is made by `cargo xtask fields` from the published definitions of
//! Kubernetes 1.33. Objects stay JSON trees; the table says what a tree may hold.
//!
//! Pure: trees, texts and bytes in, trees, bytes and problems out (invariant 9).

pub mod apply;
pub mod cel;
pub mod decode;
pub mod names;
pub mod openapi;
pub mod protobuf;
pub mod structural;
mod table;

pub use table::{Field, Message, Relation, Table, Type, table};
