//! Octets and texts from outside, made of what real ones are made of: no reader panics, runs long
//! or makes much of little, and whatever servers say, each question has one answer. The suite has
//! the same inputs every time, and those that a fuzzer found (`found/`); `DNS_FUZZ` asks for so
//! many others a target.
//!
//! These are made by what is known of the formats. `./x fuzz` looks for more by what they reach.

mod targets;

use dns::message::flag;
use dns::{Config, corefile, parse_response};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use targets::{COREFILE, EVERY_OPTION, PARTS, Said, TARGETS, every_option};

/// Inputs of each target in the suite.
const INPUTS: u32 = 256;

/// What configurations and Corefiles are made of, beside what stands in the samples.
const WORDS: &[&str] = &[
    "",
    "-",
    ".",
    "0",
    "-1",
    "99999999999999999999",
    "1h",
    "5x",
    "10.0.0.0/8",
    "10.0.0.0/99",
    "tls://192.0.2.1",
    "https://[2001:db8::1]:443/x",
    "192.0.2.1:70000",
    "example.org",
    "a..b",
    "{}",
    "[]",
    "{",
    "}",
    "[",
    "(((",
    "(?P<a>",
    "{{ .Name }}",
    "'",
    "\"",
    "true",
    "&a",
    "*a",
    "\t",
    "\u{fffd}",
];

fn config() -> ProptestConfig {
    let usual = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var("DNS_FUZZ") {
        Ok(count) => ProptestConfig { cases: count.parse().expect("a count"), ..usual },
        Err(_) => ProptestConfig { cases: INPUTS, rng_seed: RngSeed::Fixed(1), ..usual },
    }
}

/// Octets made of parts, some of them damaged.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => select(PARTS).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
        1 => (select(PARTS), 1usize..200).prop_map(|(part, times)| part.repeat(times)),
    ];
    let flips = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (proptest::collection::vec(part, 0..12), flips).prop_map(|(parts, flips)| {
        let mut octets = parts.concat();
        for (at, octet) in flips {
            if !octets.is_empty() {
                let at = at.index(octets.len());
                octets[at] = octet;
            }
        }
        octets
    })
}

/// A sample with words put in, left out and doubled.
fn damaged(sample: &'static str) -> impl Strategy<Value = String> {
    let edit = (any::<proptest::sample::Index>(), 0u8..4, select(WORDS));
    proptest::collection::vec(edit, 1..6).prop_map(move |edits| {
        // Spaces stay with the words behind them, since some of them mean something.
        let mut words: Vec<&str> = sample.split_inclusive([' ', '\n']).collect();
        for (at, how, word) in edits {
            let at = at.index(words.len().max(1));
            match how {
                _ if words.is_empty() => {}
                0 => drop(words.remove(at)),
                1 => words.insert(at, word),
                2 => words.insert(at, words[at]),
                _ => words[at] = word,
            }
        }
        words.concat()
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn messages_are_read_or_refused(octets in octets(), over_tcp in any::<bool>(), ruled in any::<bool>()) {
        targets::message(&octets, over_tcp, ruled);
    }

    #[test]
    fn each_question_has_one_answer(
        said in proptest::collection::vec((octets(), any::<bool>(), any::<bool>()), 0..8),
        name in select(&["www.example", "docs.shop.svc.cluster.local", "x.private.example"][..]),
        ruled in any::<bool>(),
    ) {
        let said = said.into_iter().map(|(octets, fails, is_ours)| match fails {
            true => Said::Fails,
            false => Said::Octets { octets, is_ours },
        });
        targets::upstream(said.collect(), name, ruled);
    }

    #[test]
    fn names_are_read_or_refused(text in "[a-zA-Z0-9_.\\\\*\u{0}-\u{ff}-]{0,300}", octets in octets(), at in 0usize..64) {
        targets::name_of(&text);
        targets::name_in(&octets, at);
    }

    #[test]
    fn configurations_are_read_or_refused_with_a_line(text in damaged(EVERY_OPTION)) {
        targets::configuration(&text);
    }

    #[test]
    fn corefiles_are_translated_into_configurations(text in damaged(COREFILE)) {
        targets::corefile_of(&text);
    }

    #[test]
    fn resolver_configurations_are_read(text in "(nameserver|search|options|domain|#|;| |\n|\t|[0-9a-f.:%]{1,9}){0,40}") {
        targets::resolv_conf(&text);
    }
}

/// What a fuzzer found once, in a directory for each target.
#[test]
fn what_was_found_stays_mended() {
    let found = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found");
    let mut inputs = 0;
    for directory in std::fs::read_dir(&found).expect("the directory") {
        let directory = directory.expect("a directory").path();
        let name = directory.file_name().and_then(|name| name.to_str()).expect("a target");
        let target = TARGETS.iter().find(|target| target.name == name).expect(name);
        for file in std::fs::read_dir(&directory).expect("the directory") {
            (target.check)(&std::fs::read(file.expect("a file").path()).expect("reads"));
            inputs += 1;
        }
    }
    assert!(inputs > 0);
}

#[test]
fn the_samples_are_good() {
    assert!(every_option().dns64.is_some());
    for target in TARGETS {
        (target.samples)().iter().for_each(|sample| (target.check)(sample));
    }
    let imported = corefile::import(COREFILE).expect("a Corefile");
    Config::parse(&imported.yaml).expect("a configuration");
    let whole = [PARTS[1], PARTS[4], PARTS[12], PARTS[5], PARTS[16]].concat();
    let whole = [&whole[..6], &[0, 1, 0, 0, 0, 0], &whole[12..]].concat();
    let response = parse_response(&whole).expect("a response");
    assert_eq!((response.answers.len(), response.flags & flag::RESPONSE), (1, flag::RESPONSE));
}
