//! Case files: one behaviour a file, read by people first.
//!
//! ```text
//! # A title that says the behaviour.
//! # Then why it is so, with its source.
//!
//! nodes: 3                     node1 (172.30.0.2, 10.244.1.0/24), node2, …
//! at: node1                    where the packets are looked at
//! families: IPv4 IPv6          those of pods, Services and nodes; IPv4 when left out
//! overlay: host-gw             or vxlan, when left out, ipip, native
//! cross-subnet: yes            directly within 172.30.0.0/24, else by the overlay
//! zones: a a b                 of the nodes in their order
//! also-at: 172.31.0.2          further addresses of the node that is looked at
//! node-port-addresses: RANGE   where node ports are open; everywhere when left out
//! external-ip-ranges: RANGE    externalIPs that are allowed; none when left out
//! answer-ping: yes             ClusterIPs answer echo requests
//! load-balancer-mode: dsr      or hybrid: endpoints answer clients outside past the node
//! masquerade-all: yes          every connection through a Service is masqueraded
//! non-masquerade-cidrs: RANGE  outside of the cluster, where pods keep their addresses
//! masquerade-ports: 40000-40063  source ports of what is masqueraded towards outside
//! unsupported: iptables WHAT   a backend that refuses something of the case
//!
//! objects:                     the first complete lists
//!   {YAML documents}
//! expect:                      the state in short; written by `bless`
//!   …
//! packets:                     a table; verdicts are written by `bless`
//!   from | to | protocol | verdict | rewritten to | source | decided by
//!
//! update:                      objects that are present now
//! delete: Service default/web  objects that are absent now
//! restart:                     the agent dies and starts again; it must write nothing
//! unreachable: node2, pod web-1:8080
//!                              what does not answer the node now; nothing, when empty
//! fail-next-op: 2 EBUSY        the kernel refuses the next two operations of the agent
//! ```
//!
//! The sections are carried out from top to bottom, `expect` and `packets` check where they
//! stand.

pub mod names;
pub mod run;
pub mod settings;
pub mod state;
pub mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::NamespacedName;
use model::world::{Kind, Object};

use crate::objects;
pub use settings::Settings;
use table::Row;

/// One behaviour.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file's name without its ending.
    pub name: String,
    /// The leading comment.
    pub about: String,
    /// What the cluster and the node are like.
    pub settings: Settings,
    /// What happens, in order.
    pub sections: Vec<Section>,
}

/// One step or check.
#[derive(Clone, Debug)]
pub enum Section {
    /// The first complete lists.
    Objects(Vec<Object>),
    /// Objects that are present now.
    Update(Vec<Object>),
    /// One object that is absent now.
    Delete(Kind, NamespacedName),
    /// What does not answer the node that is looked at: nodes, and endpoints by name and port.
    Unreachable(Vec<String>),
    /// The agent dies and starts again.
    Restart,
    /// The kernel refuses the next operations.
    FailNextOp {
        /// How many.
        count: usize,
        /// With which errno.
        errno: i32,
    },
    /// The state in short.
    Expect(Vec<String>),
    /// Packets and what becomes of them.
    Packets(Vec<Row>),
}

/// A section as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) head: String,
    pub(crate) argument: String,
    pub(crate) body: Vec<String>,
}

/// All case files below a directory, by name.
///
/// # Errors
/// When a directory cannot be read.
pub fn find(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "case") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The workspace's `cases/`.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cases")
}

impl Case {
    /// Reads a case file, and its text.
    ///
    /// # Errors
    /// When it cannot be read, or says what no case says.
    pub fn file(path: &Path) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let case = Self::parse(&name, &text).with_context(|| format!("{}", path.display()))?;
        Ok((case, text))
    }

    /// Reads a case.
    ///
    /// # Errors
    /// What is wrong, with the section.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let (about, texts) = split(text)?;
        let mut case = Self {
            name: name.to_string(),
            about,
            settings: Settings::default(),
            sections: Vec::new(),
        };
        if case.about.trim().is_empty() {
            bail!("a case begins with a comment: its behaviour, and why it is so");
        }
        for text in &texts {
            case.read(text).with_context(|| format!("in `{}: {}`", text.head, text.argument))?;
        }
        if !case.sections.iter().any(|section| matches!(section, Section::Packets(_))) {
            bail!("a case without `packets:` shows nothing");
        }
        Ok(case)
    }

    fn read(&mut self, text: &Text) -> Result<()> {
        // Document separators stand at the start of a line: the body's indentation goes.
        let undented = |line: &String| line.strip_prefix("  ").unwrap_or(line).to_string();
        let yaml = || {
            let lines: Vec<String> = text.body.iter().map(undented).collect();
            objects::parse(&lines.join("\n"))
        };
        if self.settings.read(&text.head, &text.argument)? {
            return Ok(());
        }
        let section = match text.head.as_str() {
            "objects" => Section::Objects(yaml()?),
            "update" => Section::Update(yaml()?),
            "delete" => {
                let (kind, key) = text.argument.split_once(' ').context("KIND NAMESPACE/NAME")?;
                let key = match key.split_once('/') {
                    Some((namespace, name)) => NamespacedName::new(namespace, name),
                    None => NamespacedName::new("", key),
                };
                Section::Delete(objects::kind_of(kind)?, key)
            }
            "unreachable" => {
                let words = text.argument.split(',').map(|word| word.trim().to_owned());
                Section::Unreachable(words.filter(|word| !word.is_empty()).collect())
            }
            "restart" => Section::Restart,
            "fail-next-op" => {
                let (count, errno) = text.argument.split_once(' ').context("COUNT ERRNO")?;
                Section::FailNextOp { count: count.parse()?, errno: errno_of(errno)? }
            }
            "expect" => Section::Expect(text.body.iter().map(|l| l.trim().to_string()).collect()),
            "packets" => Section::Packets(table::parse(&text.body)?),
            other => bail!("{other:?} is no section of a case"),
        };
        self.sections.push(section);
        Ok(())
    }
}

fn errno_of(name: &str) -> Result<i32> {
    use nix::errno::Errno;
    let known = [Errno::EBUSY, Errno::ENOBUFS, Errno::EEXIST, Errno::ENOMEM, Errno::EINTR];
    let found = known.into_iter().find(|errno| format!("{errno:?}") == name);
    Ok(found.with_context(|| format!("{name:?} is none of {known:?}"))? as i32)
}

/// The leading comment and the sections.
pub(crate) fn split(text: &str) -> Result<(String, Vec<Text>)> {
    let mut about = String::new();
    let mut texts: Vec<Text> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if texts.is_empty() && (line.starts_with('#') || line.trim().is_empty()) {
            about.push_str(line.trim_start_matches('#').trim());
            about.push('\n');
        } else if line.starts_with(' ') || line.trim().is_empty() || line.starts_with('#') {
            if let Some(last) = texts.last_mut() {
                last.body.push(line.to_string());
            }
        } else {
            let (head, argument) = line
                .split_once(':')
                .with_context(|| format!("line {}: sections look like `packets:`", index + 1))?;
            texts.push(Text {
                head: head.to_string(),
                argument: argument.split('#').next().unwrap_or_default().trim().to_string(),
                body: vec![],
            });
        }
    }
    Ok((about, texts))
}
