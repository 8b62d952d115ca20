//! Addresses of pods: the allocator, and host-local's directory as its log.
//!
//! [`allocator`] chooses; [`directory`] makes the choice durable in the layout of the reference
//! plugin host-local, so that either can follow the other on a node. [`life`] says which
//! reservations are of the dead, [`fixed`] which addresses a pod insists on, [`pools`] which
//! ranges a node has, and [`explain`] why an address is not free.

pub mod allocator;
pub mod directory;
pub mod explain;
pub mod fixed;
pub mod life;
pub mod pools;
pub mod withheld;

pub use allocator::{Exhausted, Range, RangeError, RangeSet};
pub use directory::{Ask, Directory, Error, REUSE_DELAY_S, Reservation, Reserved};
pub use life::Living;
pub use withheld::{Span, Withheld};
