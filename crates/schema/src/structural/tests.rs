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
