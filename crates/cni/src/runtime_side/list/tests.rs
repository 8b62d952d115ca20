use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with files, which goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str, texts: &[(&str, Value)]) -> Self {
        let path = std::env::temp_dir().join(format!("flatnet-list-{}-{name}", std::process::id()));
        let directory = Self(path);
        for (file, value) in texts {
            let file = directory.0.join(file);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, value.to_string()).expect("written");
        }
        directory
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn list(value: Value) -> Result<List, Fault> {
    List::from_value(value)
}

fn kinds(list: &List) -> Vec<&str> {
    list.plugins().iter().map(Plugin::kind).collect()
}

/// CNI-22: highest common version.
#[test]
fn the_highest_common_version_is_picked() {
    let rows = [
        (json!({}), Ok("0.1.0")),
        (json!({ "cniVersion": "0.4.0" }), Ok("0.4.0")),
        (json!({ "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0"] }), Ok("1.0.0")),
        (json!({ "cniVersion": "1.1.0", "cniVersions": ["0.4.0"] }), Ok("1.1.0")),
        (json!({ "cniVersions": ["9.0.0", "1.1.0", "0.4.0"] }), Ok("1.1.0")),
        (json!({ "cniVersion": "9.0.0", "cniVersions": ["1.0.0"] }), Ok("1.0.0")),
        (json!({ "cniVersion": "9.0.0" }), Err(INCOMPATIBLE_VERSION)),
        (json!({ "cniVersion": 1 }), Err(INVALID_CONFIG)),
    ];
    for (mut value, expected) in rows {
        value["name"] = json!("net");
        value["plugins"] = json!([{ "type": "a" }]);
        let found = list(value.clone()).map(|list| list.version().to_owned());
        let expected = expected.map(str::to_owned);
        assert_eq!(found.map_err(|fault| fault.code), expected, "{value}");
    }
}

/// CNI-22: capabilities become `runtimeConfig` and are removed; other keys go through.
#[test]
fn a_plugin_gets_its_own_object_and_what_its_capabilities_ask_for() {
    let list = list(json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [{
        "type": "a", "x": 1, "cni.dev/own": [],
        "capabilities": { "portMappings": true, "mac": false },
    }]}))
    .expect("a list");
    let capabilities = json!({ "portMappings": [1], "mac": "0a:58", "ips": [] });
    let further = json!({ "prevResult": { "ips": [] } });
    let keys = |value: &Value| value.as_object().cloned().expect("an object");
    let input = list.input(&list.plugins()[0], Some(&keys(&capabilities)), &keys(&further));
    let expected = json!({
        "type": "a", "x": 1, "cni.dev/own": [], "name": "n", "cniVersion": "1.0.0",
        "runtimeConfig": { "portMappings": [1] }, "prevResult": { "ips": [] },
    });
    assert_eq!(input, expected);
    let input = list.input(&list.plugins()[0], None, &Map::new());
    assert_eq!((input.get("runtimeConfig"), input.get("capabilities")), (None, None));
}

/// CNI-22: loadOnlyInlinedPlugins and the directory of dropped-in plugins.
#[test]
fn plugins_that_are_dropped_in_follow_unless_only_inlined_ones_are_wanted() {
    let both = |only: Value| json!({ "name": "net", "loadOnlyInlinedPlugins": only, "plugins": [{ "type": "a" }] });
    let directory = Directory::new(
        "dropped",
        &[
            ("10-net.conflist", both(json!(false))),
            ("20-only.conflist", both(json!(true))),
            ("net/20-c.conf", json!({ "type": "c" })),
            ("net/10-b.conf", json!({ "type": "b" })),
            ("net/15-x.json", json!({ "type": "x" })),
            ("30-one.conf", json!({ "name": "one", "type": "solo" })),
            ("40-empty.conflist", json!({ "name": "empty", "plugins": [] })),
            ("empty/10.conf", json!({ "type": "d" })),
            ("README", json!("not read")),
        ],
    );
    let read = |file: &str| List::read(&directory.0.join(file)).expect(file);
    assert_eq!(kinds(&read("10-net.conflist")), ["a", "b", "c"]);
    assert_eq!(kinds(&read("20-only.conflist")), ["a"]);
    assert_eq!(kinds(&read("30-one.conf")), ["solo"]);
    assert_eq!(kinds(&read("40-empty.conflist")), ["d"]);
    let first = List::first(&directory.0).expect("a list").expect("one");
    assert_eq!(first.name(), "net");
    assert_eq!(List::named(&directory.0, "one").expect("found").plugins().len(), 1);
    assert_eq!(List::first(&directory.0.join("nowhere")), Ok(None));
}

#[test]
fn a_broken_file_hides_no_other_and_is_named_when_nothing_is_found() {
    let directory =
        Directory::new("broken", &[("20-net.conf", json!({ "name": "net", "type": "a" }))]);
    fs::write(directory.0.join("10-broken.conf"), "{").expect("written");
    List::named(&directory.0, "net").expect("found");
    let fault = List::named(&directory.0, "other").expect_err("not there");
    assert!(fault.details.contains("10-broken.conf"), "{fault}");
    for wrong in [
        json!({ "name": "net", "plugins": [] }),
        json!({ "name": "net", "plugins": [{ "x": 1 }] }),
        json!({ "name": "net", "plugins": ["a"] }),
        json!({ "name": "../x", "plugins": [{ "type": "a" }] }),
        json!({ "name": "net" }),
        json!({ "name": "net", "plugins": vec![json!({ "type": "a" }); PLUGINS_MAX + 1] }),
    ] {
        assert_eq!(list(wrong.clone()).map_err(|fault| fault.code), Err(INVALID_CONFIG), "{wrong}");
    }
}

/// a configuration that others can write is refused, and works without the mode.
#[test]
fn configurations_that_others_can_write_are_refused() {
    let directory =
        Directory::new("shared", &[("10-net.conf", json!({ "name": "net", "type": "a" }))]);
    let file = directory.0.join("10-net.conf");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    };
    for (path, wrong, right) in [(&file, 0o646, 0o644), (&directory.0, 0o777, 0o755)] {
        mode(path, wrong);
        let fault = List::first(&directory.0).expect_err("refused");
        assert!(fault.message.contains(&path.display().to_string()), "{fault}");
        mode(path, right);
        List::first(&directory.0).expect("a list");
    }
}
