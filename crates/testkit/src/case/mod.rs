//! Case files: one behaviour a file, read by people first.
//!
//! ```text
//! # A title that says the behaviour.
//! # Then why it is so, with its source.
//!
//! nodes: 3                     node1 (172.30.0.2, 10.244.1.0/24), node2, …
//! at: node1                    where the packets are looked at
//! overlay: host-gw             or vxlan, when left out, ipip, native
//! cross-subnet: yes            directly within 172.30.0.0/24, else by the overlay
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
//! fail-next-op: 2 EBUSY        the kernel refuses the next two operations of the agent
//! ```
//!
//! The sections are carried out from top to bottom, `expect` and `packets` check where they
//! stand.

pub mod names;
pub mod run;
pub mod state;
pub mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::world::{Kind, Object};
use model::{ClusterConfig, NamespacedName, Overlay};

use crate::objects;
use table::Row;

/// A case file holds at most so many nodes.
pub const NODES_MAX: u8 = 9;

/// One behaviour.
#[derive(Clone, Debug)]
pub struct Case {
    /// The path below `cases/` without its ending.
    pub name: String,
    /// The leading comment.
    pub about: String,
    /// The cluster's configuration.
    pub config: ClusterConfig,
    /// Number of nodes.
    pub nodes: u8,
    /// Number of the node where packets are looked at, from 1.
    pub at: u8,
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
    /// Reads a case.
    ///
    /// # Errors
    /// What is wrong, with the section.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let (about, texts) = split(text)?;
        let mut case = Self {
            name: name.to_string(),
            about,
            config: objects::config(),
            nodes: 3,
            at: 1,
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
        let section = match text.head.as_str() {
            "nodes" => {
                self.nodes = text.argument.parse().context("a number")?;
                if !(1..=NODES_MAX).contains(&self.nodes) {
                    bail!("between 1 and {NODES_MAX} nodes");
                }
                return Ok(());
            }
            "at" => {
                let number = text.argument.strip_prefix("node").context("a name such as node1")?;
                self.at = number.parse().context("a name such as node1")?;
                return Ok(());
            }
            "overlay" => {
                self.config.overlay = text.argument.parse()?;
                if self.config.overlay == Overlay::Wireguard {
                    bail!("the lab has no WireGuard, and rules that are strict about it");
                }
                return Ok(());
            }
            "cross-subnet" => {
                self.config.cross_subnet = match text.argument.as_str() {
                    "yes" => true,
                    other => bail!("{other:?}: yes, or leave the line out"),
                };
                return Ok(());
            }
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

    /// The node objects that the case starts with.
    pub fn node_objects(&self) -> Vec<Object> {
        (1..=self.nodes).map(|number| Object::Node(objects::node(number).into())).collect()
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
