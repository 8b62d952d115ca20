//! The DNS worker.
