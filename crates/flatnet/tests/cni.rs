//! `flatnet cni` as people call it, with a plugin that is a script. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A network `net` whose plugin answers as it is asked.
struct Bench(PathBuf);

impl Bench {
    fn new(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("flatnet-cni-command-{}-{name}", std::process::id()));
        for part in ["networks", "plugins"] {
            fs::create_dir_all(directory.join(part)).expect("a directory");
        }
        let list = json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [{ "type": "p" }] });
        fs::write(directory.join("networks/10-net.conflist"), list.to_string()).expect("written");
        let script = "#!/bin/sh\ncat >/dev/null\n[ ! -e $(dirname $0)/broken ] || \
             { echo '{\"code\":102,\"msg\":\"no address\",\"details\":\"remove pods\"}'; exit 1; }\n\
             case $CNI_COMMAND in\n\
             ADD) echo \"{\\\"cniVersion\\\":\\\"1.1.0\\\",\\\"interfaces\\\":[{\\\"name\\\":\\\"$CNI_IFNAME\\\",\
             \\\"sandbox\\\":\\\"$CNI_NETNS\\\"}],\\\"ips\\\":[{\\\"address\\\":\\\"10.1.0.5/24\\\",\\\"interface\\\":0}]}\";;\n\
             VERSION) echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}';;\n\
             esac\n";
        let plugin = directory.join("plugins/p");
        fs::write(&plugin, script).expect("a script");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("executable");
        Self(directory)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let place = |name: &str| self.0.join(name).display().to_string();
        Command::new(env!("CARGO_BIN_EXE_flatnet"))
            .arg("cni")
            .args(arguments)
            .args(["--config-directory", &place("networks")])
            .args(["--plugin-path", &place("plugins")])
            .args(["--cache-directory", &place("cache")])
            .output()
            .expect("flatnet starts")
    }

    /// Standard output of a call that works.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} (needs root): {words}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn results(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("cache/results")).expect("results");
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_namespace_is_added_checked_and_deleted() {
    let bench = Bench::new("whole");
    let add = ["add", "net", "try", "--container-id", "c1", "--ifname", "net1"];
    assert_eq!(bench.text(&add), "address 10.1.0.5/24 on net1, gateway -\n");
    assert_eq!(bench.results(), ["net-c1-net1"]);
    let again = bench.call(&add);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("on the network net already"));
    assert_eq!(bench.results(), ["net-c1-net1"], "what is there is not touched");
    for action in ["check", "del", "del"] {
        let arguments = [action, "net", "try", "--container-id", "c1", "--ifname", "net1"];
        assert_eq!(bench.text(&arguments), "", "{action}");
    }
    assert_eq!(bench.results(), [] as [&str; 0]);
    let result = bench.text(&["add", "net", "/run/netns/try", "--output", "json"]);
    let result: Value = serde_json::from_str(&result).expect("JSON");
    assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/try");
    assert_eq!(bench.text(&["gc", "net", "--all"]), "");
    assert_eq!(bench.results(), [] as [&str; 0]);
}

#[test]
fn a_plugins_fault_is_told_and_its_document_printed() {
    let bench = Bench::new("fault");
    assert_eq!(bench.text(&["version", "net"]), "p: 1.0.0, 1.1.0\n");
    assert_eq!(bench.text(&["status", "net"]), "");
    fs::write(bench.0.join("plugins/broken"), "").expect("broken");
    let output = bench.call(&["status", "net", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&error["code"], &error["details"]), (&json!(102), &json!("remove pods")));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("plugin type=\"p\" failed (status): no address"), "{words}");
    let output = bench.call(&["status", "other"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no network \"other\""));
    assert_eq!(output.status.code(), Some(1));
}
