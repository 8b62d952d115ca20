//! Kubernetes' protobuf form: magic, then `runtime.Unknown` with the type and the raw message.

mod read;
mod write;

pub use read::{Problem, decode};
pub use write::{encode, encode_event, encode_list};
pub(crate) use write::{write_bytes, write_varint_field};

/// What every object in this form begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// The wire type of a varint.
const VARINT: u64 = 0;
/// The wire type of eight bytes.
const FIXED64: u64 = 1;
/// The wire type of bytes with their length before them.
const BYTES: u64 = 2;
/// The wire type of four bytes.
const FIXED32: u64 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("a short field");
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    /// Every form that a field has: each goes out and comes back as it was.
    fn samples() -> Vec<Value> {
        vec![
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"},
                "data": {"a": "1", "b": ""}, "binaryData": {"c": "AAE="}, "immutable": false,
            }),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": "web", "creationTimestamp": "2026-11-20T23:12:29Z", "generation": 3,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": false}],
                    "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
                },
                "spec": {"ports": [
                    {"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 81},
                ]},
            }),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
                "spec": {
                    "replicas": 0,
                    "template": {"spec": {
                        "containers": [{
                            "name": "c",
                            "resources": {"limits": {"cpu": "500m"}},
                            "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                        }],
                        "securityContext": {"supplementalGroups": [1, -2]},
                        "volumes": [{"name": "v", "configMap": {"name": "m", "optional": false}}],
                    }},
                },
            }),
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "n"},
                "spec": {"renewTime": "2026-11-20T23:12:29.123456Z", "leaseTransitions": -1},
            }),
            json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {
                    "user": "jane", "groups": ["a"], "extra": {"b": ["1", ""], "c": []},
                    "resourceAttributes": {"verb": "get", "resource": "pods"},
                },
                "status": {"allowed": true, "reason": "so"},
            }),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "spec": {"matchConstraints": {"resourceRules": [{
                    "resourceNames": ["a"], "operations": ["CREATE"], "apiGroups": [""],
                    "apiVersions": ["v1"], "resources": ["pods"], "scope": "*",
                }]}},
            }),
            json!({
                "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"},
                "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}],
            }),
        ]
    }

    #[test]
    fn what_is_written_reads_back() {
        for sample in samples() {
            let bytes = encode(&sample).expect("a known kind");
            assert_eq!(decode(&bytes), Ok(sample));
        }
    }

    /// As client-go reads it: a length, a `WatchEvent`, and in it an object as elsewhere.
    #[test]
    fn an_event_is_a_frame_around_an_object() {
        for sample in samples() {
            let object = encode(&sample).expect("a known kind");
            let frame = encode_event("ADDED", &sample).expect("a known kind");
            let (length, event) = frame.split_at(4);
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            assert_eq!(length as usize, event.len());
            assert!(event.starts_with(&field(1, b"ADDED")) && event.ends_with(&object));
        }
        assert_eq!(encode_event("ADDED", &json!({"apiVersion": "a/v1", "kind": "B"})), None);
    }

    #[test]
    fn zero_is_kept_where_it_differs_from_absence() {
        // replicas (a pointer) and minReadySeconds (none), both 0 on the wire.
        let spec = [vec![1 << 3, 0], vec![5 << 3, 0]].concat();
        let read = decode(&body("apps/v1", "Deployment", &field(2, &spec)));
        assert_eq!(read.expect("read")["spec"], json!({"replicas": 0}));
        let port = [vec![3 << 3, 80], vec![5 << 3, 0], field(1, b"")].concat();
        let read = decode(&body("v1", "Service", &field(2, &field(1, &port))));
        assert_eq!(read.expect("read")["spec"]["ports"], json!([{"port": 80}]));
    }

    #[test]
    fn an_empty_time_is_absent() {
        let metadata = [field(1, b"web"), field(8, b"")].concat();
        let read = decode(&body("v1", "ConfigMap", &field(1, &metadata))).expect("read");
        assert_eq!(read["metadata"], json!({"name": "web"}));
    }

    #[test]
    fn fields_of_newer_versions_are_passed_over_and_unknown_kinds_are_not() {
        let newer = [field(15, b"x"), vec![14 << 3 | 5, 1, 2, 3, 4]].concat();
        let read = decode(&body("v1", "ConfigMap", &newer)).expect("read");
        assert_eq!(read, json!({"apiVersion": "v1", "kind": "ConfigMap"}));
        let unknown = Problem::UnknownKind { api_version: "a/v1".into(), kind: "B".into() };
        assert_eq!(decode(&body("a/v1", "B", b"")), Err(unknown));
        assert_eq!(encode(&json!({"apiVersion": "a/v1", "kind": "B"})), None);
    }

    #[test]
    fn options_of_a_deletion_have_the_version_of_their_group() {
        let read = decode(&body("apps/v1", "DeleteOptions", &[1 << 3, 0])).expect("read");
        assert_eq!(read["gracePeriodSeconds"], 0);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(raw in prop::collection::vec(any::<u8>(), 0..100)) {
            for kind in ["ConfigMap", "Service", "Secret", "Pod", "Event"] {
                let _ = decode(&body("v1", kind, &raw));
            }
            let _ = decode(&raw);
            let _ = decode(&[MAGIC, &raw].concat());
        }
    }
}
