//! The address allocator, with host-local's directory as its log.
