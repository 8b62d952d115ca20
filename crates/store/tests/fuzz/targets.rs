//! What is checked of each input, wherever it comes from: the tests beside it, or a fuzzer that is
//! guided by what its inputs reach (`./x fuzz`, by `examples/fuzz.rs`).

use schema::cel::{Account, Authorizer, Decision, Question, Target as Asked, Text};
use schema::cel::{Error, Extent, Identity, PER_CALL_LIMIT, Program, Type, Value};
use schema::decode::{self, Read};
use schema::{Message, protobuf};
use serde_json::{Value as Json, json};
use store::selector::{FieldSelector, LabelSelector};
use store::{PatchKind, patch, registry};

/// What is checked of any octets, and octets to begin with.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "cel", check: check_cel, samples: || samples(EXPRESSIONS) },
    Target { name: "selector", check: check_selector, samples: || samples(SELECTORS) },
    Target { name: "json", check: check_json, samples: || samples(OBJECTS) },
    Target { name: "yaml", check: check_yaml, samples: || samples(MANIFESTS) },
    Target { name: "protobuf", check: check_protobuf, samples: encoded },
    Target { name: "patch", check: check_patch, samples: || samples(PATCHES) },
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
    "self.`name` == format.dns1123Label().validate(self.name).orValue(['a'])[0] && semver('v1', true).isLessThan(semver('1.2.3-rc.1'))",
    "self.when.getHours('Europe/Berlin') == self.when.getHours('+01:00') && format.named('uuid').value().validate('').hasValue()",
    "authorizer.serviceAccount('n', 'a').group('').resource('pods').subresource('log').check('get').allowed() || authorizer.path('/x').check('get').reason() == authorizer.requestResource.namespace('n').name('x').check('get').error()",
    "'\\u00e9\\x41\\101'.substring(1).indexOf('A', 0) == 0x1F && b'\\xff'.size() == 1u && .5e3 > 1e-1",
];

/// Selectors of labels and of fields.
pub const SELECTORS: &[&str] = &[
    "app=web,tier!=db,env in (prod, test),zone notin (a),ready,!old,size>3,size<9",
    "a==b,x in (),!y/z",
    "metadata.name=web,spec.nodeName!=node1,status.phase==Running",
    "metadata.name=a\\,b\\=c",
];

/// Objects of the kind that patches change.
pub const OBJECTS: &[&str] = &[
    r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"a":"b"},"finalizers":["x/y"],"creationTimestamp":"2026-11-20T23:12:29Z"},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"500m"}}},{"name":"d"}],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"key":"k"}]}}}}"#,
    r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","name":"b","naem":1},"spec":{"replicas":"x","replicaz":[{}]},"status":null}"#,
];

/// Manifests with what YAML has beside JSON.
pub const MANIFESTS: &[&str] = &[
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: &m {name: web, labels: {a: 'b', c: \"d\\n\"}}\nspec:\n  replicas: 0x3\n  template:\n    metadata: *m\n    spec:\n      containers:\n      - name: c # first\n        args: [yes, ~, 1e3, .inf, 2024-01-01, !!str 5]\n        image: |-\n          long\n          text\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n? complex\n: >\n  folded\n<<: {d: 1}\n",
];

/// Patches of all three kinds.
pub const PATCHES: &[&str] = &[
    r#"[{"op":"test","path":"/spec/replicas","value":3},{"op":"move","from":"/metadata/labels/a","path":"/metadata/labels/b~1c"},{"op":"add","path":"/spec/template/spec/containers/-","value":{"name":"e"}},{"op":"copy","from":"/spec/template","path":"/spec/more"},{"op":"remove","path":"/spec/template/spec/containers/0"},{"op":"replace","path":"","value":{}}]"#,
    r#"{"metadata":{"labels":null,"$deleteFromPrimitiveList/finalizers":["x/y"]},"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"},"template":{"spec":{"$setElementOrder/containers":[{"name":"d"},{"name":"c"}],"containers":[{"name":"c","$patch":"delete"},{"name":"d","ports":[{"containerPort":1,"$patch":"replace"}]}],"tolerations":[{"$patch":"replace"}]}}}}"#,
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

/// Lets everybody read.
struct Readers;

impl Authorizer for Readers {
    fn decide(&self, account: Option<Account<'_>>, question: &Question<'_>) -> Decision {
        let (Question::Path { verb, .. } | Question::Resource { verb, .. }) = question;
        let is_allowed = *verb == "get";
        Decision { is_allowed, reason: format!("{account:?}"), error: String::new() }
    }
}

/// An expression is refused with a place in it, or has a value of its type at a bounded cost.
pub fn cel(text: &str) {
    let kind = kind();
    let variables = [
        ("self", kind.clone()),
        ("authorizer", Type::AUTHORIZER),
        ("authorizer.requestResource", Type::RESOURCE_CHECK),
    ];
    let program = match Program::compile(text, &variables) {
        Ok(program) => program,
        Err(error) => return assert!(error.starts_with("ERROR: <input>:"), "{text:?}: {error}"),
    };
    let object = json!({
        "size": 3, "ratio": 0.5, "name": "web", "either": "5%", "list": [1, 2, 3], "set": ["x", "y"],
        "map": {"a": "b", "app": "web"}, "when": "2024-02-29T00:00:00Z", "wait": "1h",
    });
    program.estimate(&[("self", &Extent::scalar(7, 2))]);
    let [group, resource, subresource, namespace, name] =
        ["apps", "deployments", "", "shop", "web"].map(Text::Given);
    let asked = Asked { group, resource, subresource, namespace, name };
    let (value, cost) = program.run(&[
        ("self", Value::of(&object, &kind)),
        ("authorizer", Value::authorizer(&Readers)),
        ("authorizer.requestResource", Value::resource_check(&Readers, asked)),
    ]);
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

/// The kind of [`OBJECTS`].
fn deployment() -> &'static Message {
    schema::table().kind("apps/v1", "Deployment").expect("a kind")
}

/// What was read has the faults that a second look finds, and none once it is pruned.
fn check_read(read: Read) {
    let message = deployment();
    assert!(read.faults.len() <= decode::MAX_FAULTS);
    let mut value = read.value;
    let unknown = decode::unknown_fields(message, &value);
    assert!(read.faults.len() >= unknown.len(), "{:?} {unknown:?}", read.faults);
    decode::prune_unknown(message, &mut value);
    assert_eq!(decode::unknown_fields(message, &value), Vec::<String>::new(), "{value}");
    if decode::check_types(message, &value).is_ok()
        && let Some(octets) = protobuf::encode(&value)
    {
        protobuf::decode(&octets).expect("what was written is read");
    }
}

fn check_json(octets: &[u8]) {
    let mut format = serde_json::Deserializer::from_slice(octets);
    if let Ok(read) = decode::read(&mut format, Some(deployment())) {
        check_read(read);
    }
}

fn check_yaml(octets: &[u8]) {
    let format = serde_yaml_ng::Deserializer::from_slice(octets);
    if let Ok(read) = decode::read(format, Some(deployment())) {
        check_read(read);
    }
}

/// What is read from octets reads the same when it was written again.
fn check_protobuf(octets: &[u8]) {
    if let Ok(value) = protobuf::decode(octets)
        && let Some(written) = protobuf::encode(&value)
    {
        assert_eq!(protobuf::decode(&written), Ok(value));
    }
}

fn encoded() -> Vec<Vec<u8>> {
    let object = |text: &&str| protobuf::encode(&serde_json::from_str::<Json>(text).ok()?);
    OBJECTS.iter().filter_map(object).collect()
}

/// A patch makes an object or is refused; nothing else.
fn check_patch(octets: &[u8]) {
    let Ok(body) = serde_json::from_slice::<Json>(octets) else { return };
    let old: Json = serde_json::from_str(OBJECTS[0]).expect("an object");
    let deployments = registry::find("apps", "v1", "deployments").expect("a kind");
    for kind in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic] {
        match patch::apply(deployments, kind, &old, &body) {
            Ok(patched) if kind == PatchKind::Json => drop(patched),
            Ok(patched) => assert!(patched.is_object(), "{kind:?} {body}: {patched}"),
            Err(status) => {
                assert!(
                    matches!(status.code, 400 | 413 | 422 | 500),
                    "{kind:?} {body}: {status:?}"
                );
            }
        }
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
