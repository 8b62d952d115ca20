//! The heart of the embedded API server: one registry of resources, versioned objects, watch
//! windows, defaulting, validation, patches and admission.
//!
//! The shell carries requests in and what they mean out:
//!
//! 1. [`Store::stage`] runs one write against the head state and answers with the response and
//!    the log [`Record`]s. Later requests of a batch see the earlier ones.
//! 2. The shell makes the records durable, all of a batch in one transaction.
//! 3. [`Store::publish`] makes them visible to [`Store::get`], [`Store::list`] and
//!    [`Store::watch_next`], in revision order; [`Store::discard`] forgets them when step 2 failed.
//!
//! Reads never see what is staged only: a client that saw a revision sees it after a crash too.
//!
//! Pure: no clock, file, socket, thread, environment variable or random source (invariant 9).
//! Time and randomness come in with each request's [`Context`].

pub mod alloc;
pub mod authorize;
pub mod conversion;
pub mod definitions;
pub mod discovery;
mod document;
mod expressions;
pub mod json;
mod kinds;
mod matching;
pub mod metrics;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod policies;
mod read;
pub mod record;
pub mod registry;
pub mod request;
pub mod resource;
pub mod reviews;
pub mod selector;
mod state;
pub mod status;
pub mod table;
mod type_checking;
pub mod validate;
mod watch;
pub mod webhooks;
mod window;
mod write;

pub use definitions::Definitions;
pub use document::Document;
pub use kinds::scheduling::SYSTEM_PRIORITY_CLASSES;
pub use object::Object;
pub use read::{List, ListOptions};
pub use record::{Operation, Record, RestoreError};
pub use request::{
    Action, Context, DeleteOptions, FieldDirective, FieldValidation, PatchKind, Preconditions,
    Propagation, Random, Reply, Request, Staged,
};
pub use resource::{Resource, Subresource};
pub use state::{Published, Store, StoreConfig};
pub use status::Status;
pub use table::Include;
pub use watch::{EventType, WatchEvent, WatchOptions, Watcher};
pub use window::WATCH_WINDOW_EVENTS;
pub use write::{MAX_OBJECT_BYTES, MAX_OBJECT_DEPTH};
