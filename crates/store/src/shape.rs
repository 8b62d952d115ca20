//! Types of the fields that our code and our clients' narrow structs rely on: an object with a
//! text where a number belongs must be refused, since it would break every reader.

use serde_json::Value;

use crate::{Resource, Status};

/// One field whose type is checked.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Member names from the root, `[]` after a list: `spec.ports[].port`.
    pub path: &'static str,
    /// Its type.
    pub kind: FieldKind,
    /// The Go struct that the real server names in its complaint.
    pub go_struct: &'static str,
}

/// The types that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Text.
    Text,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// `true` or `false`.
    Bool,
    /// An object.
    Object,
    /// A list.
    List,
    /// An object with texts as values.
    TextMap,
    /// A list of texts.
    TextList,
    /// A whole number or a text.
    IntOrString,
    /// An RFC 3339 time.
    Time,
}

impl Field {
    pub(crate) const fn new(path: &'static str, kind: FieldKind, go_struct: &'static str) -> Self {
        Self { path, kind, go_struct }
    }
}

use FieldKind::{Bool, Int32, Int64, IntOrString, List, Object, Text, TextList, TextMap, Time};

/// Fields that all kinds have (those without a spec or status simply never have them).
const COMMON: &[Field] = &[
    Field::new("spec", Object, ""),
    Field::new("status", Object, ""),
    Field::new("metadata", Object, ""),
    Field::new("metadata.name", Text, "ObjectMeta"),
    Field::new("metadata.generateName", Text, "ObjectMeta"),
    Field::new("metadata.namespace", Text, "ObjectMeta"),
    Field::new("metadata.uid", Text, "ObjectMeta"),
    Field::new("metadata.resourceVersion", Text, "ObjectMeta"),
    Field::new("metadata.labels", TextMap, "ObjectMeta"),
    Field::new("metadata.annotations", TextMap, "ObjectMeta"),
    Field::new("metadata.finalizers", TextList, "ObjectMeta"),
    Field::new("metadata.ownerReferences", List, "ObjectMeta"),
    Field::new("metadata.ownerReferences[].apiVersion", Text, "OwnerReference"),
    Field::new("metadata.ownerReferences[].kind", Text, "OwnerReference"),
    Field::new("metadata.ownerReferences[].name", Text, "OwnerReference"),
    Field::new("metadata.ownerReferences[].uid", Text, "OwnerReference"),
    Field::new("metadata.ownerReferences[].controller", Bool, "OwnerReference"),
    Field::new("metadata.ownerReferences[].blockOwnerDeletion", Bool, "OwnerReference"),
    Field::new("metadata.creationTimestamp", Time, "ObjectMeta"),
    Field::new("metadata.deletionTimestamp", Time, "ObjectMeta"),
];

/// Fields of a pod spec, below its own path.
const POD_SPEC: &[Field] = &[
    Field::new("", Object, ""),
    Field::new("nodeName", Text, "PodSpec"),
    Field::new("nodeSelector", TextMap, "PodSpec"),
    Field::new("hostNetwork", Bool, "PodSpec"),
    Field::new("hostname", Text, "PodSpec"),
    Field::new("subdomain", Text, "PodSpec"),
    Field::new("restartPolicy", Text, "PodSpec"),
    Field::new("serviceAccountName", Text, "PodSpec"),
    Field::new("terminationGracePeriodSeconds", Int64, "PodSpec"),
    Field::new("tolerations", List, "PodSpec"),
    Field::new("tolerations[].key", Text, "Toleration"),
    Field::new("tolerations[].operator", Text, "Toleration"),
    Field::new("tolerations[].value", Text, "Toleration"),
    Field::new("tolerations[].effect", Text, "Toleration"),
    Field::new("tolerations[].tolerationSeconds", Int64, "Toleration"),
    Field::new("volumes", List, "PodSpec"),
    Field::new("volumes[].name", Text, "Volume"),
];

/// Fields of a container, below each of the container lists.
const CONTAINER: &[Field] = &[
    Field::new("", List, ""),
    Field::new("[]", Object, ""),
    Field::new("[].name", Text, "Container"),
    Field::new("[].image", Text, "Container"),
    Field::new("[].imagePullPolicy", Text, "Container"),
    Field::new("[].command", TextList, "Container"),
    Field::new("[].args", TextList, "Container"),
    Field::new("[].workingDir", Text, "Container"),
    Field::new("[].restartPolicy", Text, "Container"),
    Field::new("[].env", List, "Container"),
    Field::new("[].env[].name", Text, "EnvVar"),
    Field::new("[].env[].value", Text, "EnvVar"),
    Field::new("[].ports", List, "Container"),
    Field::new("[].ports[].name", Text, "ContainerPort"),
    Field::new("[].ports[].containerPort", Int32, "ContainerPort"),
    Field::new("[].ports[].hostPort", Int32, "ContainerPort"),
    Field::new("[].ports[].protocol", Text, "ContainerPort"),
    Field::new("[].volumeMounts", List, "Container"),
    Field::new("[].volumeMounts[].name", Text, "VolumeMount"),
    Field::new("[].volumeMounts[].mountPath", Text, "VolumeMount"),
    Field::new("[].volumeMounts[].readOnly", Bool, "VolumeMount"),
    Field::new("[].readinessProbe", Object, "Container"),
    Field::new("[].readinessProbe.httpGet.port", IntOrString, "HTTPGetAction"),
    Field::new("[].readinessProbe.tcpSocket.port", IntOrString, "TCPSocketAction"),
    Field::new("[].livenessProbe", Object, "Container"),
    Field::new("[].livenessProbe.httpGet.port", IntOrString, "HTTPGetAction"),
    Field::new("[].livenessProbe.tcpSocket.port", IntOrString, "TCPSocketAction"),
];

/// Checks the types of an object.
///
/// # Errors
/// 400 in the words of the real server's decoder, for the first field that is wrong.
pub(crate) fn check(resource: &Resource, value: &Value) -> Result<(), Status> {
    let complain = |complaint: String| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {complaint}",
            resource.kind, resource.version, resource.kind
        ))
    };
    for field in COMMON.iter().chain(resource.shape) {
        check_field(value, field, "").map_err(complain)?;
    }
    let Some(root) = resource.pod_spec else {
        return Ok(());
    };
    let root = root.trim_start_matches('/').replace('/', ".");
    for field in POD_SPEC {
        check_field(value, field, &root).map_err(complain)?;
    }
    for list in ["containers", "initContainers"] {
        for field in CONTAINER {
            check_field(value, field, &format!("{root}.{list}")).map_err(complain)?;
        }
    }
    Ok(())
}

/// What Go calls the type of a JSON value.
pub(crate) fn go_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_field(value: &Value, field: &Field, root: &str) -> Result<(), String> {
    let path = match (root, field.path) {
        ("", path) => path.to_owned(),
        (root, "") => root.to_owned(),
        (root, path) if path.starts_with('[') => format!("{root}{path}"),
        (root, path) => format!("{root}.{path}"),
    };
    let steps: Vec<&str> = path.split('.').collect();
    walk(value, &steps, &mut |value| check_value(value, field, &path))
}

/// Calls `check` for each value at a path. What stands on the way must be objects and lists.
fn walk(
    value: &Value,
    steps: &[&str],
    check: &mut dyn FnMut(&Value) -> Result<(), String>,
) -> Result<(), String> {
    let refuse = |value: &Value, wanted: &str| {
        Err(format!("json: cannot unmarshal {} into Go value of type {wanted}", go_name(value)))
    };
    let Some((step, rest)) = steps.split_first() else {
        return check(value);
    };
    if let Some(step) = step.strip_prefix("[]") {
        let Some(items) = value.as_array() else {
            return refuse(value, "slice");
        };
        let mut steps = vec![step];
        steps.extend(rest);
        let steps = if step.is_empty() { rest } else { &steps };
        return items.iter().try_for_each(|item| walk(item, steps, check));
    }
    let (name, lists) = match step.find('[') {
        Some(at) => step.split_at(at),
        None => (*step, ""),
    };
    let Some(members) = value.as_object() else {
        return refuse(value, "struct");
    };
    match members.get(name) {
        // Absent: nothing to check.
        None | Some(Value::Null) => Ok(()),
        Some(member) if lists.is_empty() => walk(member, rest, check),
        Some(member) => {
            let mut steps = vec![lists];
            steps.extend(rest);
            walk(member, &steps, check)
        }
    }
}

fn check_value(value: &Value, field: &Field, path: &str) -> Result<(), String> {
    let shown_path = path.replace("[]", "");
    let place = if field.go_struct.is_empty() {
        "Go value".to_owned()
    } else {
        format!("Go struct field {}.{shown_path}", field.go_struct)
    };
    let refuse = |found: &str, wanted: &str| {
        Err(format!("json: cannot unmarshal {found} into {place} of type {wanted}"))
    };
    let number = |wanted: &str, in_range: fn(i64) -> bool| match value.as_i64() {
        Some(number) if in_range(number) => Ok(()),
        Some(number) => refuse(&format!("number {number}"), wanted),
        None if value.is_number() => refuse(&format!("number {value}"), wanted),
        None => refuse(go_name(value), wanted),
    };
    match field.kind {
        Text if value.is_string() => Ok(()),
        Bool if value.is_boolean() => Ok(()),
        Object if value.is_object() => Ok(()),
        List | TextList if value.is_array() => {
            let is_text = |item: &&Value| field.kind == TextList && !item.is_string();
            match value.as_array().and_then(|items| items.iter().find(is_text)) {
                Some(item) => refuse(go_name(item), "string"),
                None => Ok(()),
            }
        }
        TextMap if value.is_object() => {
            match value.as_object().and_then(|map| map.values().find(|item| !item.is_string())) {
                Some(item) => refuse(go_name(item), "string"),
                None => Ok(()),
            }
        }
        IntOrString if value.is_string() => Ok(()),
        Time if value.is_string() => match value.as_str().and_then(model::Timestamp::parse) {
            Some(_) => Ok(()),
            None => Err(format!(
                "parsing time {value} as \"2006-01-02T15:04:05Z07:00\": cannot parse {value} as \
                 \"2006\""
            )),
        },
        Int32 => number("int32", |number| i32::try_from(number).is_ok()),
        IntOrString => number("int32", |number| i32::try_from(number).is_ok()),
        Int64 => number("int64", |_| true),
        Text => refuse(go_name(value), "string"),
        Bool => refuse(go_name(value), "bool"),
        Object => refuse(go_name(value), "struct"),
        TextMap => refuse(go_name(value), "map[string]string"),
        List | TextList => refuse(go_name(value), "slice"),
        Time => refuse(go_name(value), "Time"),
    }
}
