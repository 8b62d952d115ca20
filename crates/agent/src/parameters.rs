//! What kernel parameters of connection tracking were before flatnet set them: `uninstall` sets
//! them back, unless somebody else has set them since. The notes are in the run directory, and go
//! with a reboot as the parameters do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;
use netlink::sysctl;
use render::Op;
use render::net::{CONNTRACK_PREFIX, NetOp};
use serde::{Deserialize, Serialize};

use crate::install;

/// The notes, in the run directory.
pub(crate) const FILE: &str = "kernel-parameters.json";
/// Bytes of them that are read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The notes, by key.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Former(BTreeMap<String, Change>);

/// One parameter.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// Its value before the first change.
    before: String,
    /// What flatnet set it to last.
    set: String,
}

impl Former {
    /// As an agent before this one, or before this restart, has noted; empty where none has.
    pub(crate) fn load(run_directory: &Path) -> Self {
        let file = fs::File::open(run_directory.join(FILE));
        let read =
            file.ok().and_then(|file| serde_json::from_reader(file.take(FILE_BYTES_MAX)).ok());
        read.unwrap_or_default()
    }

    /// Notes what ops are about to change, where it is `read` before. Answers whether there is
    /// anything new to be written down.
    pub(crate) fn note(&mut self, ops: &[Op], read: impl Fn(&str) -> Option<String>) -> bool {
        let mut is_new = false;
        for op in ops {
            let Op::Net(NetOp::SetSysctl { key, value }) = op else { continue };
            if !key.starts_with(CONNTRACK_PREFIX) {
                continue;
            }
            match self.0.get_mut(key) {
                Some(known) => {
                    is_new |= known.set != *value;
                    known.set.clone_from(value);
                }
                None => {
                    // What is not there is refused, and was nothing before.
                    let Some(before) = read(key) else { continue };
                    self.0.insert(key.clone(), Change { before, set: value.clone() });
                    is_new = true;
                }
            }
        }
        is_new
    }

    /// Writes the notes down.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, run_directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)?;
        install::replace(run_directory, &run_directory.join(FILE), 0o600, |file| {
            file.write_all(&text)
        })
    }

    /// The parameters that still are as flatnet set them, each with what it was before.
    fn to_restore(&self, read: impl Fn(&str) -> Option<String>) -> Vec<(&str, &str)> {
        let is_ours = |(key, change): &(&String, &Change)| {
            change.before != change.set && read(key).as_ref() == Some(&change.set)
        };
        let ours = self.0.iter().filter(is_ours);
        ours.map(|(key, change)| (key.as_str(), change.before.as_str())).collect()
    }
}

/// Sets back what was noted. Answers what was, a line each.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn restore(run_directory: &Path) -> Result<Vec<String>> {
    let former = Former::load(run_directory);
    let mut restored = Vec::new();
    for (key, before) in former.to_restore(present) {
        sysctl::write(key, before)?;
        restored.push(format!("value of {}: it is {before} again", key.replace('/', ".")));
    }
    Ok(restored)
}

/// A parameter's value, where it is there.
pub(crate) fn present(key: &str) -> Option<String> {
    sysctl::read(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: &str) -> Op {
        Op::Net(NetOp::SetSysctl { key: key.into(), value: value.into() })
    }

    #[test]
    fn the_first_value_is_noted_and_set_back_only_where_ours_still_is_there() {
        let [idle, udp, gone] = ["tcp_timeout_established", "udp_timeout", "absent"]
            .map(|name| format!("{CONNTRACK_PREFIX}{name}"));
        let mut kernel: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in [(&idle, "432000"), (&udp, "30")] {
            kernel.insert(key.clone(), value.into());
        }
        let mut former = Former::default();
        let ops = [set(&idle, "86400"), set(&udp, "10"), set(&gone, "1"), set("net/x", "1")];
        assert!(former.note(&ops, |key| kernel.get(key).cloned()));
        for (key, value) in [(&idle, "86400"), (&udp, "10")] {
            kernel.insert(key.clone(), value.into());
        }
        let read = |key: &str| kernel.get(key).cloned();
        assert!(!former.note(&ops, read), "the same again is nothing new");
        assert!(former.note(&[set(&udp, "20")], read), "another configuration is");
        let text = serde_json::to_string(&former).expect("written");
        let former: Former = serde_json::from_str(&text).expect("read");
        assert_eq!(former.to_restore(read), [(idle.as_str(), "432000")], "10 is not ours");
        kernel.insert(udp.clone(), "20".into());
        let read = |key: &str| kernel.get(key).cloned();
        assert_eq!(former.to_restore(read), [(idle.as_str(), "432000"), (udp.as_str(), "30")]);
    }
}
