//! Names, asked by the resolvers that pods have, at the Service's address and at that of NodeLocal
//! DNSCache: glibc, musl, dig as others send, and systemd-resolved.
//! Needs `target/tools/resolvers`, which `./x test` fetches; fails without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{eventually, workspace};

use super::world::{NAMESPACE, World};

/// The Service's address.
const SERVICE: &str = "10.41.0.10";
/// Where NodeLocal DNSCache answers.
const NODE_LOCAL: &str = "169.254.20.10";
/// A Service's whole name.
const NAME: &str = "web.lab.svc.cluster.local";
/// How people write it in its own namespace.
const SHORTER: [&str; 4] = ["web", "web.lab", "web.lab.svc", NAME];
/// A name that nobody has.
const ABSENT: &str = "nobody.lab.svc.cluster.local";
/// How long a process may be away on a busy machine.
const BACK: Duration = Duration::from_secs(15);
/// Where pods see musl's client and the unpacked packages.
const PLACES: [&str; 2] = ["/clients", "/resolvers"];

/// What questions carry: nothing, as musl's; DNSSEC and 1,472 octets, as systemd-resolved's when it
/// looks for signatures; its largest offer on loopback, with a cookie; TCP alone.
const FLAGS: [&str; 4] =
    ["+noedns", "+dnssec +bufsize=1472 +adflag", "+bufsize=65494 +cookie", "+tcp"];

/// Two pods, one for each address, whose containers share a `resolv.conf` and its clients.
pub fn every_kind(world: &World) -> Result<()> {
    let clients = Clients::build()?;
    for (pod, server) in [("asks-service", SERVICE), ("asks-node-local", NODE_LOCAL)] {
        world.cluster.apply(&clients.pod(pod, server))?;
    }
    for (pod, server) in [("asks-service", SERVICE), ("asks-node-local", NODE_LOCAL)] {
        world.cluster.pod_ready(NAMESPACE, pod)?;
        let asker = Asker { world, pod, server };
        asker.c_libraries()?;
        asker.dig()?;
        asker.resolved()?;
        world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, pod, "--now"])?;
    }
    Ok(())
}

/// While the API server does not answer, names do, at both addresses.
pub fn without_api_server(world: &World) -> Result<()> {
    let address = world.cluster_ip("web")?;
    let api_server = Stopped::stop(world.cluster.process("controlplane")?)?;
    for server in [SERVICE, NODE_LOCAL] {
        for flag in ["+notcp", "+tcp"] {
            let words = ["dig", "+short", "+tries=1", flag, &format!("@{server}"), NAME];
            let answer = world.cluster.on_node("node1", &words)?;
            ensure!(answer.trim() == address, "{words:?}: {answer}");
        }
    }
    drop(api_server);
    eventually("the API server answers", BACK, || {
        world.cluster.kubectl(&["get", "nodes"]).map(drop)
    })
}

/// One pod and the server that it asks.
struct Asker<'a> {
    world: &'a World,
    pod: &'a str,
    server: &'a str,
}

impl Asker<'_> {
    fn shell(&self, script: &str) -> Result<String> {
        self.world.cluster.exec(NAMESPACE, self.pod, &["sh", "-c", script])
    }

    /// glibc and musl follow the search path on their own, and ask for both families.
    fn c_libraries(&self) -> Result<()> {
        let Self { world, pod, server } = self;
        let file = self.shell("cat /etc/resolv.conf")?;
        let servers: Vec<&str> =
            file.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
        ensure!(servers == [*server] && file.contains("ndots:5"), "{pod}: {file}");
        let address = world.cluster_ip("web")?;
        for name in SHORTER {
            let answer = self.shell(&format!("getent ahosts {name}"))?;
            let found = answer.lines().map(|line| line.split(' ').next().unwrap_or(line));
            ensure!(found.clone().count() > 0, "{pod}: getent {name}");
            ensure!(found.clone().all(|one| one == address), "{pod}: getent {name}: {answer}");
        }
        let absent = self.shell(&format!("getent ahosts {ABSENT}; echo $?"))?;
        ensure!(absent.trim() == "2", "{pod}: getent {ABSENT}: {absent}");

        let [client, _] = PLACES;
        let answer = self.shell(&format!("{client}/musl {} pods {ABSENT}", SHORTER.join(" ")))?;
        let mut lines = answer.lines();
        for name in SHORTER {
            let line = lines.next().unwrap_or_default();
            ensure!(line == format!("{name} {address}"), "{pod}: musl: {answer}");
        }
        let headless = lines.next().unwrap_or_default();
        for node in &world.cluster.nodes {
            let pod_ip = world.pod_ip(&format!("echo-{node}"))?;
            ensure!(headless.split(' ').any(|word| word == pod_ip), "{pod}: musl: {answer}");
        }
        let absent = lines.next().unwrap_or_default();
        ensure!(absent == format!("{ABSENT} absent"), "{pod}: musl: {answer}");
        Ok(())
    }

    fn dig(&self) -> Result<()> {
        let address = self.world.cluster_ip("web")?;
        for flags in FLAGS {
            for (name, kind, code, data) in [
                (NAME, "A", "NOERROR", address.as_str()),
                (NAME, "AAAA", "NOERROR", ""),
                (ABSENT, "A", "NXDOMAIN", ""),
                ("_http._tcp.web.lab.svc.cluster.local", "SRV", "NOERROR", "0 100 80 "),
            ] {
                let question = format!("{flags} +tries=1 @{} {name} {kind}", self.server);
                self.dig_says(&question, code, data)?;
            }
        }
        Ok(())
    }

    /// systemd-resolved, a container of the pod, which clients of the pod ask at 127.0.0.53.
    /// Without a message bus there is no `resolvectl`; its stub is what programs ask.
    fn resolved(&self) -> Result<()> {
        let address = self.world.cluster_ip("web")?;
        eventually("systemd-resolved answers", BACK, || {
            self.dig_says(&format!("+tries=1 +time=1 @127.0.0.53 {NAME}"), "NOERROR", &address)
        })?;
        let reverse = format!("-x {address}");
        for (question, code, data) in [
            (format!("{NAME} AAAA"), "NOERROR", ""),
            (format!("{NAME} A +tcp"), "NOERROR", address.as_str()),
            (format!("{NAME} A +dnssec"), "NOERROR", &address),
            (format!("{ABSENT} A"), "NXDOMAIN", ""),
            ("_http._tcp.web.lab.svc.cluster.local SRV".into(), "NOERROR", "0 100 80 web.lab"),
            (reverse, "NOERROR", "web.lab.svc.cluster.local."),
        ] {
            self.dig_says(&format!("@127.0.0.53 {question}"), code, data)?;
        }
        Ok(())
    }

    /// One question's code and the data of its records; none where `data` is empty.
    fn dig_says(&self, question: &str, code: &str, data: &str) -> Result<()> {
        let answer = self.shell(&format!("dig +noall +comments +answer {question}"))?;
        let records = answer.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
        let is_right = answer.contains(&format!("status: {code}"))
            && records.clone().all(|line| line.contains(data))
            && (records.count() > 0) != data.is_empty();
        ensure!(is_right, "{}: dig {question}: {code} {data:?} expected: {answer}", self.pod);
        Ok(())
    }
}

/// musl's client, built for these tests, beside the packages of others.
struct Clients {
    own: PathBuf,
    packages: PathBuf,
}

impl Clients {
    fn build() -> Result<Self> {
        let packages = workspace().join("target/tools/resolvers").canonicalize();
        let packages =
            packages.context("target/tools/resolvers is missing: `./x test` fetches it")?;
        let own = workspace().join("target/tmp/resolvers");
        std::fs::create_dir_all(&own)?;
        let own = own.canonicalize()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/getaddrinfo.c");
        let machine = format!("{}-linux-musl", std::env::consts::ARCH);
        let library = packages.join("usr/lib").join(&machine);
        let part = |name: &str| library.join(name);
        // The wrapper that Debian has for this knows its package in one place only.
        let status = Command::new("cc")
            .args(["-static", "-no-pie", "-nostdinc", "-nostdlib", "-isystem"])
            .arg(packages.join("usr/include").join(&machine))
            .args([part("crt1.o"), part("crti.o"), source, part("libc.a")])
            .arg("-lgcc")
            .arg(part("crtn.o"))
            .arg("-o")
            .arg(own.join("musl"))
            .status()
            .context("starting cc")?;
        ensure!(status.success(), "building a client with musl");
        Ok(Self { own, packages })
    }

    fn pod(&self, name: &str, server: &str) -> String {
        let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
        let [clients, resolvers] = PLACES;
        let (own, packages) = (self.own.display(), self.packages.display());
        format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  terminationGracePeriodSeconds: 1
  dnsPolicy: None
  dnsConfig:
    nameservers: [{server}]
    searches: [lab.svc.cluster.local, svc.cluster.local, cluster.local]
    options: [{{name: ndots, value: "5"}}]
  containers:
  - name: clients
    image: localhost/host
    command: [sleep, infinity]
    volumeMounts:
    - {{name: clients, mountPath: {clients}}}
  - name: resolved
    image: localhost/host
    command:
    - sh
    - -ec
    - |
      grep -q ^systemd-resolve: /etc/passwd || {{
        echo systemd-resolve:x:64990:64990::/:/usr/sbin/nologin >> /etc/passwd
        echo systemd-resolve:x:64990: >> /etc/group
      }}
      mkdir -p /run/systemd/resolved.conf.d
      printf '[Resolve]\nDNS={server}\nDomains=~.\n' > /run/systemd/resolved.conf.d/cluster.conf
      lib={resolvers}/usr/lib/{machine}
      export LD_LIBRARY_PATH=$lib/systemd:$lib:{resolvers}/lib/{machine}
      exec {resolvers}/lib/systemd/systemd-resolved
    volumeMounts:
    - {{name: resolvers, mountPath: {resolvers}}}
  volumes:
  - {{name: clients, hostPath: {{path: {own}, type: Directory}}}}
  - {{name: resolvers, hostPath: {{path: {packages}, type: Directory}}}}
"#
        )
    }
}

/// A process that gets no processor until this goes.
struct Stopped(i64);

impl Stopped {
    fn stop(pid: i64) -> Result<Self> {
        let stopped = Command::new("kill").args(["-STOP", &pid.to_string()]).status()?;
        ensure!(stopped.success(), "kill -STOP {pid}");
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
    }
}
