//! `kubectl attach` and what `kubectl run -i` makes of it: clients at the streams of a container's
//! first process (list 29 of the API server's specification).

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::kill;
use super::node::{Node, is_running, on_node, shell};
use super::remote::{SERVER, Session, get, websocket};
use crate::streams::tests::within;

const ATTACH: &str = "/attach/default/web/main?input=1&output=1&error=1";
const CHANNELS: [&str; 4] = ["error", "stdin", "stdout", "stderr"];
const TERMINAL: &str = "/attach/default/web/main?input=1&output=1&tty=1";
const CHANNELS_OF_TERMINAL: [&str; 4] = ["error", "stdin", "stdout", "resize"];

/// Lines of a kilobyte that a slow client waits with: more than the buffers of its connection hold,
/// and less than a log does.
const LINES: usize = 9000;

/// A pod whose container runs a script with the fields given; its uid.
async fn running(node: &Node, script: &str, fields: Value) -> String {
    let mut container = shell(script);
    for (name, value) in fields.as_object().expect("fields") {
        container[name] = value.clone();
    }
    let spec = json!({"restartPolicy": "Never", "containers": [container]});
    let uid = node.api.create_pod("web", spec);
    node.api.until_pod("web", "running", is_running).await;
    uid
}

async fn until_exit(node: &Node, code: i32) {
    let ended = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == code
    };
    node.api.until_pod("web", "ended as told", ended).await;
}

#[test]
fn the_input_of_the_first_client_ends_the_containers_where_that_is_asked_for() {
    on_node("attach", |node: Node| async move {
        let _runtime = node.start();
        let script = "cat; echo err >&2; exit 3";
        let uid = running(&node, script, json!({"stdin": true, "stdinOnce": true})).await;
        let mut session = Session::open(&node, ATTACH, &CHANNELS).await;
        // More than all buffers on the way hold, while nobody reads yet.
        let block = vec![b'x'; 20_000];
        for _ in 0..20 {
            session.send("stdin", &block, false).await;
            session.receive().await;
        }
        session.send("stdin", b"end\n", true).await;
        let status = session.finish().await;
        assert_eq!(status["status"], "Success");
        assert_eq!(session.text("stdout").len(), 400_004);
        assert_eq!(session.text("stderr"), "err\n");
        until_exit(&node, 3).await;
        let log = node.log(&uid, "main", 0);
        // Output and errors are two pipes: which of them is read first nobody says.
        assert!(log.iter().any(|line| line == "err"), "the log has the errors as well");
        assert!(log.iter().any(|line| line.ends_with("xend")), "the log has it as well");
        let (code, text) = get(&node, ATTACH).await;
        assert_eq!((code, text.as_str()), (404, "container not found (\"main\")"));
    });
}

#[test]
fn clients_come_and_go_at_a_terminal() {
    on_node("attachtty", |node: Node| async move {
        let _runtime = node.start();
        let fields = json!({"stdin": true, "stdinOnce": true, "tty": true,
            "securityContext": {"runAsUser": 1000}});
        let uid = running(&node, "exec sh", fields).await;
        let mut first = Session::open(&node, TERMINAL, &CHANNELS_OF_TERMINAL).await;
        first.send("resize", br#"{"Width":102,"Height":38}"#, false).await;
        first.send("stdin", b"tty; stty size; kept=sake; echo here >/dev/tty\n", false).await;
        first.until("stdout", "38 102").await;
        first.until("stdout", "\nhere").await;
        assert!(first.text("stdout").contains("/dev/pts/0"), "{}", first.text("stdout"));
        // The shell goes on without a client, and with two.
        drop(first);
        let mut second = Session::open(&node, TERMINAL, &CHANNELS_OF_TERMINAL).await;
        let mut third = Session::open(&node, TERMINAL, &CHANNELS_OF_TERMINAL).await;
        second.send("stdin", b"echo \"for $kept\"\n", false).await;
        second.until("stdout", "for sake").await;
        third.send("stdin", b"echo \"again $kept\"; exit 5\n", false).await;
        for session in [&mut second, &mut third] {
            let status = session.finish().await;
            assert_eq!(status["status"], "Success");
            assert!(session.text("stdout").contains("again sake"), "{}", session.text("stdout"));
        }
        until_exit(&node, 5).await;
        let log = node.log(&uid, "main", 0).join("\n");
        assert!(log.contains("for sake") && log.contains("again sake"), "{log}");
    });
}

#[test]
fn an_input_that_stays_open_takes_one_client_after_the_other() {
    on_node("attachagain", |node: Node| async move {
        let _runtime = node.start();
        let script = "while read line; do echo \"got $line\"; [ \"$line\" = over ] && exit 4; done";
        let uid = running(&node, script, json!({"stdin": true})).await;
        for word in ["one", "two"] {
            let mut session = Session::open(&node, ATTACH, &CHANNELS).await;
            session.send("stdin", format!("{word}\n").as_bytes(), true).await;
            let status = session.finish().await;
            assert_eq!(status["status"], "Success", "the end of a client's input is its own");
        }
        let got = |node: &Node| node.log(&uid, "main", 0);
        node.api
            .until(|_| (got(&node) == ["got one", "got two"]).then_some(()))
            .await
            .expect("both");
        // Version 4 of the websocket protocol cannot end its input: the container's end ends it.
        let sent: [&[u8]; 1] = [b"\0over\n"];
        let [_, stdout, stderr, status] =
            websocket(&node, ATTACH, "v4.channel.k8s.io", &sent).await;
        assert_eq!((stdout.as_str(), stderr.as_str()), ("got over\n", ""));
        assert!(status.contains("Success"), "{status}");
        until_exit(&node, 4).await;
    });
}

#[test]
fn a_container_without_input_is_watched() {
    on_node("attachwatch", |node: Node| async move {
        let _runtime = node.start();
        let script = "while [ ! -e /tmp/go ]; do sleep 0.02; done; echo out; echo err >&2; exit 6";
        running(&node, script, json!({})).await;
        let mut session = Session::open(&node, ATTACH, &CHANNELS).await;
        session.send("stdin", b"for nobody", false).await;
        let path = "/exec/default/web/main?command=touch&command=/tmp/go&output=1";
        Session::open(&node, path, &["error", "stdout"]).await.finish().await;
        let status = session.finish().await;
        assert_eq!(status["status"], "Success");
        assert_eq!(
            (session.text("stdout"), session.text("stderr")),
            ("out\n".into(), "err\n".into())
        );
        until_exit(&node, 6).await;
    });
}

#[test]
fn a_client_that_is_slow_loses_nothing_and_one_that_left_holds_nobody_up() {
    on_node("attachslow", |node: Node| async move {
        let _runtime = node.start();
        let script = "read go; i=0; while [ $i -lt 9000 ]; do i=$((i + 1)); \
                      printf '%01000d\\n' $i; done; exit 7";
        let uid = running(&node, script, json!({"stdin": true})).await;
        let mut slow = Session::open(&node, ATTACH, &CHANNELS).await;
        let left = Session::open(&node, ATTACH, &CHANNELS).await;
        slow.send("stdin", b"go\n", false).await;
        // Neither reads: what fits into all buffers is printed, and then no more.
        let lines = || node.log(&uid, "main", 0).len();
        let mut before = lines();
        let stalled = async {
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                let now = lines();
                if now > 0 && now == before {
                    return now;
                }
                before = now;
            }
        };
        let stalled = within("a standstill", stalled).await;
        assert!(stalled < LINES, "the container ended though a client had not taken its output");
        drop(left);
        let status = slow.finish().await;
        assert_eq!(status["status"], "Success");
        let text = slow.text("stdout");
        assert_eq!(text.lines().count(), LINES);
        assert_eq!(text.len(), LINES * 1001);
        until_exit(&node, 7).await;
        assert_eq!(lines(), LINES);
    });
}

#[test]
fn a_killed_runtime_ends_the_session_and_not_the_containers_input() {
    on_node("attachkill", |node: Node| async move {
        kill::serve(&node).await;
        let mut runtime = kill::start(&node);
        running(&node, "cat; exit 8", json!({"stdin": true, "stdinOnce": true})).await;
        let mut session = Session::open(&node, ATTACH, &CHANNELS).await;
        session.send("stdin", b"before\n", false).await;
        session.until("stdout", "before\n").await;
        runtime.kill();
        let mut runtime = kill::start(&node);
        // The new one knows the pod once it wants nothing but an upgrade.
        within("the new runtime", async {
            while TcpStream::connect(SERVER).await.is_err() || get(&node, ATTACH).await.0 != 400 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        let mut session = Session::open(&node, ATTACH, &CHANNELS).await;
        session.send("stdin", b"after\n", true).await;
        let status = session.finish().await;
        assert_eq!(status["status"], "Success");
        assert_eq!(session.text("stdout"), "after\n");
        until_exit(&node, 8).await;
        runtime.kill();
    });
}
