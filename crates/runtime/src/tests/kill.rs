//! `kill -9` of the runtime, a process of its own that reaches the API over TLS.

use std::convert::Infallible;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::api::Api;
use super::node::{BINARIES, Node, binaries, is_running, on_node, shell};
use client::Transport;

/// How often the runtime is killed.
const KILLS: u32 = 10;
/// Where the child process finds its node's files.
const ROOT: &str = "FLATNET_TEST_NODE";

/// Serves the API in memory over TLS, and writes a kubeconfig for it.
pub async fn serve(node: &Node) {
    let issued = node.authority.issue("server", Some("127.0.0.1"));
    let certificate = CertificateDer::from_pem_file(&issued.certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let api = node.api.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, api) = (acceptor.clone(), api.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| answer(api.clone(), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let identity = node.authority.issue("system:node:node1", None);
    let path = node.root.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": node.authority.file()}}],
        "users": [{"name": "u", "user": {
            "client-certificate": identity.certificate, "client-key": identity.key}}],
    });
    fs::write(&path, text.to_string()).expect("written");
}

/// The port that [`serve`] has put into the kubeconfig.
pub fn port(node: &Node) -> u16 {
    let text = fs::read_to_string(node.root.join("kubeconfig")).expect("a kubeconfig");
    let config: Value = serde_json::from_str(&text).expect("a kubeconfig");
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("a server");
    server.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

async fn answer(
    api: Api,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<client::Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let request = hyper::Request::from_parts(parts, Full::new(body));
    Ok(api.send(request).await.expect("an answer"))
}

/// The runtime as this very program, started to run only [`runtime_process`].
pub fn start(node: &Node) -> Process {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "tests::kill::runtime_process", "--ignored", "--nocapture"])
        .env(ROOT, &node.root)
        .env(BINARIES, binaries())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.expect("the runtime"))
}

/// A runtime process, killed with SIGKILL when the test lets go of it, however it ends.
pub struct Process(Child);

impl Process {
    pub fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "not a test: the process that other tests here start and kill"]
fn runtime_process() {
    let Some(root) = std::env::var_os(ROOT).map(std::path::PathBuf::from) else { return };
    let options = super::node::options(&root);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(crate::run(options)).expect("a runtime that goes on");
}

#[test]
fn killing_the_runtime_disturbs_no_container_and_loses_no_line() {
    on_node("kill", |node: Node| async move {
        serve(&node).await;
        let mut runtime = start(&node);
        let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
        let mut main = shell(script);
        main["readinessProbe"] = json!({"periodSeconds": 1, "exec": {"command": ["true"]}});
        let uid = node.api.create_pod("steady", json!({"containers": [main]}));
        let ready =
            |pod: &Value| is_running(pod) && pod["status"]["containerStatuses"][0]["ready"] == true;
        let before = node.api.until_pod("steady", "ready", ready).await;
        let pid = node.pause_pid(&uid).await;
        // What others say of the pod is not the runtime's to note.
        let mut own = before["status"].clone();
        let conditions = own["conditions"].as_array_mut().expect("conditions");
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        // A runtime that dies between its write and the note of it writes the same once more.
        let file = node.pod_state(&uid).join("pod.json");
        let noted = |_: &Api| {
            let kept: Value = crate::disk::read_json(&file)?;
            (kept["reported"] == own).then_some(())
        };
        node.api.until(noted).await.expect("the status is noted on disk");
        for round in 0..KILLS {
            runtime.kill();
            let lines = node.log(&uid, "main", 0).len();
            runtime = start(&node);
            // The new runtime has taken over when it renews the lease.
            node.api.forget_writes();
            let renewed =
                |api: &Api| api.writes().iter().any(|write| write.contains("leases")).then_some(());
            node.api.until(renewed).await.unwrap_or_else(|| panic!("not back in round {round}"));
            node.api
                .until(|_| (node.log(&uid, "main", 0).len() > lines).then_some(()))
                .await
                .expect("the container goes on");
            let pod_writes: Vec<String> =
                node.api.writes().into_iter().filter(|write| write.contains("/pods/")).collect();
            assert_eq!(pod_writes, Vec::<String>::new(), "a restart writes nothing");
        }
        assert_eq!(node.pause_pid(&uid).await, pid);
        let after = node.api.pod("steady").expect("a pod");
        assert_eq!(after["status"], before["status"]);
        let log = node.log(&uid, "main", 0);
        let expected: Vec<String> = (1..=log.len()).map(|i| format!("line {i}")).collect();
        assert_eq!(log, expected);
        node.api.delete_pod("steady", 0);
        node.api.until_gone("steady").await;
        runtime.kill();
    });
}

#[test]
fn what_happened_while_the_runtime_was_away_is_learned() {
    on_node("away", |node: Node| async move {
        serve(&node).await;
        let mut runtime = start(&node);
        let never = |script: &str| json!({"restartPolicy": "Never", "containers": [shell(script)]});
        let wait = "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 4";
        let ends = node.api.create_pod("ends", never(wait));
        let deleted = node.api.create_pod("deleted", never("exec sleep 1000"));
        let lost = node.api.create_pod("lost", json!({"containers": [shell("exec sleep 1000")]}));
        for name in ["ends", "deleted", "lost"] {
            node.api.until_pod(name, "running", is_running).await;
        }
        runtime.kill();
        // One container ends, one pod is removed from the API, one pause process dies.
        let socket = node.pod_run(&ends).join("pause.sock");
        let spec = pause::ExecSpec {
            container: "main".into(),
            arguments: ["touch", "/tmp/go"].map(str::to_owned).into(),
            terminal: false,
            kill_on_close: false,
        };
        let null = std::fs::File::open("/dev/null").expect("null");
        use std::os::fd::AsFd;
        let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
        let mut command =
            crate::pause_client::execute(&socket, &spec, streams).await.expect("a command");
        assert_eq!(command.exit_code().await, Some(0));
        let exit = node.pod_state(&ends).join("containers/main/0.exit");
        node.api.until(|_| exit.exists().then_some(())).await.expect("an exit on disk");
        node.api.remove(&super::api::pod_path("deleted"));
        let pid = nix::unistd::Pid::from_raw(node.pause_pid(&lost).await);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("killed");
        let mut runtime = start(&node);
        let failed = |pod: &Value| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            pod["status"]["phase"] == "Failed" && ended["exitCode"] == 4
        };
        node.api.until_pod("ends", "failed with 4", failed).await;
        let renewed = |pod: &Value| is_running(pod) && pod["status"]["podIP"] == "10.99.0.5";
        node.api.until_pod("lost", "running at a new address", renewed).await;
        let gone = || !node.pod_state(&deleted).exists() && !node.pod_run(&deleted).exists();
        node.api.until(|_| gone().then_some(())).await.expect("removed");
        runtime.kill();
    });
}
