//! One question by gRPC's health protocol (`grpc.health.v1.Health/Check`) over plain HTTP/2, as the
//! kubelet asks it. The two messages have one field each: they are written and read by hand.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Longest answer that is read, bytes: a health check's has two.
const MAX_ANSWER_BYTES: usize = 4 * 1024;
/// `status` of `HealthCheckResponse` by number.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
/// The one status that counts as healthy.
const SERVING: u64 = 1;
/// gRPC's codes by number (`google.rpc.Code`), as its libraries write them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// The code of a server that has no health service.
const UNIMPLEMENTED: usize = 12;
const UNKNOWN: usize = 2;
const UNAVAILABLE: usize = 14;

/// Asks for the health of a service; of the server as a whole where its name is empty.
///
/// # Errors
/// The kubelet's words.
pub async fn check(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
    user_agent: &str,
) -> Result<(), String> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(UNAVAILABLE, &error.to_string()))?;
    let exchange = async {
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header("Content-Type", "application/grpc")
            .header("TE", "trailers")
            .header("User-Agent", user_agent)
            .body(Full::new(Bytes::from(question(service))))
            .map_err(|error| failed(UNKNOWN, &error.to_string()))?;
        let unavailable = |error: hyper::Error| failed(UNAVAILABLE, &error.to_string());
        read(sender.send_request(request).await.map_err(unavailable)?).await
    };
    tokio::select! {
        result = exchange => result,
        // Its end shows in the exchange, after all that came before it.
        () = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        } => Err(failed(UNAVAILABLE, "the connection ended")),
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<(), String> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let message = format!("unexpected HTTP status code received from server: {}", head.status);
        return Err(failed(code_of(head.status), &message));
    }
    let body = Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| failed(UNAVAILABLE, &error.to_string()))?;
    // An answer without a body may have its result in the head.
    let trailers = body.trailers().filter(|trailers| trailers.contains_key("grpc-status"));
    let (code, message) = outcome(trailers.unwrap_or(&head.headers));
    if code != 0 {
        return Err(failed(code, &message));
    }
    match status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(status) => {
            let known = usize::try_from(status).ok().and_then(|status| STATUSES.get(status));
            let name = known.map_or_else(|| status.to_string(), ToString::to_string);
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        None => Err(failed(UNKNOWN, "the answer is no HealthCheckResponse")),
    }
}

/// What gRPC's libraries make of an answer that is none of gRPC (its `http-grpc-status-mapping`).
fn code_of(status: StatusCode) -> usize {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

fn outcome(headers: &HeaderMap) -> (usize, String) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(str::parse) {
        Some(Ok(code)) => (code, text("grpc-message").unwrap_or_default().to_owned()),
        _ => (UNKNOWN, "the answer has no grpc-status".to_owned()),
    }
}

fn failed(code: usize, message: &str) -> String {
    if code == UNIMPLEMENTED {
        return format!(
            "error: this server does not implement the grpc health protocol \
             (grpc.health.v1.Health): {message}"
        );
    }
    let name = CODES.get(code).copied().unwrap_or("Unknown");
    format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}")
}

/// `HealthCheckRequest{service = 1}` with gRPC's prefix: not compressed, and its length.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a); // Field 1, bytes.
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

/// `HealthCheckResponse{status = 1}`, behind gRPC's prefix. An absent field is zero.
fn status(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None; // Compression was not offered.
    }
    let mut status = 0;
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, after) = varint(rest)?;
        rest = match tag & 7 {
            0 => {
                let (value, after) = varint(after)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                after
            }
            1 => after.get(8..)?,
            2 => {
                let (length, after) = varint(after)?;
                after.get(usize::try_from(length).ok()?..)?
            }
            5 => after.get(4..)?,
            _ => return None,
        };
    }
    Some(status)
}

/// A number in protobuf's encoding, and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(index as u32 * 7)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests;
