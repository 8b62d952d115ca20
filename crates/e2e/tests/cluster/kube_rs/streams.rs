//! exec and port-forward of kube-rs, which knows websockets alone.

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::world::NAMESPACE;
use super::within;

/// Input with its end, both outputs, and the exit code.
pub async fn exec(client: &Client) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let parameters = AttachParams::default().stdin(true);
    let command = ["sh", "-c", "cat; echo wrong >&2; exit 3"];
    let mut process = pods.exec("tools", command, &parameters).await?;
    let mut input = process.stdin().context("no input")?;
    input.write_all(b"hello\n").await?;
    input.shutdown().await?;
    drop(input);
    let output = process.stdout().context("no output")?;
    let errors = process.stderr().context("no errors")?;
    ensure!(all_of(output).await? == "hello\n");
    ensure!(all_of(errors).await? == "wrong\n");
    let status = status_of(process).await?;
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = code.and_then(|cause| cause.message.as_deref());
    ensure!(code == Some("3"), "{causes:?}");
    Ok(())
}

/// A terminal takes the size of the client's.
pub async fn terminal(client: &Client) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let wait = r#"until [ "$(stty size)" = "40 100" ]; do sleep 0.1; done; echo sized"#;
    let parameters = AttachParams::interactive_tty();
    let mut process = pods.exec("tools", ["sh", "-c", wait], &parameters).await?;
    let mut size = process.terminal_size().context("no size")?;
    size.send(TerminalSize { height: 40, width: 100 }).await?;
    let output = process.stdout().context("no output")?;
    ensure!(all_of(output).await? == "sized\r\n");
    let status = status_of(process).await?;
    ensure!(status.status.as_deref() == Some("Success"), "{status:?}");
    Ok(())
}

/// A port that answers, and one where nobody listens.
pub async fn port_forward(client: &Client) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let mut forwarder = pods.portforward("echo-node1", &[8080]).await?;
    let mut stream = forwarder.take_stream(8080).context("no stream")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let answer = all_of(stream).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("echo-node1"), "{answer}");

    let mut forwarder = pods.portforward("echo-node1", &[9]).await?;
    let refused = forwarder.take_error(9).context("no errors")?;
    let text = within("a refusal", refused).await?.context("it is not refused")?;
    ensure!(text.to_lowercase().contains("connection refused"), "{text}");
    Ok(())
}

async fn all_of(mut stream: impl AsyncReadExt + Unpin) -> Result<String> {
    let mut text = String::new();
    within("the end of a stream", stream.read_to_string(&mut text)).await??;
    Ok(text)
}

async fn status_of(mut process: AttachedProcess) -> Result<Status> {
    let status = process.take_status().context("no status")?;
    within("the status", status).await?.context("the stream ends without a status")
}
