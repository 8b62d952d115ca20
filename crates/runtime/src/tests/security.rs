//! Security contexts as the kernel sees them.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde_json::{Value, json};

use super::node::{Node, on_node, shell};
use super::pods::output;

fn script(security: Value, text: &str) -> Value {
    let mut container = shell(text);
    container["securityContext"] = security;
    json!({"restartPolicy": "Never", "containers": [container]})
}

/// Prints the kernel's answer to `keyctl(KEYCTL_GET_KEYRING_ID)`, which no container needs.
const ASK_FOR_KEYS: &str =
    "perl -e 'syscall(250, 0, -1, 0); print $!{EPERM} ? \"refused\" : \"answered\", \"\\n\"'";

#[test]
#[cfg(target_arch = "x86_64")]
fn system_calls_are_filtered_unless_the_pod_says_otherwise() {
    on_node("seccomp", |node: Node| async move {
        let _runtime = node.start();
        let text = format!("grep ^Seccomp: /proc/self/status; {ASK_FOR_KEYS}");
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
        let cases = [
            ("plain", json!({}), ["Seccomp:\t2", "refused"]),
            ("default", profile("RuntimeDefault"), ["Seccomp:\t2", "refused"]),
            ("closed", json!({"allowPrivilegeEscalation": false}), ["Seccomp:\t2", "refused"]),
            ("user", json!({"runAsUser": 1000}), ["Seccomp:\t2", "refused"]),
            ("open", profile("Unconfined"), ["Seccomp:\t0", "answered"]),
            ("privileged", json!({"privileged": true}), ["Seccomp:\t0", "answered"]),
        ];
        for (name, security, expected) in cases {
            let lines = output(&node, name, script(security, &text)).await;
            assert_eq!(lines, expected, "{name}");
        }
    });
}

#[test]
fn an_administrators_profile_is_kept_and_a_missing_one_is_told() {
    on_node("localhost", |node: Node| async move {
        let _runtime = node.start();
        let profile = json!({"seccompProfile": {
            "type": "Localhost", "localhostProfile": "profiles/no-directories.json",
        }});
        let text = "grep ^Seccomp: /proc/self/status; mkdir /tmp/made 2>/dev/null && echo made; \
                    echo end";
        node.api.create_pod("late", script(profile.clone(), text));
        let place = node.options.seccomp_directory.join("profiles/no-directories.json");
        let message = format!(
            "failed to create container: cannot load seccomp profile \"{0}\": open {0}: no such \
             file or directory",
            place.display()
        );
        let missing = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerError" && waiting["message"] == message.as_str()
        };
        node.api.until_pod("late", "without its profile", missing).await;
        let told = ("Failed".to_owned(), format!("Error: {message}"));
        let told = node.api.until(|api| api.events("late").contains(&told).then_some(())).await;
        assert!(told.is_some(), "{:?}", node.api.events("late"));
        let refused = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        ]});
        fs::create_dir_all(place.parent().expect("a directory")).expect("made");
        fs::write(&place, refused.to_string()).expect("a profile");
        let lines = output(&node, "early", script(profile, text)).await;
        assert_eq!(lines, ["Seccomp:\t2", "end"]);
        // The one that waited needs nobody to make it anew.
        let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        node.api.until_pod("late", "Succeeded", done).await;
        fs::write(&place, r#"{"defaultAction": "ALLOW"}"#).expect("a profile");
        let wrong = json!({"seccompProfile": {
            "type": "Localhost", "localhostProfile": "profiles/no-directories.json",
        }});
        node.api.create_pod("wrong", script(wrong, text));
        let wrong = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerError"
                && waiting["message"].as_str().is_some_and(|text| {
                    text.ends_with("string ALLOW is not a valid action for seccomp")
                })
        };
        node.api.until_pod("wrong", "told of its profile", wrong).await;
    });
}

#[test]
fn programs_gain_rights_only_where_the_container_allows_it() {
    on_node("setuid", |node: Node| async move {
        let _runtime = node.start();
        let text = "grep ^NoNewPrivs /proc/self/status; cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id; \
                    setpriv --reuid 1000 --clear-groups /tmp/id -u";
        let open = output(&node, "open", script(json!({}), text)).await;
        assert_eq!(open, ["NoNewPrivs:\t0", "0"]);
        let closed = json!({"allowPrivilegeEscalation": false});
        let closed = output(&node, "closed", script(closed, text)).await;
        assert_eq!(closed, ["NoNewPrivs:\t1", "1000"]);
    });
}

#[test]
fn devices_that_a_container_makes_cannot_be_opened() {
    on_node("devices", |node: Node| async move {
        let _runtime = node.start();
        let text = "for place in /tmp/null /dev/null2 /shared/null; do \
                      mknod $place c 1 3 && (echo x > $place) 2>/dev/null && echo opened $place; \
                    done; echo x > /dev/null && echo end";
        let mut spec = script(json!({}), text);
        spec["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        assert_eq!(output(&node, "plain", spec).await, ["end"]);
        let lines = output(&node, "privileged", script(json!({"privileged": true}), text)).await;
        assert!(lines.contains(&"opened /dev/null2".to_owned()), "{lines:?}");
    });
}

#[test]
fn a_privileged_container_is_root_on_its_node() {
    on_node("privileged", |node: Node| async move {
        let _runtime = node.start();
        let own = fs::read_to_string("/proc/self/status").expect("a status");
        let own = own.lines().find(|line| line.starts_with("CapBnd:")).expect("capabilities");
        let known = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
        let entries = fs::read_dir("/dev").expect("devices").flatten();
        let device = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| !known.contains(&name.as_str()))
            .expect("this machine has more devices than every container");
        let text = format!(
            "grep ^CapBnd /proc/self/status; test -c /dev/{device} && echo device; \
             mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
             (echo 0 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo written; \
             grep -c ' /proc/' /proc/self/mounts; true"
        );
        let lines = output(&node, "free", script(json!({"privileged": true}), &text)).await;
        assert_eq!(lines, [own, "device", "mounted", "written", "0"]);
        let lines = output(&node, "bound", script(json!({}), &text)).await;
        assert_eq!(lines.len(), 2, "capabilities, and the hidden parts of /proc: {lines:?}");
        let whole = json!({"procMount": "Unmasked"});
        let text = "grep -c ' /proc/' /proc/self/mounts; true";
        assert_eq!(output(&node, "whole", script(whole, text)).await, ["0"]);
    });
}

#[test]
fn kernel_parameters_are_the_pods_own() {
    on_node("sysctls", |node: Node| async move {
        let _runtime = node.start();
        let text = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range; \
                    tr '\\t' ' ' < ip_local_port_range";
        let own = json!([{"name": "net.ipv4.ip_local_port_range", "value": "40000 40010"}]);
        let mut spec = script(json!({}), text);
        spec["securityContext"] = json!({"sysctls": own});
        let lines = output(&node, "own", spec.clone()).await;
        assert_eq!(lines, ["0", "0\t2147483647", "40000 40010"]);
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        assert!(!range.expect("a range").contains("40010"), "the node's is untouched");
        spec["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
        node.api.create_pod("refused", spec);
        let refused = |pod: &Value| {
            pod["status"]["reason"] == "SysctlForbidden"
                && pod["status"]["message"]
                    == "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        };
        node.api.until_pod("refused", "refused", refused).await;
        node.api.delete_pod("refused", 0);
        node.api.until_gone("refused").await;
    });
}

#[test]
fn users_groups_and_read_only_roots_are_as_asked_for() {
    on_node("users", |node: Node| async move {
        let _runtime = node.start();
        let text = "id -u; id -g; id -G; touch /data/file; stat -c '%a %u %g' /data /data/file; \
                    touch /tmp/file 2>/dev/null || echo read-only";
        let mut spec = script(json!({"readOnlyRootFilesystem": true}), text);
        spec["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000,
            "supplementalGroups": [4000], "runAsNonRoot": true});
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let lines = output(&node, "users", spec).await;
        let expected =
            ["1000", "3000", "3000 2000 4000", "2777 0 2000", "644 1000 2000", "read-only"];
        let sorted = |line: &str| {
            let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&lines[2]), sorted(expected[2]));
        for index in [0, 1, 3, 4, 5] {
            assert_eq!(lines[index], expected[index]);
        }
        let root = json!({"runAsNonRoot": true});
        node.api.create_pod("root", script(root, "true"));
        let refused = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"].as_str().is_some_and(|message| {
                    message
                        .starts_with("container has runAsNonRoot and image will run as root (pod")
                })
        };
        node.api.until_pod("root", "refused", refused).await;
    });
}
