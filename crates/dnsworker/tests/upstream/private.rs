//! Servers over TLS and HTTPS whose certificates a private CA issued: `tls: {cert, key, ca}`.

use crate::asking::{addresses, ask, until};
use crate::lab::Lab;
use crate::secure::{ADDRESS, DOH, DOT, LATER, NAME, lab_asking, start};
use crate::tls::{Authority, Server, Speaks};

const CARRIERS: [(&str, &str, Speaks); 2] =
    [("tls://127.0.0.1", DOT, Speaks::Tls), ("https://127.0.0.1/dns-query", DOH, Speaks::Https)];

/// A lab whose host trusts one authority. The private one is in the lab's `private.pem`.
fn lab(to: &str, name: &str, tls: &str, host: &Authority, private: &Authority) -> Lab {
    let lab = lab_asking(to, "", host);
    private.write(&lab.directory().join("private.pem"));
    configure(&lab, to, name, tls);
    lab
}

/// Writes the rule; `DIR` in `tls` is the lab's directory.
fn configure(lab: &Lab, to: &str, name: &str, tls: &str) {
    let tls = tls.replace("DIR", &lab.directory().display().to_string());
    let config = format!("forward: [{{to: ['{to}'], tls_servername: {name}{tls}}}]\n");
    std::fs::write(lab.config_file(), config).expect("writes");
}

/// Accepted with the CA; refused without it, under another name, and when it is another's: where a
/// rule names a CA, nobody else counts, not even who the host trusts.
#[test]
fn a_private_authority_counts_where_the_rule_names_it_and_alone() {
    const CA: &str = ", tls: {ca: DIR/private.pem}";
    let (host, private) = (Authority::new("host"), Authority::new("private"));
    for (to, address, speaks) in CARRIERS {
        for (what, issuer, name, tls, said) in [
            ("with the CA", &private, NAME, CA, None),
            ("without", &private, NAME, "", Some(["UnknownIssuer", "tls: {ca: FILE}"])),
            ("another name", &private, "else.example", CA, Some([NAME, "tls_servername"])),
            ("another CA", &host, NAME, CA, Some(["UnknownIssuer", "tls: {ca: FILE}"])),
            ("the host's", &host, NAME, "", None),
        ] {
            let mut lab = lab(to, name, tls, &host, &private);
            let server = Server::start(&lab, address, &issuer.issue(NAME, LATER), speaks);
            start(&mut lab);
            match said {
                None => assert_eq!(addresses(&lab, "www.example"), [ADDRESS], "{to}, {what}"),
                Some(words) => {
                    assert_eq!(ask(&lab, "www.example").rcode, 2, "{to}, {what}");
                    assert_eq!(server.questions(), 0, "{to}, {what}: no name is told");
                    let log = lab.log();
                    assert!(words.iter().all(|word| log.contains(word)), "{to}, {what}: {log}");
                }
            }
        }
    }
}

/// A server that serves only those who show a certificate.
#[test]
fn our_certificate_is_shown_to_servers_that_ask_for_one() {
    let (host, private) = (Authority::new("host"), Authority::new("private"));
    let identity = |lab: &Lab| private.issue("worker.example", LATER).files(lab.directory());
    for (to, address, speaks) in CARRIERS {
        let mut lab = lab(to, NAME, ", tls: {ca: DIR/private.pem}", &host, &private);
        let own = private.issue(NAME, LATER);
        let server = Server::start_for(&lab, address, &own, speaks, Some(&private));
        start(&mut lab);
        assert_eq!(ask(&lab, "www.example").rcode, 2, "{to}: nothing is shown");
        assert_eq!(server.questions(), 0, "{to}");
        // `server.pem` and `server.key` are the names of `Identity::files`.
        identity(&lab);
        let all = ", tls: {cert: DIR/server.pem, key: DIR/server.key, ca: DIR/private.pem}";
        configure(&lab, to, NAME, all);
        until("the certificate is shown", || addresses(&lab, "www.example") == [ADDRESS]);
    }
}

/// Files of no use are said in the log, with their names; the file that follows counts without
/// another configuration.
#[test]
fn files_of_certificates_are_read_when_a_connection_is_made() {
    let (host, private) = (Authority::new("host"), Authority::new("private"));
    let (to, address, speaks) = CARRIERS[0];
    let mut lab = lab(to, NAME, ", tls: {ca: DIR/renewed.pem}", &host, &private);
    let own = private.issue(NAME, LATER);
    let server = Server::start(&lab, address, &own, speaks);
    start(&mut lab);
    let file = lab.directory().join("renewed.pem");
    assert_eq!(ask(&lab, "absent.example").rcode, 2);
    assert!(lab.log().contains("renewed.pem: it cannot be opened"), "{}", lab.log());
    host.write(&file);
    assert_eq!(ask(&lab, "another.example").rcode, 2, "another issuer");
    private.write(&file);
    until("the new file counts", || addresses(&lab, "www.example") == [ADDRESS]);
    drop(server);

    let rows: [(&str, &dyn Fn(), &str); 4] = [
        ("empty", &|| std::fs::write(&file, "").expect("writes"), "no certificate in it"),
        ("no PEM", &|| std::fs::write(&file, [0; 64]).expect("writes"), "no certificate in it"),
        (
            "too large",
            &|| std::fs::write(&file, vec![b'x'; (1 << 20) + 1]).expect("writes"),
            "larger than 1048576 octets",
        ),
        (
            "a pipe that nobody writes to",
            &|| {
                std::fs::remove_file(&file).expect("removes");
                nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
            },
            "it is no file",
        ),
    ];
    for (what, spoil, said) in rows {
        lab.kill_worker();
        spoil();
        let _server = Server::start(&lab, address, &own, speaks);
        start(&mut lab);
        assert_eq!(ask(&lab, "www.example").rcode, 2, "{what}");
        assert!(lab.log().contains(said), "{what}: {}", lab.log());
    }
}
