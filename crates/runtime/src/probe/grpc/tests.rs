//! Against a server of the test on loopback, by hyper's HTTP/2.

use std::convert::Infallible;

use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;

/// What a server answers: the head's status, the message, the trailers.
#[derive(Clone)]
struct Answer {
    status: u16,
    message: &'static [u8],
    trailers: Trailers,
}

/// Asks a server that gives one answer, and says what it was asked.
async fn ask(service: &str, answer: Answer) -> (Result<(), String>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let (sender, mut asked) = tokio::sync::mpsc::channel(1);
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (answer, sender) = (answer.clone(), sender.clone());
            async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let body = request.into_body().collect().await.expect("a message").to_bytes();
                let _ = sender.send(body.to_vec()).await;
                let mut trailers = HeaderMap::new();
                for (name, value) in answer.trailers {
                    trailers.insert(*name, value.parse().expect("a value"));
                }
                let frames = [
                    Ok::<_, Infallible>(Frame::data(Bytes::from_static(answer.message))),
                    Ok(Frame::trailers(trailers)),
                ];
                let body = StreamBody::new(futures_util::stream::iter(frames));
                Response::builder().status(answer.status).body(body)
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
    let stream = TcpStream::connect(address).await.expect("a connection");
    let result = check(stream, address, service, "kube-probe/1.33").await;
    let asked = asked.recv().await.unwrap_or_default();
    server.abort();
    (result, asked)
}

type Trailers = &'static [(&'static str, &'static str)];

/// Status, message, trailers, and what they are judged to be.
type Case = (u16, &'static [u8], Trailers, Result<(), String>);

const OK: Trailers = &[("grpc-status", "0")];

#[tokio::test]
async fn answers_are_judged_in_the_kubelets_words() {
    let prefix = "error: health rpc probe failed: rpc error: code =";
    let cases: [Case; 6] = [
        (200, b"\0\0\0\0\x02\x08\x01", OK, Ok(())),
        (
            200,
            b"\0\0\0\0\x02\x08\x02",
            OK,
            Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        ),
        (200, b"\0\0\0\0\0", OK, Err("service unhealthy (responded with \"UNKNOWN\")".into())),
        (
            200,
            b"",
            &[("grpc-status", "5"), ("grpc-message", "unknown service")],
            Err(format!("{prefix} NotFound desc = unknown service")),
        ),
        (
            200,
            b"",
            &[("grpc-status", "12"), ("grpc-message", "no such method")],
            Err("error: this server does not implement the grpc health protocol \
                 (grpc.health.v1.Health): no such method"
                .into()),
        ),
        (
            503,
            b"busy",
            &[],
            Err(format!(
                "{prefix} Unavailable desc = unexpected HTTP status code received from server: \
                 503 Service Unavailable"
            )),
        ),
    ];
    for (status, message, trailers, expected) in cases {
        let (result, asked) = ask("shop", Answer { status, message, trailers }).await;
        assert_eq!(result, expected);
        assert_eq!(asked, b"\0\0\0\0\x06\x0a\x04shop");
    }
    let whole = Answer { status: 200, message: b"\0\0\0\0\x02\x08\x01", trailers: OK };
    assert_eq!(ask("", whole).await, (Ok(()), b"\0\0\0\0\0".to_vec()));
}

#[tokio::test]
async fn a_server_that_speaks_no_http2_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let server = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.expect("a client");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let stream = TcpStream::connect(address).await.expect("a connection");
    let error = check(stream, address, "", "kube-probe/1.33").await.expect_err("no gRPC");
    assert!(error.starts_with("error: health rpc probe failed: rpc error: code = Un"), "{error}");
    server.abort();
}

proptest! {
    #[test]
    fn no_answer_ends_the_runtime(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = status(&bytes);
        let mut framed = vec![0];
        framed.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        framed.extend(&bytes);
        let _ = status(&framed);
    }
}
