//! What a heap full of holes takes, before and after they are given back. One test in a process of
//! its own: nobody else allocates meanwhile.
#![cfg(target_env = "gnu")]

/// Pieces that are freed, each followed by one that is kept.
const PIECES: usize = 8_000;
/// Bytes of a freed piece: no page among several of them holds a kept one, and the allocator maps
/// none of them apart.
const FREED_BYTES: usize = 16 << 10;
const KEPT_BYTES: usize = 32;
/// All of the freed pieces together, and most of them.
const FREED_KB: u64 = (PIECES * FREED_BYTES / 1024) as u64;
const MOST_KB: u64 = FREED_KB / 2;

#[test]
fn holes_between_what_is_kept_are_given_back() {
    let mut freed = Vec::with_capacity(PIECES);
    let mut kept = Vec::with_capacity(PIECES);
    for _ in 0..PIECES {
        freed.push(vec![1_u8; FREED_BYTES]);
        kept.push(vec![1_u8; KEPT_BYTES]);
    }
    let full = resident_kb();
    assert!(full >= FREED_KB, "{full} kB");
    drop(freed);
    let freed = resident_kb();
    assert!(
        full - freed.min(full) < MOST_KB,
        "the allocator keeps them itself: {full}, {freed} kB"
    );
    memory::give_back();
    let given_back = resident_kb();
    assert!(freed - given_back.min(freed) > MOST_KB, "{freed}, then {given_back} kB");
    assert!(kept.iter().all(|piece| piece.iter().all(|byte| *byte == 1)));
}

fn resident_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("our own memory");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
