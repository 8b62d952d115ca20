//! Pods that are added and deleted by `flatnet cni`, as a container runtime does.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::program;

/// What was added and not yet deleted.
#[derive(Default)]
pub struct Pods {
    /// Namespaces and their addresses by node, the oldest first.
    live: BTreeMap<String, VecDeque<(String, String)>>,
    made: u64,
}

/// Adds pods, and says each one's address as its own namespace has it. What was refused has no
/// namespace afterwards.
const ADD: &str = r#"
for name in $names; do
  ip netns add $name
  if why=$(flatnet cni add flatnet $name 2>&1 >/dev/null); then
    echo "$name $(ip -n $name -4 -o address show eth0 | awk '{print $4}')"
  else
    ip netns delete $name; echo "$name refused $why" | tr '\n' ' '; echo
  fi
done"#;
const DELETE: &str = r#"
for name in $names; do
  [ -z "$first" ] || ip netns delete $name
  flatnet cni del flatnet /run/netns/$name || echo "$name"
  [ -n "$first" ] || ip netns delete $name
done"#;

impl Pods {
    /// Adds pods on a node. Answers why some were refused.
    ///
    /// # Errors
    /// When an address is another pod's, or is missing.
    pub fn add(&mut self, cluster: &Cluster, node: &str, count: u64) -> Result<Vec<String>> {
        let names: Vec<String> =
            (self.made..self.made + count).map(|number| format!("pod{number}")).collect();
        self.made += count;
        let mut refused = Vec::new();
        for line in run(cluster, node, &format!("names='{}'{ADD}", names.join(" ")))?.lines() {
            let (name, rest) = line.split_once(' ').with_context(|| line.to_owned())?;
            if let Some(why) = rest.strip_prefix("refused") {
                refused.push(why.trim().to_owned());
                continue;
            }
            ensure!(rest.contains('/'), "{name} has the address {rest:?}");
            let holder = self.all().find(|(_, _, address)| *address == rest);
            ensure!(holder.is_none(), "{name} got the address of {holder:?}");
            self.live.entry(node.into()).or_default().push_back((name.into(), rest.into()));
        }
        Ok(refused)
    }

    /// Deletes the oldest pods of a node. Answers how many.
    ///
    /// # Errors
    /// When one could not be.
    pub fn delete(
        &mut self,
        cluster: &Cluster,
        node: &str,
        count: u64,
        namespaces_first: bool,
    ) -> Result<u64> {
        let live = self.live.entry(node.into()).or_default();
        let count = live.len().min(usize::try_from(count)?);
        let names: Vec<String> = live.drain(..count).map(|(name, _)| name).collect();
        let first = if namespaces_first { "yes" } else { "" };
        let script = format!("first={first}; names='{}'{DELETE}", names.join(" "));
        let failed = run(cluster, node, &script)?;
        ensure!(failed.is_empty(), "not deleted: {failed}");
        Ok(count as u64)
    }

    /// Pods that live on a node.
    pub fn on(&self, node: &str) -> u64 {
        self.live.get(node).map_or(0, |pods| pods.len() as u64)
    }

    /// All that live: node, namespace, address.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let row = |node, (name, address)| (node, name, address);
        self.live.iter().flat_map(move |(node, pods)| {
            pods.iter()
                .map(move |(name, address)| row(node.as_str(), (name.as_str(), address.as_str())))
        })
    }

    /// How many were asked for until now.
    pub fn made(&self) -> u64 {
        self.made
    }
}

/// A shell script on a node, with our programs in its path.
pub fn run(cluster: &Cluster, node: &str, script: &str) -> Result<String> {
    let program = program("flatnet");
    let directory = program.parent().unwrap_or(Path::new("/")).display();
    cluster.on_node(node, &["sh", "-c", &format!("PATH=$PATH:{directory}; {script}")])
}
