//! Addresses of pods: the allocator, and host-local's directory as its log.
//!
//! [`allocator`] chooses; [`directory`] makes the choice durable in the layout of the reference
//! plugin host-local, so that either can follow the other on a node.

pub mod allocator;
pub mod directory;

pub use allocator::{Exhausted, Range, RangeError, RangeSet};
pub use directory::{Directory, Error, Reservation, Reserved};
