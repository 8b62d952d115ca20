//! Pages of the program itself.
#![allow(unsafe_code)] // calls that nix does not wrap, or not safely

use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Lets go of all pages of the program that are only read: code and constants. They stay in the
/// page cache, as far as the machine has room; what is read again is mapped again from there.
pub fn let_go() {
    let mut segments: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is called during this call alone, and gets the pointer that stands here.
    unsafe {
        libc::dl_iterate_phdr(Some(note_program), (&raw mut segments).cast());
    }
    for segment in segments {
        // SAFETY: the pages of a segment that is never written have no content but the file's, which
        // nobody can write while it runs; the loader mapped exactly these.
        unsafe {
            libc::madvise(segment.start as *mut c_void, segment.len(), libc::MADV_DONTNEED);
        }
    }
}

/// Notes the segments of the first object, which is the program, that nothing writes into. What the
/// loader writes into and then protects (RELRO) is part of a segment that can be written.
unsafe extern "C" fn note_program(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    segments: *mut c_void,
) -> c_int {
    // SAFETY: the C library gives a valid object with its headers; `segments` is that of `let_go`.
    let (base, headers, segments) = unsafe {
        let object = &*object;
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        (object.dlpi_addr as usize, headers, &mut *segments.cast::<Vec<Range<usize>>>())
    };
    let is_only_read = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    segments.extend(headers.iter().filter(is_only_read).map(|header| {
        let start = base + header.p_vaddr as usize;
        start & !(PAGE_BYTES - 1)..start + header.p_memsz as usize
    }));
    1
}

/// The least size of a page, and so what segments of programs are aligned to at least.
const PAGE_BYTES: usize = 4096;
