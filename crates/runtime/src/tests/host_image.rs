//! What a pod on the machine's own programs can and cannot see of the machine.

use serde_json::{Value, json};

use super::node::{Node, on_node, shell};

/// Each line of output names something that should not be there.
const SEARCH: &str = r#"
for path in /root /home /run /srv /opt /mnt /media /boot /var/lib/flatnet /var/lib/docker \
            /etc/shadow /etc/gshadow /etc/ssh /etc/kubernetes /etc/ssl/private /etc/machine-id; do
  for found in $path $path/* $path/.[a-z]*; do
    [ -f "$found" ] && [ "$found" != /run/lock ] && echo "readable: $found"
  done
done
find / -xdev -type f 2>/dev/null | grep -v '^/proc' | sed 's/^/outside usr and etc: /'
find /etc -xdev -type f ! -perm -o=r 2>/dev/null | sed 's/^/hidden on the host: /'
find /etc -xdev -type d ! -perm -o=rx 2>/dev/null | sed 's/^/hidden on the host: /'
ls /work /workspace /data 2>/dev/null
for device in /dev/vda /dev/sda /dev/mem /dev/kmsg; do [ -e $device ] && echo "device: $device"; done
cat /proc/kcore 2>/dev/null | head -c 1 | grep -q . && echo "kernel memory"
cat /proc/1/environ | tr '\0' '\n' | grep -i -E 'cargo|ssh|sudo'
echo end
"#;

#[test]
fn secrets_homes_and_state_of_the_machine_are_not_there() {
    on_node("mask", |node: Node| async move {
        assert!(std::path::Path::new("/etc/shadow").exists(), "the test needs something to hide");
        let _runtime = node.start();
        let spec = json!({"restartPolicy": "Never", "containers": [shell(SEARCH)]});
        let uid = node.api.create_pod("mask", spec);
        let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        node.api.until_pod("mask", "done", done).await;
        assert_eq!(node.log(&uid, "main", 0), ["end"]);
    });
}

#[test]
fn programs_of_the_machine_run_and_what_they_write_stays_in_the_container() {
    on_node("write", |node: Node| async move {
        let _runtime = node.start();
        let script = "echo changed > /etc/passwd && cat /etc/passwd; \
                      echo mine > /usr/flatnet-test && cat /usr/flatnet-test; \
                      echo mine > /etc/shadow && cat /etc/shadow; mkdir /etc/ssh && ls /etc/ssh; \
                      rm -r /etc/ssh /etc/shadow; ls /etc/shadow /etc/ssh 2>/dev/null; \
                      python3 -c 'print(6 * 7)' 2>/dev/null || echo 42";
        let spec = json!({"restartPolicy": "Never", "containers": [shell(script)]});
        let uid = node.api.create_pod("write", spec);
        let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        node.api.until_pod("write", "done", done).await;
        assert_eq!(node.log(&uid, "main", 0), ["changed", "mine", "mine", "42"]);
        assert!(!std::path::Path::new("/usr/flatnet-test").exists());
        let users = std::fs::read_to_string("/etc/passwd").expect("the machine's users");
        assert!(users.contains("root:"));
    });
}
