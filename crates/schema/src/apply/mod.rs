//! Server-side apply: who owns which field (KEP-555), with the merge of structured-merge-diff.

mod entries;
mod managers;
mod set;
mod walk;

pub use entries::{MAX_UPDATE_MANAGERS, decode, encode, limit};
pub use managers::{Applied, Conflict, Manager, Managers, Operation, Owned, apply, still, update};
pub use set::Set;
pub use walk::{MAX_PROBLEMS, problems};
