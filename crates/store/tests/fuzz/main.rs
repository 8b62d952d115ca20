//! Expressions, selectors, objects in all forms and patches from outside, made of what real ones are
//! made of: none panics, runs long, or makes something else than was promised. The suite has the same inputs every time;
//! `STORE_FUZZ` asks for so many others a target. `./x fuzz` looks for more by what they reach.

mod targets;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use targets::{EXPRESSIONS, MANIFESTS, OBJECTS, SELECTORS, TARGETS};

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

/// Names that a Deployment has, that patches have, and others.
const NAMES: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "labels",
    "finalizers",
    "spec",
    "replicas",
    "strategy",
    "rollingUpdate",
    "template",
    "containers",
    "ports",
    "containerPort",
    "tolerations",
    "volumes",
    "emptyDir",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$setElementOrder/finalizers",
    "$deleteFromPrimitiveList/finalizers",
    "other",
];

/// Pointers into a Deployment, and beside it.
const POINTERS: &[&str] = &[
    "",
    "/",
    "/spec",
    "/spec/replicas",
    "/spec/template/spec/containers",
    "/spec/template/spec/containers/0",
    "/spec/template/spec/containers/-",
    "/spec/template/spec/containers/00",
    "/spec/template/spec/containers/9/name",
    "/metadata/labels/a",
    "/metadata/labels/b~1c",
    "/metadata/labels/~2",
    "spec",
];

/// Trees of the names that matter.
fn tree() -> impl Strategy<Value = Value> {
    let texts = ["c", "d", "v", "x/y", "delete", "replace", "merge", "apps/v1", "Deployment", ""];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..90).prop_map(Value::from),
        select(texts.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let members = proptest::collection::vec((select(NAMES), inner.clone()), 0..5);
        prop_oneof![
            1 => proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            3 => members.prop_map(|members| {
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}

/// Operations of a JSON patch.
fn operations() -> impl Strategy<Value = Value> {
    let verbs = ["add", "remove", "replace", "move", "copy", "test", "nope"];
    let operation = (select(verbs.to_vec()), select(POINTERS), select(POINTERS), tree());
    let operation = operation.prop_map(
        |(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}),
    );
    proptest::collection::vec(operation, 0..6).prop_map(Value::from)
}

/// A sample with some octets changed, left out and doubled.
fn octets(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let edit = (any::<proptest::sample::Index>(), 0u8..4, any::<u8>());
    let damaged = (select((target.samples)()), proptest::collection::vec(edit, 0..6));
    damaged.prop_map(|(mut sample, edits)| {
        for (at, how, octet) in edits {
            let at = at.index(sample.len().max(1));
            match how {
                _ if sample.is_empty() => {}
                0 => drop(sample.remove(at)),
                1 => sample.insert(at, octet),
                2 => sample.truncate(at),
                _ => sample[at] = octet,
            }
        }
        sample
    })
}

/// Runs a target by its name.
fn check(name: &str, octets: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    (target.check)(octets);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn objects_in_json_are_read_or_refused(tree in tree(), text in text(OBJECTS)) {
        check("json", tree.to_string().as_bytes());
        check("json", text.as_bytes());
    }

    #[test]
    fn objects_in_yaml_are_read_or_refused(tree in tree(), text in text(MANIFESTS)) {
        check("yaml", serde_yaml_ng::to_string(&tree).expect("YAML").as_bytes());
        check("yaml", text.as_bytes());
    }

    #[test]
    fn objects_in_protobuf_are_read_or_refused(octets in octets("protobuf")) {
        check("protobuf", &octets);
    }

    #[test]
    fn patches_are_applied_or_refused(tree in tree(), operations in operations()) {
        check("patch", tree.to_string().as_bytes());
        check("patch", operations.to_string().as_bytes());
    }

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
