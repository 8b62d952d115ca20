//! Knot and Unbound with the same names.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::questions::{Record, ZONES, records};

/// Where Debian's Unbound is unpacked.
const UNBOUND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/unbound");

/// A running server; ends with its value.
pub struct Peer {
    process: Child,
    directory: PathBuf,
}

impl Peer {
    /// One worker of each kind.
    pub fn knot(lab: &Lab, address: SocketAddrV4) -> Self {
        let directory = lab.directory().join("knot");
        std::fs::create_dir_all(&directory).expect("a directory");
        let place = directory.display();
        let mut text = format!(
            "server:\n  listen: {}@{}\n  rundir: {place}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\ndatabase:\n  storage: {place}\nzone:\n",
            address.ip(),
            address.port()
        );
        for zone in ZONES {
            let lines = records(zone).map(|record| format!("{} 5 {}\n", record.owner, record.data));
            std::fs::write(directory.join(zone), lines.collect::<String>()).expect("writes");
            text.push_str(&format!("  - domain: {zone}\n    storage: {place}\n    file: {zone}\n"));
        }
        let mut command = Command::new("knotd");
        command.arg("-c").arg(written(&directory, &text));
        Self::start(lab, command, directory, "apt-get install knot")
    }

    /// One thread, and the names as its local data.
    pub fn unbound(lab: &Lab, address: SocketAddrV4) -> Self {
        let directory = lab.directory().join("unbound");
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut text = format!(
            "server:\n  interface: {}@{}\n  num-threads: 1\n  do-daemonize: no\n  chroot: \"\"\n  \
             username: \"\"\n  pidfile: \"\"\n  directory: \"{}\"\n  use-syslog: no\n  \
             access-control: 0.0.0.0/0 allow\n",
            address.ip(),
            address.port(),
            directory.display()
        );
        for zone in ZONES {
            text.push_str(&format!("  local-zone: \"{zone}.\" static\n"));
            for Record { owner, data } in records(zone) {
                text.push_str(&format!("  local-data: \"{owner} 5 {data}\"\n"));
            }
        }
        let mut command = Command::new(format!("{UNBOUND}/usr/sbin/unbound"));
        command.env("LD_LIBRARY_PATH", libraries()).arg("-c").arg(written(&directory, &text));
        Self::start(lab, command, directory, "`./x test` unpacks it into target/tools")
    }

    fn start(lab: &Lab, mut command: Command, directory: PathBuf, how: &str) -> Self {
        let log = std::fs::File::create(directory.join("log")).expect("a file");
        command.stdout(Stdio::null()).stderr(log);
        let process = lab.on_node(move || command.spawn());
        let process = process.unwrap_or_else(|error| panic!("{error}: {how}"));
        Self { process, directory }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            eprintln!("{log}");
        }
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

fn written(directory: &Path, text: &str) -> PathBuf {
    let file = directory.join("conf");
    std::fs::write(&file, text).expect("writes");
    file
}

/// Where its libraries are that the machine may lack.
fn libraries() -> String {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    format!("{UNBOUND}/usr/lib/{machine}:{UNBOUND}/lib/{machine}")
}
