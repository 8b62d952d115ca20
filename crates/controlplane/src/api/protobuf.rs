//! Kubernetes' protobuf form, which `kubectl create NOUN` sends since 1.32, and client-go by default:
//! what the problems of bodies are called over HTTP.

use schema::protobuf::{self, Problem};
use serde_json::Value;
use store::Status;

/// The media type, of bodies and of answers.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of watches: events, each behind its length.
pub(super) const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// Reads a body as the JSON that it stands for.
pub(super) fn decode(body: &[u8]) -> Result<Value, Status> {
    protobuf::decode(body).map_err(|problem| match problem {
        Problem::Malformed(why) => {
            Status::bad_request(format!("the protobuf body cannot be read: {why}"))
        }
        Problem::UnknownKind { api_version, kind } => {
            let mut status = Status::unknown_body_format();
            status.message.push_str(&format!(
                " (flatnet does not serve {kind} of {api_version}, so it cannot read it in \
                 protobuf)"
            ));
            status
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused() {
        let job = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap"});
        let bytes = protobuf::encode(&job).expect("a known kind");
        assert_eq!(decode(&bytes), Ok(job));
        let unknown = b"k8s\0\x0a\x0f\x0a\x08nope/v99\x12\x03Job";
        let refused = decode(unknown).expect_err("refused");
        assert_eq!(refused.code, 415);
        assert!(refused.message.starts_with("the body of the request was in an unknown format"));
        assert_eq!(decode(b"k8s").expect_err("refused").code, 400);
    }
}
