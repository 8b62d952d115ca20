//! What container runtimes find on a node: our plugin, then the configuration that names it. The
//! configuration is written last, whole or not at all, for its presence tells the runtime that
//! pods can be added.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::{ClusterConfig, layout};

use crate::options::Options;

/// Bytes that are compared at once.
const PIECE_BYTES: usize = 64 * 1024;
/// The noted configuration, in the run directory.
pub(crate) const REMEMBERED: &str = "cluster.json";
/// Bytes of it that are read.
const REMEMBERED_BYTES_MAX: u64 = 1 << 20;

/// Plugin, then configuration, where they differ from what they shall be.
///
/// # Errors
/// The file system's, or when there is no plugin to install; then no configuration is written.
pub(crate) fn all(options: &Options, conflist: &str) -> Result<()> {
    if plugin(&options.cni_binary, &options.places.cni_plugin)? {
        let target = options.places.cni_plugin.display();
        tracing::info!("the CNI plugin is installed in {target}");
    }
    if configuration(&options.places.cni_configuration, conflist)? {
        let target = options.places.cni_configuration.display();
        tracing::info!("the CNI configuration is written to {target}: pods can be added");
    }
    Ok(())
}

/// Notes the configuration in the run directory: a later `uninstall` on this node needs it to know
/// which address on loopback is ours. Both go with a reboot.
///
/// # Errors
/// The file system's.
pub(crate) fn remember(run_directory: &Path, config: &ClusterConfig) -> Result<()> {
    let text = serde_json::to_vec(config)?;
    replace(run_directory, &run_directory.join(REMEMBERED), 0o600, |file| file.write_all(&text))
}

/// What [`remember`] noted, if it did.
pub(crate) fn remembered(run_directory: &Path) -> Option<ClusterConfig> {
    let file = fs::File::open(run_directory.join(REMEMBERED)).ok()?;
    serde_json::from_reader(file.take(REMEMBERED_BYTES_MAX)).ok()
}

/// Whether both seem to be there still. The plugin's bytes are not compared, for this is asked
/// often.
pub(crate) fn is_present(options: &Options, conflist: &str) -> bool {
    let target = options.places.cni_configuration.join(layout::CNI_CONFIGURATION_FILE);
    let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).ok();
    let plugin = options.places.cni_plugin.join(layout::CNI_PLUGIN);
    fs::read_to_string(&target).is_ok_and(|present| present == conflist)
        && length(&plugin).is_some()
        && length(&plugin) == length(&options.cni_binary)
}

/// The problem that another configuration makes when it sorts before ours: runtimes take the
/// first by name.
pub(crate) fn rival(directory: &Path) -> Option<String> {
    let entries = fs::read_dir(directory).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let counts = |name: &String| {
        let suffix = Path::new(name).extension().and_then(|suffix| suffix.to_str());
        suffix.is_some_and(|suffix| ["conf", "conflist", "json"].contains(&suffix))
    };
    let first = names.filter(counts).min()?;
    let target = directory.join(&first);
    (first.as_str() < layout::CNI_CONFIGURATION_FILE).then(|| {
        format!(
            "{} comes before our CNI configuration, so that runtimes add pods by that: remove it \
             when its network is given up",
            target.display()
        )
    })
}

/// Copies our plugin to where runtimes look for it, where it differs. Pods that are being added
/// run the old file to its end: it is replaced, not written to. Answers whether it wrote.
///
/// # Errors
/// The file system's, or when the source is no program.
fn plugin(source: &Path, directory: &Path) -> Result<bool> {
    let target = directory.join(layout::CNI_PLUGIN);
    let mode = fs::metadata(source)
        .with_context(|| format!("reading the CNI plugin {}", source.display()))?
        .permissions()
        .mode();
    if mode & 0o111 == 0 {
        bail!("{} is no program: name the flatnet-cni binary with --cni-binary", source.display());
    }
    if is_same(source, &target)? {
        return Ok(false);
    }
    let mut from = fs::File::open(source)?;
    replace(directory, &target, 0o755, |file| std::io::copy(&mut from, file).map(drop))?;
    Ok(true)
}

/// Writes the configuration list where it differs. Answers whether it wrote.
///
/// # Errors
/// The file system's.
fn configuration(directory: &Path, text: &str) -> Result<bool> {
    let target = directory.join(layout::CNI_CONFIGURATION_FILE);
    if fs::read_to_string(&target).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    replace(directory, &target, 0o600, |file| file.write_all(text.as_bytes()))?;
    Ok(true)
}

/// Writes a file anew, whole or not at all.
///
/// # Errors
/// The file system's.
pub(crate) fn replace(
    directory: &Path,
    target: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<()> {
    // Runtimes read *.conf, *.conflist and *.json: the unfinished file is none of them. We alone
    // write here (the agent's lock), so what has this name is of an agent that was killed.
    let new = target.with_extension("new");
    let work = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&new, target)?;
        fs::File::open(directory)?.sync_all()
    };
    work().with_context(|| format!("writing {}", target.display()))
}

/// Whether the target is a program with the same bytes.
fn is_same(source: &Path, target: &Path) -> Result<bool> {
    let Ok(present) = fs::metadata(target) else { return Ok(false) };
    let wanted = fs::metadata(source)?;
    if wanted.len() != present.len() || present.permissions().mode() & 0o777 != 0o755 {
        return Ok(false);
    }
    let (mut one, mut other) = (fs::File::open(source)?, fs::File::open(target)?);
    let mut pieces = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    loop {
        let length = one.read(&mut pieces.0)?;
        if length == 0 {
            return Ok(true);
        }
        let same = other.read_exact(&mut pieces.1[..length]).is_ok();
        if !same || pieces.0[..length] != pieces.1[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_left_alone_when_they_are_right() {
        let base = std::env::temp_dir().join(format!("flatnet-install-{}", std::process::id()));
        let (bin, net) = (base.join("bin"), base.join("net.d"));
        fs::create_dir_all(&base).expect("a directory");
        let source = base.join("flatnet-cni");
        fs::write(&source, "one").expect("written");
        assert!(plugin(&source, &bin).is_err(), "no program");
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).expect("a program");
        assert!(plugin(&source, &bin).expect("installed"));
        assert!(!plugin(&source, &bin).expect("there"));
        // What a killed agent left unfinished stops nobody.
        fs::write(bin.join(layout::CNI_PLUGIN).with_extension("new"), "half").expect("written");
        let old = fs::File::open(bin.join(layout::CNI_PLUGIN)).expect("in use");
        fs::write(&source, "two").expect("written");
        assert!(plugin(&source, &bin).expect("replaced"));
        assert_eq!(fs::read_to_string(bin.join(layout::CNI_PLUGIN)).expect("there"), "two");
        assert_eq!(std::io::read_to_string(old).expect("readable"), "one", "who has it keeps it");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&bin.join(layout::CNI_PLUGIN)), 0o755);

        assert!(configuration(&net, "{}").expect("written"));
        assert!(!configuration(&net, "{}").expect("there"));
        assert!(configuration(&net, "{ }").expect("replaced"));
        let names: Vec<_> = fs::read_dir(&net).expect("a directory").flatten().collect();
        assert_eq!(names.len(), 1, "nothing unfinished is left");
        assert_eq!(mode(&names[0].path()), 0o600);
        assert_eq!(rival(&net), None);
        fs::write(net.join("10-flannel.conflist"), "{}").expect("written");
        assert!(rival(&net).is_some_and(|problem| problem.contains("10-flannel.conflist")));
        fs::remove_dir_all(&base).expect("removed");
    }
}
