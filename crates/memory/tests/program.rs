//! What a program takes that was read whole, before and after it let go of its pages. One test in a
//! process of its own: nobody else reads meanwhile.

/// Constants of 4 MB that no other object has.
static CONSTANTS: [u8; 4 << 20] = [7; 4 << 20];
const CONSTANTS_KB: u64 = 4 << 10;

#[test]
fn a_program_lets_go_of_what_it_read_and_reads_it_again() {
    let sum = || CONSTANTS.iter().map(|byte| u64::from(std::hint::black_box(*byte))).sum::<u64>();
    let before = sum();
    let full = resident_kb();
    assert!(full >= CONSTANTS_KB, "{full} kB");
    memory::let_go();
    let left = resident_kb();
    assert!(left + CONSTANTS_KB / 2 < full, "{full}, then {left} kB");
    assert_eq!(sum(), before);
    assert!(resident_kb() >= CONSTANTS_KB, "it was read again");
}

fn resident_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("our own memory");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
