//! The HTTP side of a stream: on what client and node agree before the connection is theirs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};

/// The header in which SPDY's clients name the versions that they speak, and servers the one chosen.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The version of websockets (RFC 6455, section 4.1).
const WEBSOCKET_VERSION: &str = "13";
/// Appended to a websocket's key before it is hashed (RFC 6455, section 1.3).
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a websocket's key, decoded.
const WEBSOCKET_KEY_BYTES: usize = 16;

/// What carries the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// SPDY/3.1.
    Spdy,
    /// A websocket.
    WebSocket,
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// What carries the streams.
    pub carrier: Carrier,
    /// The protocol spoken over it.
    pub protocol: &'static str,
    /// The headers of the answer `101 Switching Protocols`.
    pub headers: HeaderMap,
}

/// The protocols that are served over each carrier.
pub struct Served {
    /// Over SPDY.
    pub spdy: &'static [&'static str],
    /// Over websockets.
    pub websocket: &'static [&'static str],
}

/// Agrees on the first protocol of the client's that is served.
///
/// # Errors
/// The answer for a request that is no such upgrade, or asks for nothing that is served.
pub fn agree(headers: &HeaderMap, served: &Served) -> Result<Agreement, (StatusCode, String)> {
    let bad = |message: &str| (StatusCode::BAD_REQUEST, message.to_owned());
    if !words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(bad("Upgrade request required"));
    }
    let asks = |name: &str| words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(name));
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if asks("SPDY/3.1") {
        let protocol = choose(headers, &STREAM_PROTOCOL, served.spdy)?;
        answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        return Ok(Agreement { carrier: Carrier::Spdy, protocol, headers: answer });
    }
    if !asks("websocket") {
        return Err(bad("unable to upgrade: streams are served over SPDY/3.1 and websockets"));
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if text(SEC_WEBSOCKET_VERSION) != Some(WEBSOCKET_VERSION) {
        return Err(bad("unable to upgrade: Sec-WebSocket-Version must be 13"));
    }
    let key = text(SEC_WEBSOCKET_KEY).unwrap_or_default().trim();
    if STANDARD.decode(key).map(|key| key.len()) != Ok(WEBSOCKET_KEY_BYTES) {
        return Err(bad("unable to upgrade: Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let protocol = choose(headers, &SEC_WEBSOCKET_PROTOCOL, served.websocket)?;
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    let accept = HeaderValue::from_str(&accept_key(key));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|error| bad(&error.to_string()))?);
    Ok(Agreement { carrier: Carrier::WebSocket, protocol, headers: answer })
}

fn choose(
    headers: &HeaderMap,
    name: &HeaderName,
    served: &'static [&'static str],
) -> Result<&'static str, (StatusCode, String)> {
    let asked: Vec<&str> = words(headers, name).collect();
    if asked.is_empty() {
        let message = format!("unable to upgrade: {name} is required");
        return Err((StatusCode::BAD_REQUEST, message));
    }
    let chosen = asked.iter().find_map(|asked| served.iter().find(|served| *served == asked));
    chosen.copied().ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts \
             [{}]",
            asked.join(" "),
            served.join(" ")
        );
        (StatusCode::FORBIDDEN, message)
    })
}

/// The comma-separated words of all headers of a name.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// What shows a client that its handshake was understood (RFC 6455, section 4.2.2). The hash
/// guards nothing.
fn accept_key(key: &str) -> String {
    let text = format!("{key}{WEBSOCKET_GUID}");
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVED: Served = Served { spdy: &["v4.channel.k8s.io"], websocket: &["v5", "v4"] };
    type Rows = &'static [(&'static str, &'static str)];
    const KEY: Rows = &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    const VERSION: Rows = &[("sec-websocket-version", "13")];
    const TO_SPDY: Rows = &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    const TO_WEBSOCKET: Rows = &[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];

    fn ask(rows: &[Rows]) -> Result<Agreement, (u16, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in rows.iter().copied().flatten() {
            headers.append(*name, HeaderValue::from_static(value));
        }
        agree(&headers, &SERVED).map_err(|(code, message)| (code.as_u16(), message))
    }

    #[test]
    fn the_clients_first_protocol_that_is_served_is_chosen() {
        let versions: Rows = &[
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ];
        let spdy = ask(&[TO_SPDY, versions]).expect("agreed");
        assert_eq!((spdy.carrier, spdy.protocol), (Carrier::Spdy, "v4.channel.k8s.io"));
        assert_eq!(spdy.headers["x-stream-protocol-version"], "v4.channel.k8s.io");
        let protocols: Rows = &[("sec-websocket-protocol", "v6, v4,v5")];
        let socket = ask(&[TO_WEBSOCKET, KEY, VERSION, protocols]).expect("agreed");
        assert_eq!((socket.carrier, socket.protocol), (Carrier::WebSocket, "v4"));
        // The example of RFC 6455, section 1.3.
        assert_eq!(socket.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(socket.headers["sec-websocket-protocol"], "v4");
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        let connection: Rows = &[("connection", "Upgrade")];
        let other: Rows = &[("upgrade", "h2c")];
        let unknown: Rows = &[("x-stream-protocol-version", "v1")];
        let protocol: Rows = &[("sec-websocket-protocol", "v5")];
        let short: Rows = &[("sec-websocket-key", "c2hvcnQ=")];
        let old: Rows = &[("sec-websocket-version", "8")];
        let cases: &[(&[Rows], u16, &str)] = &[
            (&[], 400, "Upgrade request required"),
            (&[connection, other], 400, "SPDY/3.1 and websockets"),
            (&[TO_SPDY], 400, "x-stream-protocol-version is required"),
            (&[TO_SPDY, unknown], 403, "client supports [v1], server accepts [v4.channel"),
            (&[TO_WEBSOCKET, KEY, protocol], 400, "Version must be 13"),
            (&[TO_WEBSOCKET, KEY, old, protocol], 400, "Version must be 13"),
            (&[TO_WEBSOCKET, VERSION, protocol], 400, "16 bytes"),
            (&[TO_WEBSOCKET, VERSION, short, protocol], 400, "16 bytes"),
            (&[TO_WEBSOCKET, KEY, VERSION], 400, "sec-websocket-protocol is required"),
        ];
        for (rows, code, part) in cases {
            let (found, message) = ask(rows).expect_err("refused");
            assert!(found == *code && message.contains(part), "{rows:?}: {found} {message}");
        }
    }
}
