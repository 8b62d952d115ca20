//! The program as pods run it: in a network namespace of the test's own, with its own
//! `/etc/resolv.conf`. Needs root and `ip`; fails without.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use lab::{Lab, Running};
use serde_json::Value;

/// Waits are bounded by this.
const DEADLINE: Duration = Duration::from_secs(5);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn serving(lab: &Lab, words: &str) -> Running {
    let pod = [
        ("POD_NAME", "web-1"),
        ("POD_NAMESPACE", "shop"),
        ("NODE_NAME", "node1"),
        ("POD_IP", "127.0.0.9"),
    ];
    let running = lab.start(words, &pod);
    until("the server listens", || lab.run("http http://127.0.0.1:80/healthz").code == 0);
    running
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|error| {
        panic!("{error} in {text:?}");
    })
}

#[test]
fn a_server_says_who_it_is_and_whom_it_sees() {
    let lab = Lab::new();
    let _server = serving(&lab, "serve --http 80 --http 8080 --udp 9000");
    for url in ["http://127.0.0.1/a?b", "http://127.0.0.1:8080/a?b", "http://[::1]/a?b"] {
        let answer = json(&lab.run(&format!("http {url}")).stdout);
        assert_eq!(answer["pod"], "web-1");
        assert_eq!(answer["namespace"], "shop");
        assert_eq!(answer["node"], "node1");
        assert_eq!(answer["podIP"], "127.0.0.9");
        assert_eq!(answer["path"], "/a?b");
        let client = if url.contains("::1") { "::1" } else { "127.0.0.1" };
        assert_eq!(answer["client"], client);
        assert!(url.contains(answer["host"].as_str().expect("a host")));
    }
    let answer = json(&lab.run("udp 127.0.0.1 9000 --payload-bytes 3000").stdout);
    assert_eq!((&answer["pod"], &answer["bytes"]), (&"web-1".into(), &3000.into()));
}

#[test]
fn paths_of_the_server_do_what_they_say() {
    let lab = Lab::new();
    let mut server = serving(&lab, "serve --http 80");
    let code = |words: &str| lab.run(&format!("http http://127.0.0.1{words}")).code;
    assert_eq!(code("/ready"), 0);
    assert_eq!(code("/ready/false --post-bytes 0"), 0);
    assert_eq!(code("/ready"), 1);
    assert_eq!(code("/ready --expect-codes 500,503"), 0);
    assert_eq!(code("/healthz"), 0);
    assert_eq!(code("/ready/true --post-bytes 0"), 0);
    assert_eq!(code("/ready"), 0);
    let bytes = lab.run("http http://127.0.0.1/bytes?n=10000000 --count 1 --json");
    assert_eq!(json(&bytes.stdout)["body_bytes"], 10_000_000);
    let echo = json(&lab.run("http http://127.0.0.1/echo --post-bytes 1000000").stdout);
    assert_eq!(echo["bytes"], 1_000_000);
    assert_eq!(code("/delay?ms=1"), 0);
    let slow = lab.run("http http://127.0.0.1/delay?ms=3000 --timeout-ms 50");
    assert_eq!((slow.code, slow.stderr.contains("timeout")), (1, true));
    assert_eq!(code("/exit?code=9"), 0);
    assert_eq!(server.wait(), Some(9));
    let refused = lab.run("http http://127.0.0.1/");
    assert_eq!((refused.code, refused.stderr.contains("connection refused")), (1, true));
}

#[test]
fn every_failed_request_is_counted_under_its_cause() {
    let lab = Lab::new();
    lab.serve_faults(81);
    let run = lab.run("http http://127.0.0.1:81/ --count 50 --timeout-ms 100 --json");
    let summary = json(&run.stdout);
    assert_eq!((run.code, &summary["requests"], &summary["failed"]), (1, &50.into(), &40.into()));
    assert_eq!(summary["by_pod"], serde_json::json!({"good": 10}));
    let causes = serde_json::json!({
        "code 503": 10,
        "connection closed before the end of the answer": 20,
        "timeout": 10,
    });
    assert_eq!(summary["errors"], causes);
}

#[test]
fn a_kept_connection_that_the_server_closed_is_no_failure() {
    let lab = Lab::new();
    // Says that it keeps the connection, and closes it after each answer.
    lab.serve_then_close(81);
    let load = "load http://127.0.0.1:81/ --duration-s 0.3 --keep-alive --rate 50";
    let run = lab.run(load);
    let summary = json(&run.stdout);
    assert_eq!((run.code, &summary["failed"]), (0, &0.into()));
    assert!(summary["resent"].as_u64() > Some(3), "{summary}");
    let requests = summary["requests"].as_u64().unwrap_or_default();
    assert!((10..=16).contains(&requests), "50 a second for 0.3 s: {summary}");
}

#[test]
fn load_tells_a_server_that_goes_from_one_that_stays() {
    let lab = Lab::new();
    let mut server = serving(&lab, "serve --http 80 --drain-ms 0");
    let load = "load http://127.0.0.1/ --duration-s 0.5 --concurrency 2 --keep-alive";
    let steady = lab.run(load);
    assert_eq!((steady.code, &json(&steady.stdout)["failed"]), (0, &0.into()));
    let running = lab.start(load, &[]);
    std::thread::sleep(Duration::from_millis(100));
    server.signal("TERM");
    let output = running.output();
    assert_eq!(output.code, 1);
    let summary = json(&output.stdout);
    assert!(summary["errors"]["connection refused"].as_u64() > Some(0), "{summary}");
    assert!(summary["by_pod"]["web-1"].as_u64() > Some(0), "{summary}");
}

#[test]
fn after_sigterm_a_server_drains_and_ends_with_success() {
    let lab = Lab::new();
    let mut server = serving(&lab, "serve --http 80 --drain-ms 500");
    // Under way when the server stops listening, and still finished.
    let slow = lab.start("http http://127.0.0.1/delay?ms=900", &[]);
    let mut kept = lab.connect(80);
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("sends");
    let mut kept = BufReader::new(kept);
    assert!(read_response(&mut kept).contains("Connection: keep-alive"));
    std::thread::sleep(Duration::from_millis(50));
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.run("http http://127.0.0.1/healthz").code, 0, "it goes on serving");
    kept.get_mut().write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("sends");
    assert!(read_response(&mut kept).contains("Connection: close"));
    assert_eq!(kept.read(&mut [0; 1]).expect("an end"), 0);
    assert_eq!(server.wait(), Some(0));
    assert_eq!(slow.output().stdout, "done\n");
    assert_eq!(lab.run("http http://127.0.0.1/healthz").code, 1);
}

fn read_response(stream: &mut impl BufRead) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\nok\n") {
        assert_ne!(stream.read_line(&mut text).expect("a response"), 0, "{text}");
    }
    text
}

#[test]
fn names_resolve_by_the_search_path_of_resolv_conf() {
    let lab = Lab::new();
    let _server = serving(&lab, "serve --http 80");
    lab.serve_dns();
    let answer = json(&lab.run("http http://web/").stdout);
    assert_eq!(answer["host"], "web");
    assert_eq!(
        json(&lab.run("http http://web.shop.svc.cluster.local.:80/").stdout)["pod"],
        "web-1"
    );
    let nslookup = lab.run("nslookup web");
    assert_eq!(
        nslookup.stdout,
        "Server:\t\t127.0.0.1\nAddress:\t127.0.0.1#53\n\n\
         Name:\tweb.shop.svc.cluster.local\nAddress: 127.0.0.1\n"
    );
    assert_eq!(nslookup.code, 0);
    let missing = lab.run("nslookup nothing");
    assert_eq!(missing.code, 1);
    assert!(missing.stdout.contains("** server can't find nothing: NXDOMAIN"));
    let missing = lab.run("http http://nothing/");
    assert_eq!((missing.code, missing.stderr.contains("nothing has no address")), (1, true));
}

#[test]
fn dns_prints_the_data_of_the_answer() {
    let lab = Lab::new();
    lab.serve_dns();
    let rows = [
        ("dns web.shop.svc.cluster.local", 0, "127.0.0.1\n"),
        ("dns web.shop.svc.cluster.local a --server 127.0.0.1 --tcp", 0, "127.0.0.1\n"),
        (
            "dns _http._tcp.web.shop.svc.cluster.local SRV",
            0,
            "0 100 80 web.shop.svc.cluster.local.\n",
        ),
        ("dns dns-version.cluster.local TXT --server 127.0.0.1:53", 0, "\"1.1.0\"\n"),
        ("dns 1.0.0.127.in-addr.arpa PTR", 0, "web.shop.svc.cluster.local.\n"),
        ("dns web.shop.svc.cluster.local AAAA", 1, ""),
        ("dns nothing.shop.svc.cluster.local", 1, ""),
        ("dns web.shop.svc.cluster.local NONSENSE", 2, ""),
        ("dns", 2, ""),
    ];
    for (words, code, stdout) in rows {
        let run = lab.run(words);
        assert_eq!((run.code, run.stdout.as_str()), (code, stdout), "{words}: {}", run.stderr);
        assert_eq!(run.stderr.is_empty(), code == 0, "{words}: {}", run.stderr);
    }
    // More than a datagram holds: the answer comes over TCP by itself.
    assert_eq!(lab.run("dns many.shop.svc.cluster.local").stdout.lines().count(), 150);
}

#[test]
fn the_proxy_passes_both_directions_and_their_ends_on() {
    let lab = Lab::new();
    let _server = serving(&lab, "serve --http 80 --tcp 7");
    let _proxy = lab.start("proxy --listen 8080 --to 127.0.0.1:80", &[]);
    let _echo = lab.start("proxy --listen 8007 --to 127.0.0.1:7", &[]);
    until("the proxy listens", || lab.run("http http://127.0.0.1:8080/healthz").code == 0);
    let bytes = lab.run("http http://127.0.0.1:8080/bytes?n=3000000 --json");
    assert_eq!(json(&bytes.stdout)["body_bytes"], 3_000_000);
    until("the other proxy listens", || lab.try_connect(8007).is_ok());
    let mut stream = lab.connect(8007);
    stream.write_all(b"there and back").expect("sends");
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut back = String::new();
    stream.read_to_string(&mut back).expect("an end");
    assert_eq!(back, "there and back");
}

#[test]
fn udp_counts_what_is_lost() {
    let lab = Lab::new();
    let _server = serving(&lab, "serve --http 80 --udp 9000");
    let run = lab.run("udp 127.0.0.1 9000 --count 20");
    assert_eq!((run.code, &json(&run.stdout)["by_pod"]["web-1"]), (0, &20.into()));
    let silent = lab.silent_udp(9001);
    let run = lab.run("udp 127.0.0.1 9001 --count 2 --timeout-ms 50");
    assert_eq!((run.code, &json(&run.stdout)["errors"]["timeout"]), (1, &2.into()));
    drop(silent);
}

#[test]
fn small_commands_do_what_their_names_say() {
    let lab = Lab::new();
    assert_eq!(lab.run("exit 7").code, 7);
    assert_eq!(lab.run("sleep 0.01").code, 0);
    assert_eq!(lab.run("sleep").code, 2);
    assert_eq!(lab.run("nonsense").code, 2);
    assert_eq!(lab.run("sleep --nonsense").code, 2);
    assert_eq!(lab.run("--help").code, 0);
    assert!(lab.run("ip").stdout.contains("lo 127.0.0.1/8\n"));
    assert_eq!(lab.run("env").stdout.lines().filter(|line| *line == "LAB=yes").count(), 1);
    assert!(!lab.run("hostname").stdout.trim().is_empty());
    assert_eq!(lab.run("crash-after 1").code, 128 + 6);
    let mut sleeping = lab.start("sleep infinity", &[]);
    until("it handles SIGTERM", || sleeping.handles_sigterm());
    sleeping.signal("TERM");
    assert_eq!(sleeping.wait(), Some(143));
}

#[test]
fn one_container_writes_and_another_follows() {
    let lab = Lab::new();
    let path = lab.directory().join("log");
    let path = path.to_str().expect("text");
    let mut reader = lab.start(&format!("cat {path} --follow"), &[]);
    let _writer = lab.start(&format!("write {path} line --every-ms 10"), &[]);
    let mut lines = BufReader::new(reader.take_stdout()).lines();
    for number in 1..=3 {
        let line = lines.next().expect("a line").expect("text");
        assert_eq!(line, format!("line {number}"));
    }
    assert_eq!(lab.run("write /nowhere/file x").code, 1);
    assert_eq!(lab.run(&format!("cat {path}-not")).code, 1);
}
