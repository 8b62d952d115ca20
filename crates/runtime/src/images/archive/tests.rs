//! Files with images, whole and damaged.

use std::fs;

use serde_json::json;

use super::*;
use crate::images::tests::{Directory, Row, What, configuration, gzip, layout, saved, tar, zstd};

fn layers() -> Vec<Vec<u8>> {
    let file = |text: &'static str| What::File(text.as_bytes());
    vec![
        tar(&[("etc/passwd", 0o644, 0, file("web:x:7:7::/:\n")), ("a", 0o644, 0, file("1"))]),
        tar(&[(".wh.a", 0o644, 0, file("")), ("b", 0o644, 0, file("2"))]),
    ]
}

#[test]
fn layouts_and_saved_images_are_the_same_image() {
    let directory = Directory::new("same");
    let config = || json!({"Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}});
    layout(&directory.0.join("layout"), "shop.test/web:1", &layers(), config());
    let saved = saved("shop.test/web:2", &layers(), config());
    let files = [("plain.tar", saved.clone()), ("gzip.tgz", gzip(&saved)), ("zstd", zstd(&saved))];
    for (name, content) in &files {
        fs::write(directory.0.join(name), content).expect("a file");
    }
    let archived = directory.0.join("layout.tar");
    let status = std::process::Command::new("tar")
        .arg("-C")
        .arg(directory.0.join("layout"))
        .arg("-cf")
        .arg(&archived)
        .arg(".")
        .status();
    assert!(status.expect("tar").success());
    let store = directory.store();
    for name in ["layout", "plain.tar", "gzip.tgz", "zstd", "layout.tar"] {
        let images = load(&store, &directory.0.join(name), None).expect(name);
        assert_eq!(images.len(), 1, "{name}");
    }
    let all = store.list();
    assert_eq!(all.len(), 1, "one content: {all:?}");
    assert_eq!(all[0].names.iter().collect::<Vec<_>>(), ["shop.test/web:1", "shop.test/web:2"]);
    assert!(!all[0].pulled);
    assert_eq!(store.config(&all[0]).expect("a config").env, ["A=b"]);
    assert_eq!(fs::read_dir(directory.0.join("store/incoming")).expect("there").count(), 0);
    // A name that another image takes is no longer this one's.
    let other = saved_as("shop.test/web:1", &directory);
    load(&store, &other, None).expect("loaded");
    let names: Vec<usize> = store.list().iter().map(|image| image.names.len()).collect();
    assert_eq!(names, [1, 1]);
}

fn saved_as(name: &str, directory: &Directory) -> PathBuf {
    let path = directory.0.join("other.tar");
    fs::write(&path, saved(name, &layers()[..1], json!({}))).expect("a file");
    path
}

/// Changes each blob of a layout in turn, keeping its name.
#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let directory = Directory::new("damaged");
    let store = directory.store();
    let path = directory.0.join("layout");
    layout(&path, "shop.test/web:1", &layers(), json!({}));
    let blobs: Vec<PathBuf> = fs::read_dir(path.join("blobs/sha256"))
        .expect("blobs")
        .map(|entry| entry.expect("a blob").path())
        .collect();
    assert_eq!(blobs.len(), 4, "manifest, configuration, two layers");
    for blob in blobs {
        let whole = fs::read(&blob).expect("a blob");
        let mut other = whole.clone();
        // Behind the end of a compressed layer as well.
        other.push(b' ');
        fs::write(&blob, other).expect("written");
        load(&store, &path, None).expect_err("damaged");
        fs::write(&blob, whole).expect("written");
    }
    assert_eq!(store.list(), [], "nothing of it is listed");
    load(&store, &path, None).expect("whole again");
    // A layer that says to be another by its manifest alone.
    let wrong = configuration(&[b"another".to_vec()], json!({}));
    let manifest = json!([{"Config": "c", "RepoTags": ["x.test/y"], "Layers": ["l"]}]).to_string();
    let rows: [Row<'_>; 3] = [
        ("manifest.json", 0o644, 0, What::File(manifest.as_bytes())),
        ("c", 0o644, 0, What::File(&wrong)),
        ("l", 0o644, 0, What::File(&layers()[0])),
    ];
    fs::write(directory.0.join("wrong.tar"), tar(&rows)).expect("a file");
    let error = load(&store, &directory.0.join("wrong.tar"), None).expect_err("wrong");
    assert!(error.contains("has other content"), "{error}");
}

#[test]
fn what_an_archive_lacks_is_said() {
    let directory = Directory::new("lacks");
    let store = directory.store();
    let secret = directory.0.join("secret");
    fs::write(&secret, "{}").expect("a file");
    let out = secret.to_str().expect("text").to_owned();
    let manifest = |config: &str| {
        json!([{"Config": config, "RepoTags": [], "Layers": []}]).to_string().into_bytes()
    };
    let (by_path, by_link) = (manifest("../secret"), manifest("link"));
    let config = configuration(&[], json!({}));
    let foreign = String::from_utf8_lossy(&config).replace("\"linux\"", "\"plan9\"").into_bytes();
    let unnamed = manifest("c");
    let cases: [(&str, Vec<Row<'_>>); 5] = [
        ("neither index.json", vec![("x", 0o644, 0, What::File(b""))]),
        ("../secret is not there", vec![("manifest.json", 0o644, 0, What::File(&by_path))]),
        (
            "link is not there",
            vec![
                ("manifest.json", 0o644, 0, What::File(&by_link)),
                ("link", 0o777, 0, What::Symlink(&out)),
            ],
        ),
        (
            "give it one by --image-name",
            vec![
                ("manifest.json", 0o644, 0, What::File(&unnamed)),
                ("c", 0o644, 0, What::File(&config)),
            ],
        ),
        (
            "plan9",
            vec![
                ("manifest.json", 0o644, 0, What::File(&unnamed)),
                ("c", 0o644, 0, What::File(&foreign)),
            ],
        ),
    ];
    for (expected, rows) in cases {
        let path = directory.0.join("case.tar");
        fs::write(&path, tar(&rows)).expect("a file");
        let error = load(&store, &path, None).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}
