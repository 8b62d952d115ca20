//! Images that are loaded, tokens in pods, and containers that look into others.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::flatnet;
use e2e::eventually;
use serde_json::json;

use super::kubectl::clients;
use super::world::World;

const NAMESPACE: &str = "images";
const IMAGE: &str = "shop.test/loaded:1";
/// The files of an image that [`write_image`] writes.
pub const CONFIG: &str = "config.json";
pub const LAYER: &str = "layer.tar";
const SOON: Duration = Duration::from_secs(30);
/// Where every client in a pod looks for its token.
const ACCESS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: loaded, namespace: images}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "shop.test/loaded:1", imagePullPolicy: IfNotPresent}]
"#;

/// An image in the format of `docker save` is loaded, run, looked into, and removed.
pub fn loaded_and_looked_into(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let directory = std::env::temp_dir().join(format!("flatnet-e2e-{}", std::process::id()));
    let archive = archive(&directory);
    let loaded =
        archive.and_then(|archive| flatnet(&["image", "load", "--name", &cluster.name, &archive]));
    fs::remove_dir_all(&directory).context("removing the image's files")?;
    ensure!(loaded?.contains(IMAGE), "the image is not named");
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    cluster.apply(POD)?;
    cluster.pod_ready(NAMESPACE, "loaded")?;
    for (file, expected) in [("namespace", NAMESPACE), ("ca.crt", "-----BEGIN CERTIFICATE-----")] {
        let path = format!("{ACCESS}/{file}");
        let text = cluster.exec(NAMESPACE, "loaded", &["/bin/toolbox", "cat", &path])?;
        ensure!(text.starts_with(expected), "{file}: {text:?}");
    }
    for (index, client) in clients(world).into_iter().enumerate() {
        let name = format!("look{index}");
        let run = |arguments: &[&str]| cluster.kubectl_by(client, arguments);
        let script = "tr '\\0' ' ' < /proc/1/cmdline";
        run(&[
            "debug",
            "loaded",
            "-n",
            NAMESPACE,
            "--image=localhost/host",
            "--target=main",
            "-c",
            &name,
            "--",
            "sh",
            "-c",
            script,
        ])?;
        let said = eventually("the debugger has looked", SOON, || {
            let said = run(&["logs", "loaded", "-n", NAMESPACE, "-c", &name])?;
            ensure!(!said.is_empty(), "nothing yet");
            Ok(said)
        })?;
        ensure!(said.trim() == "/bin/toolbox sleep infinity", "{said:?}");
    }
    cluster.kubectl(&["delete", "namespace", NAMESPACE])?;
    eventually("the image is free", SOON, || {
        flatnet(&["image", "remove", "--name", &cluster.name, IMAGE]).map(drop)
    })
}

/// Writes an image as `docker save` does.
fn archive(directory: &Path) -> Result<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    write_image(directory)?;
    let manifest = json!([{ "Config": CONFIG, "RepoTags": [IMAGE], "Layers": [LAYER] }]);
    fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let archive = path("image.tar");
    let files = ["manifest.json", CONFIG, LAYER];
    run("tar", &[&["-C", &path("."), "-cf", &archive], &files[..]].concat())?;
    Ok(archive)
}

/// Writes an image of our static toolbox: its configuration and its one layer.
pub fn write_image(directory: &Path) -> Result<()> {
    let path = |name: &str| directory.join(name).display().to_string();
    fs::create_dir_all(directory.join("root/bin"))?;
    fs::copy(e2e::program("flatnet-toolbox"), directory.join("root/bin/toolbox"))
        .context("no flatnet-toolbox: run `./x build --release`")?;
    run("tar", &["-C", &path("root"), "-cf", &path(LAYER), "bin"])?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": ["/bin/toolbox"], "Cmd": ["sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&directory.join(LAYER))?] },
    });
    Ok(fs::write(directory.join(CONFIG), config.to_string())?)
}

/// The digest of a file, as images write it.
pub fn digest_of(file: &Path) -> Result<String> {
    let digest = run("sha256sum", &[&file.display().to_string()])?;
    let digest = digest.split(' ').next().context("sha256sum prints no digest")?;
    Ok(format!("sha256:{digest}"))
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {}: {told}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
