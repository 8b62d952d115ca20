//! Whether the disk has room for a whole run: without it some compiler or test fails in its middle,
//! and says little of why.

use anyhow::{Context, Result, bail};

use crate::process;

/// What a whole run leaves below `target/`, and some room for what tests write meanwhile. What the
/// compiler keeps for the next change of a source comes on top, where it does (`CARGO_INCREMENTAL`).
const WHOLE_RUN_MIB: u64 = 9 << 10;

/// Looks before the first program is built.
///
/// # Errors
/// When there is less free than a whole run still takes.
pub fn has_room() -> Result<()> {
    let directory = process::root().join("target").display().to_string();
    let built = first_number(&process::output("du", &["-sm", &directory])?)?;
    let free = process::output("df", &["--output=avail", "--block-size=1M", &directory])?;
    judge(built, first_number(&free)?)
}

fn judge(built_mib: u64, free_mib: u64) -> Result<()> {
    let needed_mib = WHOLE_RUN_MIB.saturating_sub(built_mib);
    if free_mib < needed_mib {
        bail!(
            "the disk that has target/ has {free_mib} MiB free, and a whole run takes {needed_mib} \
             MiB more than the {built_mib} MiB that are built: make room; what is left of former \
             versions in target/ goes with `cargo clean`"
        );
    }
    Ok(())
}

/// The first number in a table of numbers, whatever its heading.
fn first_number(text: &str) -> Result<u64> {
    let number = text.split_whitespace().find_map(|word| word.parse().ok());
    number.with_context(|| format!("no number in {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_needs_no_room_any_more() {
        assert!(judge(0, WHOLE_RUN_MIB).is_ok());
        assert!(judge(0, WHOLE_RUN_MIB - 1).is_err());
        assert!(judge(1 << 10, WHOLE_RUN_MIB - (1 << 10)).is_ok());
        assert!(judge(WHOLE_RUN_MIB + 1, 0).is_ok());
        let said = judge(100, 50).expect_err("there is no room").to_string();
        assert!(said.contains("has 50 MiB free") && said.contains("9116 MiB more"), "{said}");
    }

    #[test]
    fn numbers_are_found_below_headings_and_before_names() {
        assert_eq!(first_number("  Avail\n 67918\n").expect("a number"), 67_918);
        assert_eq!(first_number("5238\t/flatnet/target\n").expect("a number"), 5238);
        assert!(first_number("du: nothing").is_err());
    }
}
