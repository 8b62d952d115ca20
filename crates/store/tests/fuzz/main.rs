//! Expressions and selectors from outside, made of what real ones are made of: none panics, runs
//! long, or has a value of another type than was promised. The suite has the same inputs every time;
//! `STORE_FUZZ` asks for so many others a target. `./x fuzz` looks for more by what they reach.

mod targets;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use targets::{EXPRESSIONS, SELECTORS, TARGETS};

/// Inputs of each target in the suite.
const INPUTS: u32 = 2_000;

/// What expressions and selectors are made of, beside what stands in the samples.
const PARTS: &[&str] = &[
    "",
    " ",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "[?",
    ".?",
    "?",
    ":",
    ",",
    ".",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "&&",
    "||",
    "==",
    "!=",
    "<",
    ">=",
    " in ",
    "=",
    " notin ",
    "self",
    "self.size",
    "self.list",
    "self.map",
    "self.either",
    "self.absent",
    "x",
    "true",
    "null",
    "1",
    "0",
    "-1",
    "9223372036854775807",
    "1u",
    "0.5",
    "1e308",
    "''",
    "'a'",
    "'%'",
    "'('",
    "b'\\xff'",
    "'\u{e9}'",
    "\"\\",
    "[1]",
    "{'a': 1}",
    "[[]]",
    ".size()",
    ".map(x, x)",
    ".all(x, x > 0)",
    ".filter(x, ",
    "has(self.name)",
    "dyn(",
    "int(",
    "string(",
    "type(",
    "duration('1h')",
    "timestamp('2024-01-01')",
    "quantity('1E')",
    "ip('::1')",
    "cidr('::/0')",
    "url('/a')",
    "optional.none()",
    ".orValue(",
    ".substring(",
    ".replace('', ",
    ".split(",
    ".format(",
    ".matches(",
    ".indexOf(",
    ".join()",
    ".max()",
    ".sum()",
    ".isSorted()",
    "//",
    "\n",
    "\u{0}",
    "'''",
    "r'",
    "0x",
    "if",
];

fn config() -> ProptestConfig {
    let usual = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var("STORE_FUZZ") {
        Ok(count) => ProptestConfig { cases: count.parse().expect("a count"), ..usual },
        Err(_) => ProptestConfig { cases: INPUTS, rng_seed: RngSeed::Fixed(1), ..usual },
    }
}

/// Parts one after the other, or a sample with parts put in, left out and doubled.
fn text(samples: &'static [&'static str]) -> impl Strategy<Value = String> {
    let edit = (any::<proptest::sample::Index>(), 0u8..4, select(PARTS));
    let damaged = (select(samples), proptest::collection::vec(edit, 0..5));
    prop_oneof![
        1 => proptest::collection::vec(select(PARTS), 0..12).prop_map(|parts| parts.concat()),
        2 => damaged.prop_map(|(sample, edits)| {
            let is_end = |one: char| !one.is_alphanumeric();
            let mut words: Vec<&str> = sample.split_inclusive(is_end).collect();
            for (at, how, part) in edits {
                let at = at.index(words.len().max(1));
                match how {
                    _ if words.is_empty() => {}
                    0 => drop(words.remove(at)),
                    1 => words.insert(at, part),
                    2 => words.insert(at, words[at]),
                    _ => words[at] = part,
                }
            }
            words.concat()
        }),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn expressions_are_evaluated_or_refused(text in text(EXPRESSIONS)) {
        targets::cel(&text);
    }

    #[test]
    fn selectors_are_read_or_refused(text in text(SELECTORS)) {
        targets::selector(&text);
    }
}

#[test]
fn the_samples_are_good() {
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(!samples.is_empty(), "{}", target.name);
        samples.iter().for_each(|sample| (target.check)(sample));
    }
}
