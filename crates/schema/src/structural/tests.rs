use serde_json::json;

use super::*;
use crate::decode::{prune_unknown, unknown_fields};

fn widget() -> Value {
    json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 10},
                    "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                    "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                    "when": {"type": "string", "format": "date-time"},
                    "port": {"x-kubernetes-int-or-string": true},
                    "tags": {"type": "array", "x-kubernetes-list-type": "set",
                             "items": {"type": "string"}, "maxItems": 3},
                    "ports": {"type": "array", "x-kubernetes-list-type": "map",
                              "x-kubernetes-list-map-keys": ["port"],
                              "items": {"type": "object", "required": ["port"], "properties": {
                                  "port": {"type": "integer"},
                                  "protocol": {"type": "string", "default": "TCP"}}}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "maybe": {"type": "string", "nullable": true, "default": "x"},
                    "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                               "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                    "resource": {"type": "object", "x-kubernetes-embedded-resource": true,
                                 "x-kubernetes-preserve-unknown-fields": true},
                },
            },
        },
    })
}

fn faults(spec: Value) -> Vec<String> {
    let object = json!({"spec": spec});
    let faults = Schema::compile(&widget()).validate(&object, "");
    faults.into_iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[test]
fn an_object_is_judged_in_the_words_of_the_real_server() {
    let cases = [
        (json!({"size": 3}), ""),
        (json!({}), "spec.size: Required value"),
        (
            json!({"size": "3"}),
            r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
        ),
        (
            json!({"size": null}),
            r#"spec.size: Invalid value: "null": spec.size in body must be of type integer: "null""#,
        ),
        (
            json!({"size": 0}),
            "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        ),
        (
            json!({"size": 11}),
            "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
        ),
        (
            json!({"size": 1, "color": "green"}),
            r#"spec.color: Unsupported value: "green": supported values: "red", "blue""#,
        ),
        (
            json!({"size": 1, "name": "A"}),
            r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]+$'"#,
        ),
        (json!({"size": 1, "name": "abcdef"}), "spec.name: Too long: may not be more than 5 bytes"),
        (
            json!({"size": 1, "when": "soon"}),
            r#"spec.when: Invalid value: "soon": spec.when in body must be of type date-time: "soon""#,
        ),
        (json!({"size": 1, "port": "http"}), ""),
        (
            json!({"size": 1, "port": true}),
            r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
        ),
        (json!({"size": 1, "tags": ["a", "b", "a"]}), r#"spec.tags[2]: Duplicate value: "a""#),
        (
            json!({"size": 1, "tags": ["a", "b", "c", "d"]}),
            "spec.tags: Too many: 4: must have at most 3 items",
        ),
        (
            json!({"size": 1, "ports": [{"port": 1}, {"port": 1, "protocol": "UDP"}]}),
            r#"spec.ports[1]: Duplicate value: {"port":1}"#,
        ),
        (
            json!({"size": 1, "labels": {"a": 1}}),
            r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#,
        ),
        (json!({"size": 1, "maybe": null, "either": {"a": "1"}}), ""),
        (
            json!({"size": 1, "either": {"a": "1", "b": "2"}}),
            r#"<nil>: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ),
        (
            json!({"size": 1, "resource": {"kind": "Pod"}}),
            "spec.resource.apiVersion: Required value: must not be empty",
        ),
    ];
    for (spec, expected) in cases {
        let expected: Vec<&str> = [expected].into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(faults(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn faults_of_one_object_are_bounded() {
    let ports: Vec<Value> = (0..500).map(|_| json!({"port": "x"})).collect();
    assert_eq!(faults(json!({"size": 1, "ports": ports})).len(), MAX_FAULTS);
}

#[test]
fn defaults_are_filled_in_at_every_level() {
    let mut object =
        json!({"spec": {"size": 1, "ports": [{"port": 80}], "color": null, "maybe": null}});
    Schema::compile(&widget()).fill(&mut object);
    let expected = json!({"spec": {
        "size": 1, "color": "red", "maybe": null, "ports": [{"port": 80, "protocol": "TCP"}],
    }});
    assert_eq!(object, expected);
}

#[test]
fn unknown_fields_go_where_the_schema_does_not_keep_them() {
    let message = message("Widget", Box::leak(Box::new(widget())));
    let mut object = json!({
        "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "w", "labelz": {}},
        "extra": 1,
        "spec": {
            "size": 1, "sise": 2, "labels": {"any": "key"}, "free": {"any": {"thing": 1}},
            "ports": [{"port": 1, "x": 1}],
            "resource": {"apiVersion": "v1", "kind": "Pod", "metadata": {"x": 1}, "spec": {}},
        },
    });
    let expected = [
        r#"unknown field "extra""#,
        r#"unknown field "metadata.labelz""#,
        r#"unknown field "spec.ports[0].x""#,
        r#"unknown field "spec.resource.metadata.x""#,
        r#"unknown field "spec.sise""#,
    ];
    assert_eq!(unknown_fields(&message, &object), expected);
    prune_unknown(&message, &mut object);
    let kept = json!({
        "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {
            "size": 1, "labels": {"any": "key"}, "free": {"any": {"thing": 1}},
            "ports": [{"port": 1}],
            "resource": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}},
        },
    });
    assert_eq!(object, kept);
}

#[test]
fn what_is_not_structural_is_refused() {
    assert_eq!(check(&widget(), "s"), []);
    let field = |schema: Value| json!({"type": "object", "properties": {"f": schema}});
    let cases = [
        (json!({}), "s.type: Required value: must not be empty at the root"),
        (
            json!({"type": "string"}),
            "s.type: Invalid value: \"string\": must be object at the root",
        ),
        (
            field(json!({})),
            "s.properties[f].type: Required value: must not be empty for specified object fields",
        ),
        (
            field(json!({"type": "array", "items": {}})),
            "s.properties[f].items.type: Required value: must not be empty for specified array items",
        ),
        (field(json!({"type": "text"})), "s.properties[f].type: Unsupported value: \"text\""),
        (
            field(json!({"type": "string", "pattern": "("})),
            "s.properties[f].pattern: Invalid value: \"(\": must be a valid regular expression",
        ),
        (
            field(json!({"type": "string", "default": 1})),
            "s.properties[f].default: Invalid value: \"integer\": s.properties[f].default in body must be of type string",
        ),
        (
            field(json!({"type": "object", "anyOf": [{"type": "object"}]})),
            "s.properties[f].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            field(json!({"type": "string", "$ref": "#/x"})),
            "s.properties[f].$ref: Forbidden: $ref is not supported",
        ),
        (
            field(
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}),
            ),
            "s.properties[f].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
    ];
    for (schema, expected) in cases {
        let faults = check(&schema, "s");
        let told = faults.first().map(|fault| format!("{}: {}", fault.field, fault.message));
        assert!(told.as_ref().is_some_and(|told| told.starts_with(expected)), "{told:?}");
        assert_eq!(faults.len(), 1, "{faults:?}");
    }
}

#[test]
fn a_schema_without_end_is_refused() {
    let deep = (0..MAX_SCHEMA_DEPTH + 5).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "object", "properties": {"f": inner}}),
    );
    let told = check(&deep, "s");
    assert!(told.iter().any(|fault| fault.message.contains("at most 64 levels")), "{told:?}");
    let pattern = json!({"type": "object", "properties": {
        "f": {"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}"},
    }});
    assert_eq!(check(&pattern, "s").len(), 1);
}

#[test]
fn formats_are_checked() {
    for (name, good, bad) in [
        ("date", "2026-11-20", "2026-13-20"),
        ("byte", "AAE=", "=="),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
        ("ipv4", "10.0.0.1", "10.0.0"),
        ("ipv6", "fd00::1", "fd00"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "02:00:00:00:00:01", "02:00"),
        ("hostname", "a.example.org", "-a"),
        ("email", "a@example.org", "a"),
        ("uri", "https://example.org/a", "no uri"),
        ("duration", "1h30m", "1x"),
    ] {
        assert!(format::fits(name, good), "{name} {good}");
        assert!(!format::fits(name, bad), "{name} {bad}");
    }
    assert!(format::fits("unknown", "anything"));
}

/// A schema with rules in all places.
fn ruled() -> Value {
    json!({
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.metadata.name.size() < 10", "message": "the name is too long"},
            {"rule": "!has(self.spec) || self.kind == 'Widget'"},
        ],
        "properties": {"spec": {
            "type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "fieldPath": ".min", "reason": "FieldValueForbidden",
                 "messageExpression": "string(self.min) + ' is more than ' + string(self.max)"},
            ],
            "properties": {
                "min": {"type": "integer", "x-kubernetes-validations": [
                    {"rule": "self >= oldSelf", "message": "may not shrink"}]},
                "max": {"type": "integer"},
                "class": {"type": "string", "x-kubernetes-validations": [
                    {"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true}]},
                "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [
                    {"rule": "type(self) == int ? self < 100 : self.endsWith('%')"}]},
                "items": {
                    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "maxItems": 10,
                    "items": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string", "maxLength": 63},
                        "size": {"type": "integer", "x-kubernetes-validations": [
                            {"rule": "self == oldSelf", "message": "fixed"}]}}},
                },
                "labels": {"type": "object", "additionalProperties": {
                    "type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 4"}]}},
                "slow": {"type": "array", "maxItems": 100, "items": {"type": "integer"}, "x-kubernetes-validations": [
                    {"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"},
                    {"rule": "self.size() < 1"}]},
            },
        }},
    })
}

/// What the rules say of a spec, and of its change.
fn ruled_faults(spec: Value, old: Option<Value>) -> Vec<String> {
    let object = |spec| json!({"kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let mut tree = ruled();
    assert_eq!(check(&tree, "schema"), []);
    tree["properties"]["spec"]["nullable"] = true.into();
    let schema = Schema::compile(&tree);
    let faults = schema.validate_rules(&object(spec), old.map(object).as_ref());
    faults.into_iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[test]
fn rules_judge_objects_in_the_words_of_the_real_server() {
    let cases = [
        (json!({"min": 1, "max": 2}), ""),
        (Value::Null, ""),
        (json!({"min": 2, "max": 1}), "spec.min: Forbidden: 2 is more than 1"),
        (
            json!({"min": 2}),
            r#"spec: Invalid value: "object": no such key: max evaluating rule: self.min <= self.max"#,
        ),
        (
            json!({"min": 1, "max": 2, "port": 100}),
            r#"spec.port: Invalid value: "": failed rule: type(self) == int ? self < 100 : self.endsWith('%')"#,
        ),
        (json!({"min": 1, "max": 2, "port": "5%"}), ""),
        (
            json!({"min": 1, "max": 2, "labels": {"a": "123", "b.c": "1234"}}),
            r#"spec.labels[b.c]: Invalid value: "string": failed rule: self.size() < 4"#,
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(ruled_faults(spec.clone(), None).join("; "), expected, "{spec}");
    }
    let schema = Schema::compile(&ruled());
    let object = json!({"kind": "Other", "metadata": {"name": "w".repeat(10)}, "spec": {"min": 1, "max": 1}});
    let faults = schema.validate_rules(&object, None);
    let faults: Vec<String> =
        faults.into_iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
    assert_eq!(
        faults,
        [
            r#"<nil>: Invalid value: "object": the name is too long"#,
            r#"<nil>: Invalid value: "object": failed rule: !has(self.spec) || self.kind == 'Widget'"#,
        ]
    );
}

#[test]
fn rules_judge_changes_where_the_old_value_is_known() {
    let old = json!({"min": 5, "max": 9, "class": "a", "items": [{"name": "x", "size": 1}]});
    let with = |name: &str, value: Value| {
        let mut spec = old.clone();
        spec[name] = value;
        spec
    };
    let faults = |spec: Value| ruled_faults(spec, Some(old.clone())).join("; ");
    assert_eq!(faults(old.clone()), "");
    assert_eq!(faults(with("min", 6.into())), "");
    assert_eq!(
        faults(with("min", 4.into())),
        r#"spec.min: Invalid value: "integer": may not shrink"#
    );
    assert!(faults(with("class", "b".into())).starts_with("spec.class: "));
    // An item is found again by its key, wherever it stands; a new one has no old value.
    let moved = json!([{"name": "new", "size": 7}, {"name": "x", "size": 1}]);
    assert_eq!(faults(with("items", moved)), "");
    let changed = json!([{"name": "new", "size": 7}, {"name": "x", "size": 2}]);
    assert_eq!(
        faults(with("items", changed)),
        r#"spec.items[1].size: Invalid value: "integer": fixed"#
    );
    // What a stricter rule forbids may stay as it is, and nothing else.
    let wrong = json!({"min": 2, "max": 1, "labels": {"a": "12345"}});
    let changed = json!({"min": 2, "max": 1, "labels": {"a": "12345"}, "class": "b"});
    assert_eq!(ruled_faults(wrong.clone(), Some(wrong.clone())), Vec::<String>::new());
    assert_eq!(ruled_faults(changed, Some(wrong)), ["spec.min: Forbidden: 2 is more than 1"]);
}

#[test]
fn rules_end_when_they_cost_too_much() {
    let slow = |count: usize| json!({"min": 1, "max": 2, "slow": vec![1; count]});
    assert_eq!(
        ruled_faults(slow(10), None),
        [r#"spec.slow: Invalid value: "array": failed rule: self.size() < 1"#]
    );
    let told = ruled_faults(slow(100), None);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("no further validation rules will be run due to call cost exceeds"));
    // Many rules that are cheap enough each, all together.
    let rule = json!({"rule": "self.all(a, self.all(b, a + b >= 0))"});
    let rules: Vec<Value> = vec![rule; 60];
    let tree = json!({"type": "object", "properties": {"l": {
        "type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": rules}}});
    let schema = Schema::compile(&tree);
    let told = schema.validate_rules(&json!({"l": vec![1; 200]}), None);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].message.contains("running out of cost budget"), "{told:?}");
    assert_eq!(schema.validate_rules(&json!({"l": vec![1; 20]}), None), []);
}

#[test]
fn a_wrong_rule_refuses_the_definition() {
    let told = |place: &str, rule: Value| {
        let mut tree = ruled();
        let holder = tree.pointer_mut(place).expect("a schema");
        holder["x-kubernetes-validations"] = json!([rule]);
        let faults = check(&tree, "s");
        faults
            .into_iter()
            .map(|fault| format!("{}: {}", fault.field, fault.message))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let spec = "/properties/spec";
    let shown = r#"apiextensions.ValidationRule{Rule:"self.foo > 1", Message:"", MessageExpression:"", Reason:(*apiextensions.FieldValueErrorReason)(nil), FieldPath:"", OptionalOldSelf:(*bool)(nil)}"#;
    assert_eq!(
        told(spec, json!({"rule": "self.foo > 1"})),
        format!(
            "s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {shown}: compilation \
             failed: ERROR: <input>:1:5: undefined field 'foo'\n | self.foo > 1\n | ....^"
        )
    );
    for (rule, expected) in [
        (json!({"rule": "self.min"}), "cel expression must evaluate to a bool"),
        (json!({"rule": "frob(self)"}), "undeclared reference to 'frob'"),
        (json!({"rule": "self.metadata.name == ''"}), "undefined field 'metadata'"),
        (json!({}), "[0].rule: Required value: rule is not specified"),
        (json!({"rule": "true", "message": "a\nb"}), "message must not contain line breaks"),
        (
            json!({"rule": "true\n|| false"}),
            "[0].message: Required value: message must be specified",
        ),
        (json!({"rule": "true", "messageExpression": "1"}), "must evaluate to a string"),
        (
            json!({"rule": "true", "messageExpression": "self.x"}),
            "messageExpression compilation failed",
        ),
        (json!({"rule": "true", "reason": "Other"}), "[0].reason: Unsupported value: \"Other\""),
        (json!({"rule": "true", "fieldPath": ".nothing"}), "fieldPath must be a valid path"),
    ] {
        let told = told(spec, rule.clone());
        assert!(told.contains(expected), "{rule}: {told}");
    }
    let name = "/properties/spec/properties/items/items/properties/name";
    assert_eq!(told(name, json!({"rule": "self == oldSelf"})), "");
    let number = "/properties/spec/properties/slow/items";
    let uncorrelated = "oldSelf cannot be used on the uncorrelatable portion of the schema";
    assert!(told(number, json!({"rule": "self == oldSelf"})).contains(uncorrelated));
    // A definition that was stored without that check lets no object pass unjudged.
    let mut tree = ruled();
    tree["x-kubernetes-validations"] = json!([{"rule": "frob(self)"}]);
    let faults = Schema::compile(&tree).validate_rules(&json!({}), None);
    assert!(faults[0].message.contains("rule compile error: ERROR"), "{faults:?}");
}

#[test]
fn a_schema_may_become_stricter_than_the_objects_that_are_there() {
    let old = json!({"spec": {"size": 11, "ports": [{"port": 1, "protocol": 5}]}});
    let mut new = old.clone();
    new["spec"]["color"] = "blue".into();
    let schema = Schema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "maximum": 10}, "color": {"type": "string"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                  "items": {"type": "object", "properties": {"port": {"type": "integer"}, "protocol": {"type": "string"}}}}}}}}),
    );
    assert_eq!(schema.validate(&new, "").len(), 2);
    assert_eq!(schema.validate_change(&new, Some(&old), ""), []);
    new["spec"]["ports"] = json!([{"port": 2}, {"port": 1, "protocol": 5}]);
    assert_eq!(schema.validate_change(&new, Some(&old), ""), []);
    new["spec"]["ports"] = json!([{"port": 1, "protocol": 6}]);
    new["spec"]["size"] = 12.into();
    assert_eq!(schema.validate_change(&new, Some(&old), "").len(), 2);
}

/// Rules in the shapes that the definitions of the Gateway API and of ClusterNetworkPolicy have.
#[test]
fn rules_of_gateways_and_routes_are_evaluated() {
    let listener = json!({"type": "object", "required": ["name", "port", "protocol"], "properties": {
        "name": {"type": "string", "maxLength": 253}, "port": {"type": "integer"},
        "protocol": {"type": "string", "maxLength": 255},
        "hostname": {"type": "string", "maxLength": 253},
        "tls": {"type": "object", "properties": {
            "mode": {"type": "string", "default": "Terminate"},
            "certificates": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object", "additionalProperties": {"type": "string"}}},
            "x-kubernetes-validations": [
                {"message": "a certificate is needed",
                 "rule": "self.mode == 'Terminate' ? size(self.certificates) > 0 || size(self.options) > 0 : true"}]}}});
    let tree = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "listeners": {"type": "array", "maxItems": 64, "items": listener,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-validations": [
                {"message": "no TLS in plain HTTP",
                 "rule": "self.all(l, l.protocol.matches('(?i)^(HTTP|UDP)$') ? !has(l.tls) : true)"},
                {"message": "listeners must differ",
                 "rule": "self.all(l1, self.exists_one(l2, l1.port == l2.port && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))"}]},
        "paths": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {
            "type": {"type": "string", "enum": ["Exact", "PathPrefix"]},
            "value": {"type": "string", "maxLength": 1024}},
            "x-kubernetes-validations": [
                {"message": "must be absolute",
                 "rule": "(self.type in ['Exact','PathPrefix']) ? self.value.startsWith('/') : true"},
                {"message": "has characters that no path has",
                 "rule": r#"(self.type in ['Exact']) ? self.value.matches(r"""^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$""") : true"#}]},
            "x-kubernetes-validations": [{"message": "too many",
                "rule": "(self.size() > 0 ? self[0].value.size() : 0) + (self.size() > 1 ? self[1].value.size() : 0) <= 20"}]},
        "timeouts": {"type": "object", "properties": {"request": {"type": "string"}, "backend": {"type": "string"}},
            "x-kubernetes-validations": [{"message": "the backend's is longer",
                "rule": "!(has(self.request) && has(self.backend) && duration(self.request) != duration('0s') && duration(self.backend) > duration(self.request))"}]},
        "networks": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 25,
            "items": {"type": "string", "maxLength": 43,
            "x-kubernetes-validations": [{"rule": "isCIDR(self)", "message": "no range"}]}},
    }}}});
    assert_eq!(check(&tree, "schema"), []);
    let schema = Schema::compile(&tree);
    let told = |spec: Value| {
        let faults = schema.validate_rules(&json!({"spec": spec}), None);
        let shown = |fault: Fault| format!("{}: {}", fault.field, fault.message);
        faults.into_iter().map(shown).collect::<Vec<_>>().join("; ")
    };
    let web = json!({"name": "web", "port": 80, "protocol": "HTTP"});
    let with = |name: &str, value: Value| {
        let mut listener = web.clone();
        listener[name] = value;
        listener
    };
    let https = |tls: Value| json!({"listeners": [{"name": "s", "port": 443, "protocol": "HTTPS", "tls": tls}]});
    for (spec, expected) in [
        (json!({"listeners": [web, with("port", 81.into())]}), ""),
        (
            json!({"listeners": [web, web]}),
            r#"spec.listeners: Invalid value: "array": listeners must differ"#,
        ),
        (json!({"listeners": [web, with("hostname", "a".into())]}), ""),
        (
            json!({"listeners": [with("tls", json!({"mode": "Passthrough"}))]}),
            r#"spec.listeners: Invalid value: "array": no TLS in plain HTTP"#,
        ),
        (https(json!({"mode": "Terminate", "certificates": ["a"]})), ""),
        (https(json!({"mode": "Terminate", "options": {"a": "b"}})), ""),
        (
            https(json!({"mode": "Terminate", "certificates": [], "options": {}})),
            r#"spec.listeners[0].tls: Invalid value: "object": a certificate is needed"#,
        ),
        (json!({"paths": [{"type": "Exact", "value": "/a%20b"}]}), ""),
        (
            json!({"paths": [{"type": "Exact", "value": "/a b"}]}),
            r#"spec.paths[0]: Invalid value: "object": has characters that no path has"#,
        ),
        (
            json!({"paths": [{"type": "PathPrefix", "value": "a"}]}),
            r#"spec.paths[0]: Invalid value: "object": must be absolute"#,
        ),
        (
            json!({"paths": [{"type": "X", "value": "12345678901"}, {"type": "X", "value": "1234567890"}]}),
            r#"spec.paths: Invalid value: "array": too many"#,
        ),
        (json!({"timeouts": {"request": "1m", "backend": "30s"}}), ""),
        (
            json!({"timeouts": {"request": "1s", "backend": "1m"}}),
            r#"spec.timeouts: Invalid value: "object": the backend's is longer"#,
        ),
        (json!({"networks": ["10.0.0.0/8", "fd00::/8"]}), ""),
        (
            json!({"networks": ["10.0.0.0/40"]}),
            r#"spec.networks[0]: Invalid value: "string": no range"#,
        ),
    ] {
        assert_eq!(told(spec.clone()), expected, "{spec}");
    }
}

/// A rule is refused by what it could cost for the largest object that its schema allows.
#[test]
fn rules_that_could_cost_too_much_refuse_the_definition() {
    let pairs = "self.all(a, self.exists_one(b, a.name == b.name))";
    let list = |limits: Value, rules: Vec<&str>| {
        let name = json!({"type": "string", "maxLength": limits["length"]});
        let rules: Vec<Value> = rules.into_iter().map(|rule| json!({"rule": rule})).collect();
        let mut list = json!({
            "type": "array", "x-kubernetes-validations": rules,
            "items": {"type": "object", "required": ["name"], "properties": {"name": name}},
        });
        if let Some(limit) = limits.get("items") {
            list["maxItems"] = limit.clone();
        }
        json!({"type": "object", "properties": {"l": list}})
    };
    let told = |tree: &Value| -> Vec<String> {
        let faults = check(tree, "s").into_iter();
        faults.map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
    };
    assert_eq!(told(&list(json!({"items": 64, "length": 253}), vec![pairs])), Vec::<String>::new());
    let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where \
                  arrays, maps, and strings are declared)";
    let place = "s.properties[l].x-kubernetes-validations";
    let refused = told(&list(json!({"length": 253}), vec![pairs]));
    let factor = "Forbidden: estimated rule cost exceeds budget by factor of more than 100x";
    assert_eq!(refused[0], format!("{place}[0].rule: {factor} {advice}"));
    let refused = told(&list(json!({"items": 500, "length": 253}), vec![pairs]));
    assert_eq!(refused.len(), 1, "{refused:?}");
    let factor = "Forbidden: estimated rule cost exceeds budget by factor of 2.7x";
    assert_eq!(refused[0], format!("{place}[0].rule: {factor} {advice}"));
    // Each for itself is cheap enough; all together are not.
    let refused = told(&list(json!({"items": 250, "length": 253}), vec![pairs; 20]));
    assert_eq!(refused.len(), 5, "{refused:?}");
    assert!(refused[..4].iter().all(|one| one.contains("contributed to estimated rule")));
    let total = "s: Forbidden: x-kubernetes-validations estimated rule & messageExpression cost total \
                 for entire OpenAPIv3 schema exceeds budget by factor of 1.3";
    assert!(refused[4].starts_with(total), "{refused:?}");
    // A rule below a list counts as often as that has items.
    let below = |limit: Value| {
        let rule = json!([{"rule": "self.matches('^[a-z]+$')"}]);
        let text = json!({"type": "string", "maxLength": 4_000, "x-kubernetes-validations": rule});
        let mut list = json!({"type": "array", "items": text});
        if !limit.is_null() {
            list["maxItems"] = limit;
        }
        json!({"type": "object", "properties": {"l": list}})
    };
    assert_eq!(told(&below(1_000.into())), Vec::<String>::new());
    for limit in [10_000.into(), Value::Null] {
        assert!(told(&below(limit))[0].contains("exceeds budget"));
    }
}

/// Lists within lists, patterns of paths and pairs of references, as large as a route of the Gateway
/// API may have them: the estimate must not refuse what the real server takes.
#[test]
fn definitions_as_large_as_routes_are_allowed() {
    let text = |limit: u64| json!({"type": "string", "maxLength": limit, "minLength": 1});
    let rules = |texts: &[&str]| -> Value {
        texts.iter().map(|rule| json!({"rule": rule, "message": "no"})).collect()
    };
    let list = |limit: u64, items: Value, texts: &[&str]| {
        json!({"type": "array", "maxItems": limit, "items": items,
            "x-kubernetes-list-type": "atomic", "x-kubernetes-validations": rules(texts)})
    };
    let object = |properties: Value, texts: &[&str]| {
        json!({"type": "object", "properties": properties,
            "x-kubernetes-validations": rules(texts)})
    };
    let path = object(
        json!({
            "type": {"type": "string", "default": "PathPrefix",
                "enum": ["Exact", "PathPrefix", "RegularExpression"]},
            "value": {"type": "string", "default": "/", "maxLength": 1024},
        }),
        &[
            "(self.type in ['Exact', 'PathPrefix']) ? self.value.startsWith('/') : true",
            "(self.type in ['Exact', 'PathPrefix']) ? !self.value.contains('//') : true",
            "(self.type in ['Exact', 'PathPrefix']) ? !self.value.endsWith('/..') : true",
            "self.type in ['Exact', 'PathPrefix'] || self.type == 'RegularExpression'",
            r#"(self.type in ['Exact']) ? self.value.matches(r"""^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$""") : true"#,
        ],
    );
    let target = object(
        json!({
            "type": {"type": "string", "enum": ["Full", "Prefix"]},
            "full": text(1024),
        }),
        &["self.type == 'Full' ? has(self.full) : true"],
    );
    let filter = object(
        json!({
            "type": {"type": "string", "enum": ["Mirror", "Redirect", "Rewrite"]},
            "mirror": object(json!({"host": text(253)}), &[]),
            "redirect": object(json!({"path": target}), &[]),
        }),
        &[
            "!(has(self.mirror) && self.type != 'Mirror')",
            "!(!has(self.redirect) && self.type == 'Redirect')",
        ],
    );
    let filters = &[
        "!(self.exists(f, f.type == 'Redirect') && self.exists(f, f.type == 'Rewrite'))",
        "self.filter(f, f.type == 'Redirect').size() <= 1",
    ];
    let backend =
        object(json!({"name": text(253), "filters": list(16, filter.clone(), filters)}), &[]);
    let a_match = object(json!({"path": path, "headers": list(16, text(4096), &[])}), &[]);
    let rule = object(
        json!({
            "matches": list(64, a_match, &[]),
            "filters": list(16, filter, filters),
            "backends": list(16, backend, &[]),
        }),
        &[
            "(has(self.backends) && size(self.backends) > 0) ? (!has(self.filters) || self.filters.all(f, !has(f.redirect))) : true",
            "(has(self.filters) && self.filters.exists_one(f, has(f.redirect) && has(f.redirect.path) && f.redirect.path.type == 'Prefix')) ? ((size(self.matches) != 1 || !has(self.matches[0].path) || self.matches[0].path.type != 'PathPrefix') ? false : true) : true",
        ],
    );
    let terms: Vec<String> = (0..16)
        .map(|index| format!("(self.size() > {index} ? self[{index}].matches.size() : 0)"))
        .collect();
    let total = format!("{} <= 128", terms.join(" + "));
    let parent = object(
        json!({"group": text(253), "kind": text(63), "name": text(253),
            "namespace": text(63), "section": text(253)}),
        &[],
    );
    let parents = "self.all(p1, self.exists_one(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && (((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '')) || (has(p1.__namespace__) && has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__)) && (has(p1.section) && has(p2.section) && p1.section == p2.section)))";
    let annotations = json!({"type": "object", "maxProperties": 8,
    "additionalProperties": {"type": "string", "maxLength": 4096},
    "x-kubernetes-validations": rules(&[
        r#"self.all(key, key.matches(r"""^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"""))"#,
        "self.all(key, key.split('/')[0].size() < 253)",
    ])});
    let patterns = [
        r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|[a-z0-9](\.[a-z0-9])*\/[A-Za-z0-9]+$",
        r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$",
        r"(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)",
        r"^(([^:/?#]+):)(//([^/?#]*))([^?#]*)(\?([^#]*))?(#(.*))?",
        r"^([0-9]{1,5}(h|m|s|ms)){1,4}$",
    ];
    let patterns: serde_json::Map<String, Value> = (0..)
        .zip(patterns)
        .map(|(index, one)| (format!("p{index}"), json!({"type": "string", "pattern": one})))
        .collect();
    let spec = object(
        json!({
            "rules": list(16, rule, &[&total]),
            "parents": list(32, parent, &[parents]),
            "annotations": annotations,
            "patterns": {"type": "object", "properties": patterns},
            "class": {"type": "string", "maxLength": 253,
                "x-kubernetes-validations": rules(&["self == oldSelf"])},
        }),
        &[],
    );
    let tree = json!({"type": "object", "required": ["spec"], "properties": {"spec": spec}});
    assert_eq!(check(&tree, "s"), []);
}
