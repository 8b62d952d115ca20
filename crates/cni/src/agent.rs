//! The questions of ADD to the node's agent. Which addresses shall this pod get? Asked only where
//! the configuration says so (`ipam.agentSocket`), for pods whose addresses the API decides. And
//! where links have programs of Services: has this one got them? Where no agent answers that, they
//! are brought without it.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ipam::RangeSet;
use kernel::bpf::FILE_SYSTEM;
use kernel::bpf::service_nat::{self, unattended};
use model::{NamespacedName, layout};
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, INVALID_ENVIRONMENT, NO_ADDRESS, TRY_AGAIN};

/// Longest wait for the agent, which may have to ask the API server.
const AGENT_WAIT: Duration = Duration::from_secs(10);
/// Longest wait until a pod's link has its programs. Only datagrams of the pod's first instants
/// need them that early, so that nothing fails afterwards.
const PROGRAMS_WAIT: Duration = Duration::from_secs(2);
/// How long between two questions about them.
const PROGRAMS_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// Bytes of a name of an object (RFC 1123 subdomain).
const NAME_BYTES_MAX: usize = 253;

/// The path that is asked at; `namespace`, `name` and `uid` follow as a query.
pub const PATH: &str = "/pod-addresses";
/// What the path begins with that is asked about a pod's link; the link's name follows.
pub const LINK_PATH: &str = "/pod-links/";
/// HTTP status of an answer that another question may change soon.
pub const NOT_YET: u16 = 503;

/// What the agent says of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAddresses {
    /// The very addresses that the pod is to have; any where it is empty.
    pub requested: Vec<IpAddr>,
    /// Ranges to choose from, one set a family.
    pub ranges: Vec<RangeSet>,
}

/// Asks the agent. `None` for a container that is no pod.
///
/// # Errors
/// Code 11 when the agent is not there or does not know yet; code 102 with its reason when the pod
/// cannot have what it asks for.
pub(crate) fn ask(
    socket: &Path,
    pod: Option<&NamespacedName>,
    uid: &str,
) -> Result<Option<PodAddresses>, Fault> {
    let Some(pod) = pod else { return Ok(None) };
    for name in [&pod.namespace, &pod.name] {
        check_name(name)?;
    }
    if !uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(invalid("K8S_POD_UID", uid));
    }
    let query = format!("{PATH}?namespace={}&name={}&uid={uid}", pod.namespace, pod.name);
    let answer = exchange(socket, &query, AGENT_WAIT).map_err(|error| {
        let message = format!(
            "the node's agent, which knows the addresses of pod {pod}, does not answer at {}",
            socket.display()
        );
        Fault::new(TRY_AGAIN, message, format!("{error}; look at the agent's log"))
    })?;
    match answer {
        (200, body) => serde_json::from_str(&body).map(Some).map_err(|error| {
            let message = "the agent's answer cannot be understood";
            Fault::new(TRY_AGAIN, message, format!("{error}; do agent and plugin match?"))
        }),
        (NOT_YET, reason) => {
            Err(Fault::new(TRY_AGAIN, format!("pod {pod} gets no address yet"), reason))
        }
        (_, reason) => Err(Fault::new(NO_ADDRESS, format!("pod {pod} gets no address"), reason)),
    }
}

/// Sees to it that packets of Services that a new pod sends are translated at its link, where that
/// is done there (Services in eBPF). The agent does it; where none answers, its pinned programs are
/// attached without it (R-02).
pub(crate) fn ensure_programs(link: &str) {
    let file_system = Path::new(FILE_SYSTEM);
    if !service_nat::is_present(file_system) {
        return;
    }
    let socket = Path::new(layout::RUN_DIRECTORY).join(layout::AGENT_SOCKET);
    if !await_programs_at(&socket, link, PROGRAMS_WAIT) {
        // A pod without is better than none, and the agent says what is wrong when it is back.
        let _ = unattended::attach(file_system, link);
    }
}

/// Whether an agent has answered; the wait is not for long.
fn await_programs_at(socket: &Path, link: &str, wait: Duration) -> bool {
    let deadline = Instant::now() + wait;
    let query = format!("{LINK_PATH}{link}");
    loop {
        // A timeout of zero would be none.
        let left = deadline.saturating_duration_since(Instant::now()).max(PROGRAMS_PAUSE);
        match exchange(socket, &query, left) {
            Err(error) if is_nobody_there(&error) => return false,
            Err(_) | Ok((NOT_YET, _)) => {}
            // Also of an agent that knows no such question.
            Ok(_) => return true,
        }
        if Instant::now() + PROGRAMS_PAUSE >= deadline {
            return false;
        }
        std::thread::sleep(PROGRAMS_PAUSE);
    }
}

/// Whether no agent runs: its socket is not there, or nobody listens at it any more.
fn is_nobody_there(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Whether the agent can be asked.
///
/// # Errors
/// Code 11.
pub(crate) fn knock(socket: &Path) -> Result<(), Fault> {
    UnixStream::connect(socket).map(drop).map_err(|error| {
        let message = format!("the node's agent does not answer at {}", socket.display());
        Fault::new(TRY_AGAIN, message, format!("{error}; look at the agent's log"))
    })
}

/// One request of HTTP/1.1 whose answer ends with the connection.
fn exchange(socket: &Path, query: &str, wait: Duration) -> std::io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    // In one write: an agent that refuses by the first words closes while the others come.
    let question = format!("GET {query} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    let wrong = || std::io::Error::other("the answer is no HTTP");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
    Ok((code, body.to_owned()))
}

/// Names go into the question: what would end it early, or change it, is no name.
fn check_name(name: &str) -> Result<(), Fault> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all_plain = name.bytes().all(|byte| is_plain(byte) || b"-.".contains(&byte));
    if all_plain && (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(invalid("K8S_POD_NAMESPACE and K8S_POD_NAME", name))
}

fn invalid(key: &str, value: &str) -> Fault {
    let message = format!("invalid {key}: {value:?}");
    Fault::new(INVALID_ENVIRONMENT, message, "the container runtime names a pod wrongly")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one question with a text and gives back the question.
    fn agent(name: &str, answer: &'static str) -> (std::path::PathBuf, impl FnOnce() -> String) {
        let (socket, questions) = busy_agent(name, vec![answer]);
        (socket, || questions().remove(0))
    }

    /// Answers as many questions as it has texts.
    fn busy_agent(
        name: &str,
        answers: Vec<&'static str>,
    ) -> (std::path::PathBuf, impl FnOnce() -> Vec<String>) {
        let path = std::env::temp_dir().join(format!("flatnet-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let socket = path.clone();
        let server = std::thread::spawn(move || {
            let one = |answer: &str| {
                let (mut stream, _) = listener.accept().expect("asked");
                let mut question = [0; 4096];
                let length = stream.read(&mut question).expect("a question");
                stream.write_all(answer.as_bytes()).expect("answered");
                String::from_utf8_lossy(&question[..length]).into_owned()
            };
            let questions = answers.into_iter().map(one).collect();
            let _ = std::fs::remove_file(socket);
            questions
        });
        (path, move || server.join().expect("answered"))
    }

    fn web() -> NamespacedName {
        NamespacedName::new("shop", "web-0")
    }

    #[test]
    fn the_agents_answer_is_taken_and_its_refusals_are_told() {
        let body = r#"{"requested":["10.9.0.5"],"ranges":[[{"subnet":"10.9.0.0/28"}]]}"#;
        let good: &str = Box::leak(format!("HTTP/1.1 200 OK\r\na: b\r\n\r\n{body}").into());
        let (socket, question) = agent("good", good);
        let answer = ask(&socket, Some(&web()), "u-1").expect("answered").expect("a pod");
        assert_eq!(answer.requested, ["10.9.0.5".parse::<IpAddr>().expect("an address")]);
        assert_eq!(answer.ranges[0][0].subnet.to_string(), "10.9.0.0/28");
        let wanted = "GET /pod-addresses?namespace=shop&name=web-0&uid=u-1 HTTP/1.1\r\n";
        assert!(question().starts_with(wanted));
        let rows = [
            ("later", "HTTP/1.1 503 x\r\n\r\nno block yet", TRY_AGAIN, "no block yet"),
            ("never", "HTTP/1.1 409 x\r\n\r\nno ordinal", NO_ADDRESS, "no ordinal"),
            ("noise", "hello", TRY_AGAIN, "no HTTP"),
        ];
        for (name, answer, code, expected) in rows {
            let (socket, question) = agent(name, answer);
            let fault = ask(&socket, Some(&web()), "").expect_err(name);
            question();
            assert_eq!(fault.code, code, "{fault}");
            assert!(fault.details.contains(expected), "{fault}");
        }
    }

    #[test]
    fn without_an_agent_the_runtime_tries_again_and_without_a_pod_nobody_is_asked() {
        let nowhere = Path::new("/nonexistent/agent.sock");
        assert_eq!(ask(nowhere, Some(&web()), "").expect_err("nobody").code, TRY_AGAIN);
        assert_eq!(ask(nowhere, None, ""), Ok(None));
    }

    /// Issue 4: ADD waits for the programs of a pod's link, and never for long.
    #[test]
    fn add_waits_for_the_programs_of_a_link_and_not_for_ever() {
        let long = Duration::from_secs(30);
        let rows = ["HTTP/1.1 200 OK\r\n\r\nok", "HTTP/1.1 404 x\r\n\r\nan older agent"];
        for answer in rows {
            let begun = Instant::now();
            let (socket, question) = agent("link", answer);
            assert!(await_programs_at(&socket, "veth1", long), "{answer}");
            assert!(question().starts_with("GET /pod-links/veth1 HTTP/1.1\r\n"));
            assert!(begun.elapsed() < long, "{answer}");
        }
        let not_yet = "HTTP/1.1 503 x\r\n\r\nnot yet";
        let (socket, questions) = busy_agent("not-yet", vec![not_yet, not_yet, rows[0]]);
        assert!(await_programs_at(&socket, "veth1", long), "it asks again");
        assert_eq!(questions().len(), 3);
        let (socket, question) = agent("too-late", not_yet);
        assert!(!await_programs_at(&socket, "veth1", Duration::ZERO), "its time is over");
        question();
        let begun = Instant::now();
        let nowhere = Path::new("/nonexistent/agent.sock");
        assert!(!await_programs_at(nowhere, "veth1", long), "nobody is there");
        assert!(begun.elapsed() < long, "nobody is waited for");
    }

    #[test]
    fn names_that_would_change_the_question_are_refused() {
        let nowhere = Path::new("/nonexistent/agent.sock");
        for (namespace, name, uid) in [
            ("a b", "w", ""),
            ("", "w", ""),
            ("a", "w&x=1", ""),
            ("a", "w\r\n", ""),
            ("a", "w", "1 "),
        ] {
            let pod = NamespacedName::new(namespace, name);
            let fault = ask(nowhere, Some(&pod), uid).expect_err(name);
            assert_eq!(fault.code, INVALID_ENVIRONMENT, "{fault}");
        }
    }
}
