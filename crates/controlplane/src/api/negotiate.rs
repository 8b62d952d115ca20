//! Media types: what the client accepts, and what its body is.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use schema::Message;
use schema::decode::{self, Read};
use store::Status;

use super::protobuf;

/// Media ranges of an Accept header that are looked at.
const MAX_MEDIA_RANGES: usize = 32;

/// The form in which an answer goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The objects as they are.
    Plain,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `PartialObjectMetadata` and its list.
    Partial,
    /// `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`, the aggregated form of discovery.
    Discovery,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Which objects.
    pub form: Form,
    /// How they are written.
    pub encoding: Encoding,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Yaml,
    /// Kubernetes' protobuf: objects, lists and events of kinds that the table of fields has.
    Protobuf,
}

impl Accepted {
    /// JSON, as it is.
    pub const JSON: Self = Self { form: Form::Plain, encoding: Encoding::Json };

    /// The same without protobuf.
    pub const fn as_text(self) -> Self {
        match self.encoding {
            Encoding::Protobuf => Self { encoding: Encoding::Json, ..self },
            Encoding::Json | Encoding::Yaml => self,
        }
    }
}

/// Chooses among the client's media ranges, the first acceptable of the highest quality.
/// `is_discovery` says which special forms the path has.
pub(super) fn accepted(headers: &HeaderMap, is_discovery: bool) -> Result<Accepted, Status> {
    let mut best: Option<(u16, Accepted)> = None;
    let mut any = false;
    let lines = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = lines.flat_map(|line| line.split(',')).map(str::trim);
    for range in ranges.filter(|range| !range.is_empty()).take(MAX_MEDIA_RANGES) {
        any = true;
        let media = MediaType::parse(range);
        let quality = media.quality();
        let Some(offer) = offer(&media, is_discovery).filter(|_| quality > 0) else { continue };
        if best.is_none_or(|(best_quality, _)| quality > best_quality) {
            best = Some((quality, offer));
        }
    }
    match best {
        Some((_, accepted)) => Ok(accepted),
        None if !any => Ok(Accepted::JSON),
        None => Err(Status::not_acceptable()),
    }
}

fn offer(media: &MediaType<'_>, is_discovery: bool) -> Option<Accepted> {
    let encoding = match media.name.as_str() {
        "*/*" | "application/*" | "application/json" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        // Documents of discovery and Tables are in no table of fields.
        protobuf::MEDIA_TYPE if !is_discovery && media.parameter("as").is_none() => {
            Encoding::Protobuf
        }
        _ => return None,
    };
    let group = media.parameter("g").unwrap_or_default();
    let version = media.parameter("v").unwrap_or_default();
    let form = match media.parameter("as") {
        None => Form::Plain,
        Some("APIGroupDiscoveryList")
            if is_discovery && group == "apidiscovery.k8s.io" && version == "v2" =>
        {
            Form::Discovery
        }
        _ if is_discovery || group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") => {
            return None;
        }
        Some("Table") => Form::Table,
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Partial,
        Some(_) => return None,
    };
    Some(Accepted { form, encoding })
}

/// Reads the body of a write, and what is wrong with its fields where their message is known.
/// No Content-Type means JSON: old clients send none.
pub(super) fn body(
    headers: &HeaderMap,
    body: &[u8],
    kind: &str,
    message: Option<&Message>,
) -> Result<Read, Status> {
    match media_type(headers).as_str() {
        "" | "application/json" => json_body(body, kind, message),
        "application/yaml" => yaml_body(body, kind, message),
        // Other fields than those of the message have no names there.
        protobuf::MEDIA_TYPE => {
            protobuf::decode(body).map(|value| Read { value, faults: Vec::new() })
        }
        _ => Err(Status::unknown_body_format()),
    }
}

/// The media type of the body, in lower case and without parameters; empty when there is none.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.map(|value| MediaType::parse(value).name).unwrap_or_default()
}

/// Reads JSON; the parser bounds its depth.
fn json_body(body: &[u8], kind: &str, message: Option<&Message>) -> Result<Read, Status> {
    read_json(body, message).map_err(|error| unrecognized(kind, "json", error, body))
}

/// Reads the configuration of an apply: YAML by its media type, JSON from most clients.
pub(super) fn configuration(body: &[u8]) -> Result<Read, Status> {
    // JSON is YAML but for its pairs of escapes, and read faster.
    read_json(body, None).or_else(|_| {
        decode::read(serde_yaml_ng::Deserializer::from_slice(body), None)
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))
    })
}

/// Reads JSON that is no object of a kind, or may be none: a patch.
pub(super) fn read_json(body: &[u8], message: Option<&Message>) -> serde_json::Result<Read> {
    let mut format = serde_json::Deserializer::from_slice(body);
    let read = decode::read(&mut format, message)?;
    format.end().map(|()| read)
}

fn yaml_body(body: &[u8], kind: &str, message: Option<&Message>) -> Result<Read, Status> {
    // The parser bounds depth and the expansion of aliases.
    decode::read(serde_yaml_ng::Deserializer::from_slice(body), message)
        .map_err(|error| unrecognized(kind, "yaml", error, body))
}

fn unrecognized(kind: &str, format: &str, error: impl ToString, body: &[u8]) -> Status {
    /// Characters of the body that the error repeats.
    const SHOWN_CHARACTERS: usize = 120;
    let shown: String = String::from_utf8_lossy(body).chars().take(SHOWN_CHARACTERS).collect();
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; \
         {format} parse error: {} ({shown})",
        error.to_string()
    ))
}

struct MediaType<'a> {
    name: String,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> MediaType<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .collect();
        Self { name, parameters }
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    /// `q` in thousandths; what is no number counts as 1.
    fn quality(&self) -> u16 {
        let quality = self.parameter("q").and_then(|value| value.parse::<f32>().ok());
        (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &str, is_discovery: bool) -> Result<Accepted, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header value"));
        accepted(&headers, is_discovery).map_err(|status| status.code)
    }

    const fn json(form: Form) -> Accepted {
        Accepted { form, encoding: Encoding::Json }
    }

    #[test]
    fn real_clients_get_what_they_ask_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                     application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;\
                          as=APIGroupDiscoveryList,application/json";
        const PROTOBUF: Accepted = Accepted { form: Form::Plain, encoding: Encoding::Protobuf };
        let both = "application/vnd.kubernetes.protobuf,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;\
                        g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;\
                        g=meta.k8s.io;v=v1,application/json";
        let cases = [
            (table, false, Ok(json(Form::Table))),
            (aggregated, true, Ok(json(Form::Discovery))),
            ("application/json, */*", true, Ok(Accepted::JSON)),
            (both, false, Ok(PROTOBUF)),
            (both, true, Ok(Accepted::JSON)),
            ("application/vnd.kubernetes.protobuf;stream=watch", false, Ok(PROTOBUF)),
            (metadata, false, Ok(json(Form::Partial))),
            ("application/vnd.kubernetes.protobuf", true, Err(406)),
            (
                "application/json;q=0.3, application/yaml",
                false,
                Ok(Accepted { form: Form::Plain, encoding: Encoding::Yaml }),
            ),
            ("text/html, */*;q=0.1", false, Ok(Accepted::JSON)),
            ("image/png", false, Err(406)),
            (aggregated, false, Ok(Accepted::JSON)),
        ];
        for (accept, is_discovery, expected) in cases {
            assert_eq!(negotiate(accept, is_discovery), expected, "{accept}");
        }
    }

    #[test]
    fn without_an_accept_header_the_answer_is_json() {
        assert_eq!(accepted(&HeaderMap::new(), false), Ok(Accepted::JSON));
    }

    #[test]
    fn bodies_are_read_by_their_type() {
        let read = |media: &str, body: &str| {
            let mut headers = HeaderMap::new();
            if !media.is_empty() {
                headers.insert(CONTENT_TYPE, media.parse().expect("a header value"));
            }
            super::body(&headers, body.as_bytes(), "ConfigMap", None).map(|read| read.value)
        };
        let object = serde_json::json!({"a": "b"});
        assert_eq!(read("", r#"{"a":"b"}"#), Ok(object.clone()));
        assert_eq!(read("application/json; charset=utf-8", r#"{"a":"b"}"#), Ok(object.clone()));
        assert_eq!(read("application/yaml", "a: b"), Ok(object));
        assert_eq!(read("text/xml", "<a/>").map_err(|status| status.code), Err(415));
        let refused = read("application/json", "{bad").expect_err("refused");
        assert!(refused.message.starts_with(
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get \
             version/kind; json parse error: "
        ));
    }

    #[test]
    fn hostile_bodies_are_refused_not_suffered() {
        let deep = "[".repeat(100_000);
        assert!(json_body(deep.as_bytes(), "Pod", None).is_err());
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, before) in ["b", "c", "d", "e", "f", "g", "h", "i", "j"]
            .into_iter()
            .zip(["a", "b", "c", "d", "e", "f", "g", "h", "i"])
        {
            let aliases = vec![format!("*{before}"); 9].join(",");
            bomb.push_str(&format!("{name}: &{name} [{aliases}]\n"));
        }
        assert!(yaml_body(bomb.as_bytes(), "Pod", None).is_err());
    }
}
