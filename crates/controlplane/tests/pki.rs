//! Certificates: made once, kept while good, made anew when not.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use controlplane::pki::{self, Pki, PkiError, PkiRequest};
use model::Timestamp;
use support::{LOOPBACK, Scratch, config, now};

fn request(nodes: &[(&str, IpAddr)]) -> PkiRequest {
    PkiRequest {
        config: config(),
        server_addresses: vec![LOOPBACK],
        nodes: nodes.iter().map(|(name, address)| ((*name).to_owned(), vec![*address])).collect(),
    }
}

fn ensure(directory: &Path, request: &PkiRequest, now: Timestamp) -> Result<Pki, PkiError> {
    pki::ensure(&directory.join("pki"), request, now)
}

/// All files below a directory with their content.
fn snapshot(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory.join("pki")).expect("a directory");
    entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let content = std::fs::read(entry.path()).expect("a file");
            (entry.file_name().into_string().expect("a name"), content)
        })
        .collect()
}

/// The names of files that differ.
fn changed(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    after
        .iter()
        .filter(|(name, content)| before.get(*name) != Some(content))
        .map(|(name, _)| name.clone())
        .collect()
}

fn openssl(arguments: &[&str]) -> String {
    let output = std::process::Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl is installed (apt-get install openssl)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_good_is_kept_byte_for_byte() {
    let scratch = Scratch::new("pki-kept");
    let request = request(&[("node1", LOOPBACK)]);
    ensure(&scratch.0, &request, now()).expect("certificates");
    let before = snapshot(&scratch.0);
    let later = now().after(Duration::from_secs(30 * 24 * 3600));
    ensure(&scratch.0, &request, later).expect("certificates");
    assert_eq!(changed(&before, &snapshot(&scratch.0)), Vec::<String>::new());
}

#[test]
fn files_are_roots_alone() {
    let scratch = Scratch::new("pki-modes");
    ensure(&scratch.0, &request(&[("node1", LOOPBACK)]), now()).expect("certificates");
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    let directory = scratch.0.join("pki");
    assert_eq!(mode(&directory), 0o700);
    for entry in std::fs::read_dir(&directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn only_what_is_no_longer_good_is_made_anew() {
    let address: IpAddr = "127.0.0.9".parse().expect("an address");
    type Damage = fn(&Path, &mut PkiRequest, &mut Timestamp);
    let node = ["node-node1-client.crt", "node-node1-client.key"];
    let server = ["apiserver.crt", "apiserver.key"];
    let cases: [(&str, Damage, &[&str]); 5] = [
        (
            "a damaged certificate",
            |pki, _, _| {
                std::fs::write(pki.join("node-node1-client.crt"), "rubbish").expect("written");
            },
            &node,
        ),
        (
            "a key of another certificate",
            |pki, _, _| {
                std::fs::copy(pki.join("admin.key"), pki.join("node-node1-client.key"))
                    .expect("copied");
            },
            &node,
        ),
        (
            "a missing key",
            |pki, _, _| {
                std::fs::remove_file(pki.join("node-node1-client.key")).expect("removed");
            },
            &node,
        ),
        (
            "a new address",
            |_, request, _| {
                request.server_addresses.push("127.0.0.9".parse().expect("an address"));
            },
            &server,
        ),
        (
            "a new domain",
            |_, request, _| {
                request.config.cluster_domain = "other.example".to_owned();
            },
            &server,
        ),
    ];
    assert!(address.is_loopback());
    for (what, damage, expected) in cases {
        let scratch = Scratch::new("pki-anew");
        let (mut request, mut time) = (request(&[("node1", LOOPBACK)]), now());
        ensure(&scratch.0, &request, time).expect("certificates");
        damage(&scratch.0.join("pki"), &mut request, &mut time);
        let before = snapshot(&scratch.0);
        ensure(&scratch.0, &request, time).expect("certificates");
        assert_eq!(changed(&before, &snapshot(&scratch.0)), expected, "{what}");
    }
}

#[test]
fn leaves_are_renewed_before_they_expire_and_the_authority_stays() {
    let scratch = Scratch::new("pki-renew");
    let request = request(&[]);
    ensure(&scratch.0, &request, now()).expect("certificates");
    let before = snapshot(&scratch.0);
    let in_years = now().after(Duration::from_secs(1000 * 24 * 3600));
    ensure(&scratch.0, &request, in_years).expect("certificates");
    let renewed = changed(&before, &snapshot(&scratch.0));
    assert!(renewed.contains(&"apiserver.crt".to_owned()), "{renewed:?}");
    assert!(!renewed.iter().any(|name| name.starts_with("ca.")), "{renewed:?}");
}

#[test]
fn a_damaged_authority_is_never_replaced() {
    for (file, text) in [("ca.crt", "the certificate is damaged"), ("ca.key", "the key is damaged")]
    {
        let scratch = Scratch::new("pki-authority");
        ensure(&scratch.0, &request(&[]), now()).expect("certificates");
        std::fs::write(scratch.0.join("pki").join(file), "rubbish").expect("written");
        let error = ensure(&scratch.0, &request(&[]), now()).expect_err("damaged").to_string();
        assert!(error.contains(file) && error.contains(text), "{error}");
        assert!(error.contains("restore the file from a copy"), "{error}");
    }
}

#[test]
fn a_half_made_authority_is_finished() {
    let scratch = Scratch::new("pki-half");
    ensure(&scratch.0, &request(&[]), now()).expect("certificates");
    std::fs::remove_file(scratch.0.join("pki/ca.crt")).expect("removed");
    let pki = ensure(&scratch.0, &request(&[]), now()).expect("certificates");
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    openssl(&["verify", "-CAfile", &path(&pki.authority), &path(&pki.server.certificate)]);
}

#[test]
fn openssl_agrees_about_names_and_purposes() {
    let scratch = Scratch::new("pki-openssl");
    let pki = ensure(&scratch.0, &request(&[("node1", LOOPBACK)]), now()).expect("certificates");
    let authority = pki.authority.to_str().expect("a path");
    let verify = |file: &Path, purpose: &str| {
        openssl(&[
            "verify",
            "-CAfile",
            authority,
            "-purpose",
            purpose,
            file.to_str().expect("a path"),
        ]);
    };
    let node = &pki.nodes["node1"];
    verify(&pki.server.certificate, "sslserver");
    verify(&node.serving.certificate, "sslserver");
    verify(&pki.admin.certificate, "sslclient");
    verify(&pki.runtime_client.certificate, "sslclient");
    verify(&node.client.certificate, "sslclient");
    let text =
        |file: &Path| openssl(&["x509", "-noout", "-text", "-in", file.to_str().expect("a path")]);
    let server = text(&pki.server.certificate);
    for name in [
        "DNS:localhost",
        "DNS:kubernetes,",
        "DNS:kubernetes.default,",
        "DNS:kubernetes.default.svc,",
        "DNS:kubernetes.default.svc.cluster.local",
        "IP Address:127.0.0.1",
        "IP Address:10.96.0.1",
        "IP Address:0:0:0:0:0:0:0:1",
    ] {
        assert!(server.contains(name), "{name} is missing in {server}");
    }
    assert!(text(&pki.admin.certificate).contains("O = system:masters"));
    let client = text(&node.client.certificate);
    assert!(client.contains("CN = system:node:node1") && client.contains("O = system:nodes"));
}
