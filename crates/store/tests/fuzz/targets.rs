//! What is checked of each input, wherever it comes from: the tests beside it, or a fuzzer that is
//! guided by what its inputs reach (`./x fuzz`, by `examples/fuzz.rs`).

use schema::cel::{Error, Identity, PER_CALL_LIMIT, Program, Type, Value};
use serde_json::json;
use store::registry;
use store::selector::{FieldSelector, LabelSelector};

/// What is checked of any octets, and octets to begin with.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "cel", check: check_cel, samples: || samples(EXPRESSIONS) },
    Target { name: "selector", check: check_selector, samples: || samples(SELECTORS) },
];

/// Expressions that name most of what there is.
pub const EXPRESSIONS: &[&str] = &[
    "self.size <= 3 && self.ratio < 1.5 || !(self.name in ['a', 'b']) ? true : false",
    "self.list.all(x, x > 0) && self.list.exists_one(i, x, i == x) && self.list.map(x, x * 2).sum() > 1",
    "self.map.exists(k, v, k.startsWith('a') && v.matches('^[a-z]+$')) || has(self.absent)",
    "self.map.transformMap(k, v, k + v).size() == 2 && self.set + ['x'] == self.set",
    "self.?absent.orValue('x').split('').join('-').replace('-', '%d').format([1]) == r'\\d'",
    "self.either == 5 || self.either == '5%' || type(self.either) == string",
    "self.when + duration('1h30m') > timestamp('2024-01-01T00:00:00Z') && self.wait.getHours() == 1",
    "quantity('1Gi').add(quantity('500m')).isGreaterThan(quantity('1k')) && isQuantity(self.name)",
    "cidr('10.0.0.0/8').containsIP(ip('10.1.2.3')) && isURL('https://[::1]:80/p?q=%20') && isIP('::1')",
    "[1, 2][?0].optMap(x, x + 1).hasValue() && {'a': 1, ?'b': self.?size}['a'] == -9223372036854775808",
    "'\\u00e9\\x41\\101'.substring(1).indexOf('A', 0) == 0x1F && b'\\xff'.size() == 1u && .5e3 > 1e-1",
];

/// Selectors of labels and of fields.
pub const SELECTORS: &[&str] = &[
    "app=web,tier!=db,env in (prod, test),zone notin (a),ready,!old,size>3,size<9",
    "a==b,x in (),!y/z",
    "metadata.name=web,spec.nodeName!=node1,status.phase==Running",
    "metadata.name=a\\,b\\=c",
];

/// What expressions see.
fn kind() -> Type {
    Type::object([
        ("size", Type::Int),
        ("ratio", Type::Double),
        ("name", Type::String),
        ("absent", Type::String),
        ("either", Type::Dyn),
        ("list", Type::list(Type::Int)),
        ("set", Type::list_of(Type::String, Identity::Value)),
        ("map", Type::map(Type::String, Type::String)),
        ("when", Type::Timestamp),
        ("wait", Type::Duration),
    ])
}

/// An expression is refused with a place in it, or has a value of its type at a bounded cost.
pub fn cel(text: &str) {
    let kind = kind();
    let program = match Program::compile(text, &[("self", kind.clone())]) {
        Ok(program) => program,
        Err(error) => return assert!(error.starts_with("ERROR: <input>:"), "{text:?}: {error}"),
    };
    let object = json!({
        "size": 3, "ratio": 0.5, "name": "web", "either": "5%", "list": [1, 2, 3], "set": ["x", "y"],
        "map": {"a": "b", "app": "web"}, "when": "2024-02-29T00:00:00Z", "wait": "1h",
    });
    let (value, cost) = program.run(&[("self", Value::of(&object, &kind))]);
    match value {
        Ok(value) => {
            assert!(cost <= PER_CALL_LIMIT, "{text:?}: {cost}");
            let is_bool = matches!(value, Value::Bool(_));
            assert!(is_bool || *program.result() != Type::Bool, "{text:?}: {value:?}");
        }
        Err(Error::CostLimit) => assert!(cost > PER_CALL_LIMIT, "{text:?}: {cost}"),
        Err(error @ Error::Failed(_)) => assert!(!error.to_string().is_empty(), "{text:?}"),
    }
}

/// A selector is refused, or matches an object or not.
pub fn selector(text: &str) {
    let object = json!({
        "metadata": {"name": "web", "labels": {"app": "web", "size": "5"}},
        "spec": {"nodeName": "node1"},
    });
    match LabelSelector::parse(text) {
        Ok(selector) if selector.is_empty() => assert!(selector.matches(&object), "{text:?}"),
        Ok(selector) => {
            selector.matches(&object);
        }
        Err(status) => assert_eq!(status.code, 400, "{text:?}"),
    }
    let pods = registry::find("", "v1", "pods").expect("pods");
    match FieldSelector::parse(pods, text) {
        Ok(selector) => {
            selector.matches(&object);
        }
        Err(status) => assert_eq!(status.code, 400, "{text:?}"),
    }
}

fn check_cel(octets: &[u8]) {
    cel(&String::from_utf8_lossy(octets));
}

fn check_selector(octets: &[u8]) {
    selector(&String::from_utf8_lossy(octets));
}

fn samples(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
