//! Servers over TLS (RFC 7858, RFC 8310) and HTTPS (RFC 8484).

use std::collections::BTreeSet;

use crate::asking::{A, addresses, ask, client, receive, send, until};
use crate::lab::Lab;
use crate::tls::{Authority, Server, Speaks};

pub const DOT: &str = "127.0.0.1:853";
pub const DOH: &str = "127.0.0.1:443";
pub const NAME: &str = "dns.example";
/// A year that no test sees.
pub const LATER: i32 = 2200;
pub const ADDRESS: [u8; 4] = [192, 0, 2, 80];

/// A lab whose worker asks one server for everything, and trusts one authority.
pub fn lab_asking(to: &str, options: &str, authority: &Authority) -> Lab {
    let mut lab = Lab::new();
    let config = format!("forward: [{{to: ['{to}'], {options}}}]\nkubernetes: {{}}\n");
    std::fs::write(lab.config_file(), config).expect("writes");
    let file = authority.file(lab.directory());
    lab.trust(&file);
    lab.feed(&plan::zone::Zone { domain: "cluster.local".into(), ..Default::default() });
    lab
}

/// Starts the worker and waits until it knows which names are the cluster's.
pub fn start(lab: &mut Lab) {
    lab.start_worker(&[]);
    until("the zone is served", || ask(lab, "dns-version.cluster.local").rcode == 0);
}

#[test]
fn names_are_resolved_by_servers_over_tls_and_https() {
    let authority = Authority::new("one");
    for (to, options, certificate, speaks) in [
        ("tls://127.0.0.1", format!("tls_servername: {NAME}"), NAME, Speaks::Tls),
        // Without a name, the address must stand in the certificate.
        ("tls://127.0.0.1:853", String::new(), "127.0.0.1", Speaks::Tls),
        ("https://127.0.0.1/dns-query", format!("tls_servername: {NAME}"), NAME, Speaks::Https),
        ("https://127.0.0.1:443/dns-query", String::new(), "127.0.0.1", Speaks::Https),
    ] {
        let mut lab = lab_asking(to, &options, &authority);
        let address = if speaks == Speaks::Https { DOH } else { DOT };
        let identity = authority.issue(certificate, LATER);
        let server = Server::start(&lab, address, &identity, speaks);
        start(&mut lab);
        assert_eq!(addresses(&lab, "www.example"), [ADDRESS], "{to}");
        assert_eq!(ask(&lab, "missing.example").rcode, 3, "{to}");
        // More than a datagram holds comes whole from the server, and is cut for the client.
        assert!(ask(&lab, "big.example").is_truncated(), "{to}");
        assert_eq!((server.connections(), server.questions()), (1, 3), "{to}");
    }
}

/// The strict profile (RFC 8310, 5): no certificate, no question. With one that counts, the same
/// server under the same configuration is asked.
#[test]
fn certificates_that_do_not_count_are_refused_and_the_log_says_why() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    for (carrier, address, speaks) in
        [("tls://127.0.0.1", DOT, Speaks::Tls), ("https://127.0.0.1/dns-query", DOH, Speaks::Https)]
    {
        for (what, identity, said) in [
            (
                "another name",
                authority.issue("else.example", LATER),
                ["else.example", "tls_servername"],
            ),
            ("expired", authority.issue(NAME, 2021), ["expired", "renew"]),
            ("an unknown issuer", other.issue(NAME, LATER), ["UnknownIssuer", "SSL_CERT_FILE"]),
        ] {
            let mut lab = lab_asking(carrier, &format!("tls_servername: {NAME}"), &authority);
            let liar = Server::start(&lab, address, &identity, speaks);
            start(&mut lab);
            assert_eq!(ask(&lab, "www.example").rcode, 2, "{carrier}, {what}");
            assert_eq!(liar.questions(), 0, "{carrier}, {what}: no name is told");
            let log = lab.log();
            assert!(said.iter().all(|word| log.contains(word)), "{carrier}, {what}: {log}");
            assert_eq!(log.matches("cannot be asked").count(), 1, "said once: {log}");
            drop(liar);
            let _server = Server::start(&lab, address, &authority.issue(NAME, LATER), speaks);
            until("it is asked", || addresses(&lab, "www.example") == [ADDRESS]);
            assert!(lab.log().contains("can be asked again"), "{}", lab.log());
        }
    }
}

/// RFC 7766, 6.2.1.1: many questions on one connection, answered in any order.
#[test]
fn questions_share_one_connection_and_may_be_answered_in_any_order() {
    const QUESTIONS: u16 = 20;
    let authority = Authority::new("one");
    let mut lab = lab_asking("tls://127.0.0.1", &format!("tls_servername: {NAME}"), &authority);
    let speaks = Speaks::TlsInReverse(usize::from(QUESTIONS));
    let server = Server::start(&lab, DOT, &authority.issue(NAME, LATER), speaks);
    start(&mut lab);
    let client = client(&lab);
    for id in 0..QUESTIONS {
        send(&client, id, &format!("n{id}.example"), A);
    }
    let mut answered = BTreeSet::new();
    while answered.len() < usize::from(QUESTIONS) {
        let answer = receive(&client).expect("an answer to every question");
        assert_eq!(answer.name.to_string(), format!("n{}.example.", answer.id), "each its own");
        assert_eq!(answer.rcode, 0);
        answered.insert(answer.id);
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_connection_that_ended_is_made_anew_and_no_question_is_lost() {
    let authority = Authority::new("one");
    let mut lab = lab_asking("tls://127.0.0.1", &format!("tls_servername: {NAME}"), &authority);
    let identity = authority.issue(NAME, LATER);
    // Closed behind every answer, as by a server that does not like idle clients.
    let server = Server::start(&lab, DOT, &identity, Speaks::TlsUntil(1));
    start(&mut lab);
    for number in 0..10 {
        assert_eq!(addresses(&lab, &format!("n{number}.example")), [ADDRESS]);
    }
    assert_eq!(server.connections(), 10);
    drop(server);
    // The server restarts.
    assert_eq!(ask(&lab, "down.example").rcode, 2);
    let server = Server::start(&lab, DOT, &identity, Speaks::TlsThenSilent);
    until("it is asked again", || addresses(&lab, "up.example") == [ADDRESS]);
    // A connection that brings nothing any more, and does not end, is given up in time.
    for number in 0..3 {
        assert_eq!(addresses(&lab, &format!("more{number}.example")), [ADDRESS]);
    }
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_server_over_https_that_restarts_is_asked_again() {
    let authority = Authority::new("one");
    let mut lab =
        lab_asking("https://127.0.0.1/dns-query", &format!("tls_servername: {NAME}"), &authority);
    let identity = authority.issue(NAME, LATER);
    for number in 0..3 {
        let server = Server::start(&lab, DOH, &identity, Speaks::Https);
        if number == 0 {
            start(&mut lab);
        }
        until("it is asked", || addresses(&lab, &format!("n{number}.example")) == [ADDRESS]);
        drop(server);
    }
}

/// The next server of the rule is asked when one cannot be: which is the first is the policy's.
#[test]
fn the_next_server_answers_for_one_that_cannot_be_asked() {
    let authority = Authority::new("one");
    let identity = authority.issue(NAME, LATER);
    for (what, wrong) in [
        ("another certificate", Some((authority.issue("else.example", LATER), Speaks::Https))),
        ("no DNS at its path", Some((authority.issue(NAME, LATER), Speaks::HttpsOfOthers))),
        ("no server", None),
    ] {
        let mut lab = lab_asking(
            "https://127.0.0.1/dns-query', 'tls://127.0.0.1",
            &format!("tls_servername: {NAME}, policy: sequential"),
            &authority,
        );
        let first = wrong.map(|(identity, speaks)| Server::start(&lab, DOH, &identity, speaks));
        let second = Server::start(&lab, DOT, &identity, Speaks::Tls);
        start(&mut lab);
        assert_eq!(addresses(&lab, "www.example"), [ADDRESS], "{what}");
        assert_eq!(second.connections(), 1, "{what}");
        drop(first);
    }
}
