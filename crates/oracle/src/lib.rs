//! The meaning of the Kubernetes API, read directly: what becomes of one packet, what one name
//! answers.
//!
//! Written apart from `plan` on purpose, and as slow and plain as it likes: it searches the objects
//! anew for every question. Whatever `plan`, `render` and the kernel do together must agree with it
//! (invariant 13).
//!
//! Pure (invariant 9).

pub mod name;
pub mod service;
