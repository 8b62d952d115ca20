//! The one image: our static toolbox, in the format of `docker save`, which every runtime loads.
//! No registry is asked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::machine::{command, output};

/// The image's name.
pub const NAME: &str = "localhost/toolbox:latest";
/// The program in it. Without arguments of its own, a container sleeps until it is stopped.
pub const PROGRAM: &str = "/bin/toolbox";
const DIRECTORY: &str = "/run/image";

/// Writes the archive.
pub fn archive() -> Result<PathBuf> {
    let directory = Path::new(DIRECTORY);
    let programs = directory.join("rootfs/bin");
    fs::create_dir_all(&programs)?;
    fs::copy(e2e::program("flatnet-toolbox"), programs.join("toolbox"))
        .context("no target/flatnet/flatnet-toolbox: run `./x build --release`")?;
    let layer = directory.join("layer.tar").display().to_string();
    let rootfs = directory.join("rootfs").display().to_string();
    command("tar", &["-C", &rootfs, "-cf", &layer, "bin"])?;
    let digest = output("sha256sum", &[&layer])?;
    let digest = digest.split(' ').next().context("sha256sum prints no digest")?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": [PROGRAM], "Cmd": ["sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(directory.join("config.json"), config.to_string())?;
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let files = ["manifest.json", "config.json", "layer.tar"];
    let archive = directory.join("image.tar");
    let mut call = vec!["-C", DIRECTORY, "-cf"];
    let path = archive.display().to_string();
    call.push(&path);
    call.extend(files);
    command("tar", &call)?;
    Ok(archive)
}
