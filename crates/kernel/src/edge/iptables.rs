//! The chain FORWARD of the older iptables (x_tables), which stands beside nf_tables with a policy
//! of its own.
//!
//! Its only stable interface is its program: the kernel takes a whole table as one blob, and whoever
//! writes one holds `/run/xtables.lock`. A namespace where nobody made such a table costs one look
//! at a file, and no program runs. Where the program is missing nothing is done: whoever made the
//! table then (a container with a program of its own) has to let pods through.

use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use model::Family;
use render::OpError;

/// Where the program is looked for: runtimes call plugins with whatever `PATH`.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Seconds that the program waits for the lock.
const LOCK_WAIT_S: &str = "5";
/// The comment by which our rules are recognised (invariant 4): one word, so that the program prints
/// it as it was given.
const COMMENT: &str = "flatnet-pod";

/// The chain as it is.
pub(super) struct Forward {
    restore: PathBuf,
    policy: String,
    rules: Vec<String>,
}

impl Forward {
    /// Reads the chain; `None` where there is none, or no program to read it with.
    ///
    /// # Errors
    /// When the program fails.
    pub(super) fn read(family: Family) -> Result<Option<Self>, OpError> {
        let (tables, name) = match family {
            Family::V4 => ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
            Family::V6 => ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
        };
        let tables = std::fs::read_to_string(tables).unwrap_or_default();
        if !tables.lines().any(|table| table == "filter") {
            return Ok(None);
        }
        let programs = (program(name), program(&format!("{name}-restore")));
        let (Some(list), Some(restore)) = programs else { return Ok(None) };
        let arguments = ["-w", LOCK_WAIT_S, "-S", "FORWARD"];
        let output = Command::new(&list).args(arguments).stdin(Stdio::null()).output();
        let text = text_of(&list, output)?;
        let mut forward = Self { restore, policy: String::new(), rules: vec![] };
        for line in text.lines() {
            match line.strip_prefix("-P FORWARD ") {
                Some(policy) => forward.policy = policy.trim().into(),
                None => forward.rules.push(line.trim().into()),
            }
        }
        Ok(Some(forward))
    }

    /// Whether whatever no rule decides is dropped.
    pub(super) fn drops_by_policy(&self) -> bool {
        self.policy == "DROP"
    }

    /// The rules that are ours, as [`accepts`] writes them.
    pub(super) fn own_rules(&self) -> Vec<String> {
        let comment = format!(" --comment {COMMENT} ");
        self.rules.iter().filter(|rule| rule.contains(&comment)).cloned().collect()
    }

    /// Deletes rules and appends others behind all that are there, in one step.
    ///
    /// # Errors
    /// When the program fails.
    pub(super) fn change(&self, added: &[String], deleted: &[String]) -> Result<(), OpError> {
        let deleted = deleted.iter().map(|rule| rule.replacen("-A ", "-D ", 1));
        let rules: Vec<String> = deleted.chain(added.iter().cloned()).collect();
        let input = format!("*filter\n{}\nCOMMIT\n", rules.join("\n"));
        let run = || {
            let mut child = Command::new(&self.restore)
                .args(["-w", LOCK_WAIT_S, "--noflush"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut pipe) = child.stdin.take() {
                match pipe.write_all(input.as_bytes()) {
                    // It has ended, and says why.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                    result => result?,
                }
            }
            child.wait_with_output()
        };
        text_of(&self.restore, run()).map(drop)
    }
}

/// The rules that let a pod's packets through, as the program prints them.
pub(super) fn accepts(address: IpAddr) -> [String; 2] {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    ["-s", "-d"].map(|side| {
        format!("-A FORWARD {side} {address}/{bits} -m comment --comment {COMMENT} -j ACCEPT")
    })
}

fn program(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

fn text_of(program: &Path, output: std::io::Result<Output>) -> Result<String, OpError> {
    let failed = |errno: i32, reason: &str| OpError {
        errno,
        message: format!(
            "cannot let pods through the chain FORWARD of the older iptables: {}: {reason}; look \
             at its rules, or remove `firewall` from the network's configuration",
            program.display()
        ),
    };
    match output {
        Err(error) => Err(failed(error.raw_os_error().unwrap_or_default(), &error.to_string())),
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(failed(libc::EIO, String::from_utf8_lossy(&output.stderr).trim())),
    }
}
