//! What the C library's allocator can be told.
#![allow(unsafe_code)] // calls that nix does not wrap

/// Gives all whole pages back that lie free in the heap, wherever they are. Elsewhere than with the
/// GNU C library nothing is done.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches free pages alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
