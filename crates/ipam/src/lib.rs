//! Addresses of pods: the allocator, and host-local's directory as its log.
//!
//! [`allocator`] chooses; [`directory`] makes the choice durable in the layout of the reference
//! plugin host-local, so that either can follow the other on a node. [`life`] says which
//! reservations are of the dead.

pub mod allocator;
pub mod directory;
pub mod life;
pub mod withheld;

pub use allocator::{Exhausted, Range, RangeError, RangeSet};
pub use directory::{Ask, Directory, Error, REUSE_DELAY_S, Reservation, Reserved};
pub use life::Living;
pub use withheld::{Span, Withheld};
