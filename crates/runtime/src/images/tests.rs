//! Images that tests make: archives of layers, `docker save` and OCI layouts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::oci::ImageDocument;
use super::store::{Store, digest};
use super::*;

/// What an entry of an archive is.
pub enum What<'a> {
    /// A file with this content.
    File(&'a [u8]),
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Symlink(&'a str),
    /// The same file as this.
    Link(&'a str),
}

/// An entry: path, permissions, owner, content.
pub type Row<'a> = (&'a str, u32, u32, What<'a>);

/// A tar archive.
pub fn tar(rows: &[Row<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, mode, owner, what) in rows {
        let (kind, link, content): (u8, &str, &[u8]) = match what {
            What::File(content) => (b'0', "", content),
            What::Directory => (b'5', "", b""),
            What::Symlink(target) => (b'2', target, b""),
            What::Link(target) => (b'1', target, b""),
        };
        archive.extend(header(path, kind, link, *mode, *owner, content.len()));
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// A header with its checksum.
pub fn header(path: &str, kind: u8, link: &str, mode: u32, owner: u32, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, &format!("{owner:07o}"));
    put(116, &format!("{owner:07o}"));
    put(124, &format!("{size:011o}"));
    put(136, &format!("{:011o}", 1_000_000));
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Compresses.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("compressed");
    encoder.finish().expect("compressed")
}

/// Compresses.
pub fn zstd(content: &[u8]) -> Vec<u8> {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    // A frame to skip, and content in two frames, as some tools have it.
    let (first, second) = content.split_at(content.len() / 2);
    let frame = |part: &[u8]| compress_to_vec(part, CompressionLevel::Fastest);
    [vec![0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], frame(first), frame(second)].concat()
}

/// An image's configuration.
pub fn configuration(layers: &[Vec<u8>], config: serde_json::Value) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer).to_string()).collect();
    let document = json!({"architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    serde_json::to_vec(&document).expect("a document")
}

/// What `docker save` writes.
pub fn saved(name: &str, layers: &[Vec<u8>], config: serde_json::Value) -> Vec<u8> {
    let config = configuration(layers, config);
    let names: Vec<String> =
        (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{"Config": "c.json", "RepoTags": [name], "Layers": names}]);
    let manifest = serde_json::to_vec(&manifest).expect("a manifest");
    let mut rows: Vec<Row<'_>> = vec![
        ("manifest.json", 0o644, 0, What::File(&manifest)),
        ("c.json", 0o644, 0, What::File(&config)),
    ];
    for (name, layer) in names.iter().zip(layers) {
        rows.push((name, 0o644, 0, What::File(layer)));
    }
    tar(&rows)
}

/// An OCI layout in a directory, of layers that are compressed in turn by each of the two ways.
pub fn layout(directory: &Path, name: &str, layers: &[Vec<u8>], config: serde_json::Value) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let put = |content: &[u8]| {
        let digest = digest(content);
        fs::write(blobs.join(digest.digits()), content).expect("a blob");
        json!({"digest": digest.to_string(), "size": content.len()})
    };
    let config = put(&configuration(layers, config));
    let blobs = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| put(&if number % 2 == 0 { gzip(layer) } else { zstd(layer) }));
    let manifest = json!({"config": config, "layers": blobs.collect::<Vec<_>>()});
    let mut manifest = put(&serde_json::to_vec(&manifest).expect("a manifest"));
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.join("index.json"), index.to_string()).expect("an index");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
}

/// A directory that goes with the test.
pub struct Directory(pub PathBuf);

impl Directory {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/var/tmp/flatnet-images-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// A store of images in it.
    pub fn store(&self) -> Store {
        Store::open(self.0.join("store")).expect("a store")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn stop_signals_have_every_form() {
    let cases =
        [("SIGQUIT", 3), ("QUIT", 3), ("9", 9), ("SIGRTMIN+3", 37), ("", 15), ("SIGNONE", 15)];
    for (text, number) in cases {
        assert_eq!(stop_signal(text), number, "{text}");
    }
}

#[test]
fn images_that_no_container_uses_go_oldest_first_and_loaded_ones_never() {
    let directory = Directory::new("collect");
    let store = directory.store();
    let image = |name: &str, from: Option<&str>| {
        let layer = tar(&[("file", 0o644, 0, What::File(name.as_bytes()))]);
        let config = configuration(std::slice::from_ref(&layer), json!({}));
        let diff_id = ImageDocument::parse(&config).expect("a document").rootfs.diff_ids.remove(0);
        let chain = store.add_layer(layer.as_slice(), &diff_id, &[]).expect("a layer").chain;
        let name = Reference::parse(name).expect("a name");
        store.add_image(&config, vec![chain], &[name], from.map(str::to_owned)).expect("an image")
    };
    let (old, used, loaded) = (
        image("a.test/old", Some("x")),
        image("a.test/used", Some("x")),
        image("a.test/own", None),
    );
    let state = directory.0.join("state");
    store.register("node1", &state).expect("registered");
    let layers = state.join("pods/uid/containers/main/0");
    fs::create_dir_all(&layers).expect("a directory");
    let usage = Use { id: used.id.clone(), stop_signal: String::new() };
    store.begin_use(&used, &usage, &layers).expect("in use");
    let error = store.remove("a.test/used").expect_err("in use");
    assert!(error.contains("is in use"), "{error}");
    let now = crate::context::now().seconds();
    assert_eq!(store.collect(now - 1_000, || false).expect("collected"), [], "too young");
    assert_eq!(store.collect(now + 1, || true).expect("collected"), [], "enough room");
    let gone = store.collect(now + 1, || false).expect("collected");
    assert_eq!(gone.iter().map(|image| &image.id).collect::<Vec<_>>(), [&old.id]);
    assert!(!store.layers(&old)[0].exists() && store.layers(&used)[0].exists());
    assert!(store.layers(&loaded)[0].exists());
    fs::remove_dir_all(&layers).expect("the container is gone");
    store.remove("a.test/used:latest").expect("removed");
    assert!(!store.layers(&used)[0].exists());
    assert_eq!(store.list().len(), 1);
}
