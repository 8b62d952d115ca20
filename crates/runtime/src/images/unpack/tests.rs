//! Layers over each other, as overlayfs sees them; and such as try to leave.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::images::tests::{Directory, Row, What, tar};

fn layer(directory: &Directory, name: &str, below: &[PathBuf], rows: &[Row<'_>]) -> PathBuf {
    try_layer(directory, name, below, rows).expect("a layer")
}

fn try_layer(
    directory: &Directory,
    name: &str,
    below: &[PathBuf],
    rows: &[Row<'_>],
) -> Result<PathBuf, String> {
    let path = directory.0.join(name);
    fs::create_dir_all(&path).expect("a directory");
    let archive = tar(rows);
    unpack(&mut Archive::new(archive.as_slice()), &path, below).map(|_| path)
}

/// What a container would see, by a mount in a namespace of the test's own thread.
fn shown(directory: &Directory, layers: &[PathBuf], command: &str) -> String {
    let lowers: Vec<&str> = layers.iter().filter_map(|layer| layer.to_str()).collect();
    let target = directory.0.join("mount");
    fs::create_dir_all(&target).expect("a directory");
    // One layer alone is no overlay.
    let empty = directory.0.join("empty");
    fs::create_dir_all(&empty).expect("a directory");
    let script = format!(
        "mount -t overlay overlay -o ro,lowerdir={}:{} {1} && cd {1} && {command}",
        lowers.join(":"),
        target.display(),
    )
    .replacen(&format!(":{}", target.display()), &format!(":{}", empty.display()), 1);
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("unshare");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn whiteouts_hide_and_directories_keep_what_they_were() {
    let directory = Directory::new("whiteouts");
    let file = |text: &'static str| What::File(text.as_bytes());
    let low = layer(
        &directory,
        "low",
        &[],
        &[
            ("tmp/", 0o1777, 7, What::Directory),
            ("a/old", 0o644, 0, file("1")),
            ("a/kept", 0o4755, 9, file("2")),
            ("b/one", 0o644, 0, file("3")),
            ("c/two", 0o644, 0, file("4")),
            ("lib64", 0o777, 0, What::Symlink("/usr/lib64")),
            ("usr/lib64/x", 0o644, 0, file("5")),
        ],
    );
    let below = [low.clone()];
    let high = layer(
        &directory,
        "high",
        &below,
        &[
            ("a/.wh.old", 0, 0, file("")),
            ("b/.wh..wh..opq", 0, 0, file("")),
            ("b/new", 0o644, 0, file("6")),
            (".wh.c", 0, 0, file("")),
            ("c/again", 0o644, 0, file("7")),
            ("tmp/x", 0o644, 0, file("8")),
            // Through a link of the layer below, which stays one.
            ("lib64/y", 0o644, 0, file("9")),
            ("lib64/z", 0o644, 0, What::Link("lib64/y")),
        ],
    );
    let layers = [high.clone(), low];
    let seen = shown(&directory, &layers, "find . ! -type d | sort | tr '\\n' ' '");
    let expected = "./a/kept ./b/new ./c/again ./lib64 ./tmp/x ./usr/lib64/x ./usr/lib64/y \
                    ./usr/lib64/z ";
    assert_eq!(seen, expected);
    let seen =
        shown(&directory, &layers, "stat -c %a:%u tmp a/kept; stat -c %F:%h lib64 usr/lib64/y");
    assert_eq!(seen, "1777:7\n4755:9\nsymbolic link:1\nregular file:2\n");
    assert_eq!(fs::metadata(high.join("usr/lib64/y")).expect("a file").mtime(), 1_000_000);
    let text = |path| find_file(&layers, path).map(|file| io::read_to_string(file).expect("text"));
    assert_eq!(text("a/kept").as_deref(), Some("2"));
    assert_eq!(text("b/new").as_deref(), Some("6"));
    assert_eq!([text("a/old"), text("b/one"), text("c/two"), text("lib64")], [const { None }; 4]);
}

#[test]
fn nothing_is_written_outside_of_a_layer() {
    let directory = Directory::new("escape");
    let outside = directory.0.join("outside");
    fs::create_dir_all(&outside).expect("a directory");
    fs::write(outside.join("victim"), "whole").expect("a file");
    let out = outside.to_str().expect("text").to_owned();
    let up = format!("../../../../../../../../{out}");
    let evil = || What::File(b"evil");
    // Refused, by what is said.
    let link_out = format!("../outside/{}", "victim");
    let refused: [&[Row<'_>]; 4] = [
        &[("../outside/victim", 0o644, 0, evil())],
        &[("a/../../outside/victim", 0o644, 0, evil())],
        &[("x", 0o644, 0, What::Link(&link_out))],
        &[("f", 0o644, 0, evil()), ("f/victim", 0o644, 0, evil())],
    ];
    for (number, rows) in refused.into_iter().enumerate() {
        let result = try_layer(&directory, &format!("refused{number}"), &[], rows);
        assert!(result.is_err(), "{number}");
    }
    // Kept inside: a link's target is looked up in the image.
    let inside: [&[Row<'_>]; 4] = [
        &[("link", 0o777, 0, What::Symlink(&out)), ("link/victim", 0o644, 0, evil())],
        &[("link", 0o777, 0, What::Symlink(&up)), ("link/victim", 0o644, 0, evil())],
        &[("link", 0o777, 0, What::Symlink(&out)), ("link/.wh.victim", 0o644, 0, evil())],
        // A file in the place of a link replaces it, and is not written through it.
        &[("link", 0o777, 0, What::Symlink("../outside/victim")), ("link", 0o600, 5, evil())],
    ];
    for (number, rows) in inside.into_iter().enumerate() {
        layer(&directory, &format!("inside{number}"), &[], rows);
    }
    let low = layer(&directory, "low", &[], &[("link", 0o777, 0, What::Symlink(&out))]);
    layer(&directory, "above", &[low], &[("link/victim", 0o644, 0, evil())]);
    assert_eq!(fs::read_to_string(outside.join("victim")).expect("a file"), "whole");
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 1);
    // Links without end.
    let around = [
        ("a", 0o777, 0, What::Symlink("b")),
        ("b", 0o777, 0, What::Symlink("a")),
        ("a/x", 0o644, 0, evil()),
    ];
    let error = try_layer(&directory, "around", &[], &around).expect_err("without end");
    assert!(error.contains("too many links"), "{error}");
}
