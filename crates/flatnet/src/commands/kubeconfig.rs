//! `flatnet kubeconfig`: prints the cluster's credentials, or merges them into a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_yaml_ng::{Mapping, Value};

use super::ClusterName;
use crate::cluster::spec::write_private;

/// Arguments of `flatnet kubeconfig`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet kubeconfig > kubeconfig\n  flatnet kubeconfig --merge ~/.kube/config"
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// Merge into this file instead of printing; the cluster becomes its current context.
    #[arg(long, value_name = "FILE")]
    merge: Option<PathBuf>,
}

/// Prints or merges.
///
/// # Errors
/// When there is no such cluster, or the file to merge into is not a kubeconfig.
pub fn run(arguments: Arguments) -> Result<()> {
    let (paths, _) = arguments.cluster.load()?;
    let file = paths.kubeconfig();
    let own = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let Some(target) = arguments.merge else {
        print!("{own}");
        return Ok(());
    };
    let present = match fs::read_to_string(&target) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", target.display())),
    };
    let merged = merge(&present, &own).with_context(|| format!("merging {}", target.display()))?;
    if let Some(directory) = target.parent().filter(|directory| *directory != Path::new("")) {
        fs::create_dir_all(directory)?;
    }
    write_private(&target, &merged)?;
    println!("merged into {}: `kubectl` uses this cluster now", target.display());
    Ok(())
}

/// Puts our entries into another kubeconfig, in the place of entries of the same name.
fn merge(present: &str, own: &str) -> Result<String> {
    let own: Mapping = serde_yaml_ng::from_str(own).context("the cluster's own kubeconfig")?;
    if present.trim().is_empty() {
        return Ok(serde_yaml_ng::to_string(&own)?);
    }
    let mut merged: Mapping =
        serde_yaml_ng::from_str(present).context("the file is not a kubeconfig")?;
    for list in ["clusters", "contexts", "users"] {
        let additions = entries(&own, list)?;
        let mut kept = entries(&merged, list)?;
        kept.retain(|entry| !additions.iter().any(|new| new.get("name") == entry.get("name")));
        kept.extend(additions);
        merged.insert(list.into(), Value::Sequence(kept));
    }
    if let Some(current) = own.get("current-context") {
        merged.insert("current-context".into(), current.clone());
    }
    Ok(serde_yaml_ng::to_string(&merged)?)
}

fn entries(config: &Mapping, list: &str) -> Result<Vec<Value>> {
    match config.get(list) {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Sequence(entries)) => Ok(entries.clone()),
        Some(_) => bail!("`{list}` is not a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "clusters: [{name: flatnet, cluster: {server: new}}]\n\
                       contexts: [{name: flatnet}]\nusers: []\ncurrent-context: flatnet\n";

    #[test]
    fn entries_of_others_stay_and_ours_are_replaced() {
        let present = "clusters: [{name: other}, {name: flatnet, cluster: {server: old}}]\n\
                       contexts: null\ncurrent-context: other\npreferences: {colors: true}\n";
        let merged = merge(present, OWN).expect("a kubeconfig");
        assert!(merged.contains("other") && merged.contains("new") && !merged.contains("old"));
        assert!(merged.contains("current-context: flatnet") && merged.contains("colors"));
    }

    #[test]
    fn what_is_no_kubeconfig_is_refused_and_kept() {
        assert!(merge("- a list\n", OWN).is_err());
        assert!(merge("clusters: text\n", OWN).is_err());
    }
}
