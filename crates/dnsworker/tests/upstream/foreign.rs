//! Unbound over TLS and HTTPS: a server that others wrote, with another TLS and another HTTP/2.
//! Needs `target/tools/unbound`, which `./x test` fetches; fails without.

use std::process::{Child, Command};

use crate::asking::{A, addresses, ask, client, receive, send, until};
use crate::lab::Lab;
use crate::secure::{LATER, NAME, lab_asking, start};
use crate::tls::{Authority, Identity};

/// Where Debian's Unbound is unpacked.
const UNBOUND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/unbound");

struct Unbound(Child);

impl Unbound {
    fn start(lab: &Lab, identity: &Identity) -> Self {
        let (certificate, key) = identity.files(lab.directory());
        let text = format!(
            "server:\n  interface: 127.0.0.1@853\n  interface: 127.0.0.1@443\n  tls-port: 853\n  \
             https-port: 443\n  tls-service-pem: {}\n  tls-service-key: {}\n  num-threads: 1\n  \
             do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
             directory: \"{}\"\n  use-syslog: no\n  local-zone: \"example.\" static\n  \
             local-data: \"www.example. 60 A 192.0.2.80\"\n  \
             local-data: \"example. 60 SOA ns.example. me.example. 1 2 3 4 5\"\n",
            certificate.display(),
            key.display(),
            lab.directory().display()
        );
        let file = lab.directory().join("unbound.conf");
        std::fs::write(&file, text).expect("writes");
        let mut command = Command::new(format!("{UNBOUND}/usr/sbin/unbound"));
        command.env("LD_LIBRARY_PATH", libraries()).arg("-c").arg(file);
        let process = lab.on_host(|| command.spawn());
        Self(process.expect("Unbound is in target/tools: `./x test` fetches it"))
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn unbound_is_asked_over_tls_and_https() {
    let authority = Authority::new("one");
    for to in ["tls://127.0.0.1", "https://127.0.0.1/dns-query"] {
        let mut lab = lab_asking(to, &format!("tls_servername: {NAME}"), &authority);
        let _unbound = Unbound::start(&lab, &authority.issue(NAME, LATER));
        start(&mut lab);
        until("Unbound has started", || ask(&lab, "www.example").rcode == 0);
        assert_eq!(addresses(&lab, "www.example"), [[192, 0, 2, 80]], "{to}");
        assert_eq!(ask(&lab, "missing.example").rcode, 3, "{to}");
        let client = client(&lab);
        for id in 0..100 {
            send(&client, id, &format!("missing{id}.example"), A);
        }
        let mut ids: Vec<u16> = (0..100)
            .map(|_| receive(&client).expect("an answer to every question"))
            .inspect(|answer| assert_eq!(answer.rcode, 3, "{to}"))
            .map(|answer| answer.id)
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<u16>>(), "{to}");
    }
}

/// Where its libraries are that the machine may lack.
fn libraries() -> String {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    format!("{UNBOUND}/usr/lib/{machine}:{UNBOUND}/lib/{machine}")
}
