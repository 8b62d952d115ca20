//! Runs CNI plugins exactly as any runtime does: CNI specification 1.1.0, section 2 (execution) and
//! section 3 (lists). What was asked for is on disk before it is asked for, so that a DEL follows
//! every ADD, however this process ends.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest run of one plugin, seconds.
const PLUGIN_TIMEOUT_S: u64 = 30;
/// Largest network configuration, bytes.
const MAX_CONFIGURATION_BYTES: u64 = 1 << 20;
/// The interface in the pod.
const INTERFACE: &str = "eth0";

/// Where configurations and plugins are.
#[derive(Clone, Debug)]
pub struct Cni {
    /// Directory of network configurations.
    pub configuration_directory: PathBuf,
    /// Directory of plugins.
    pub plugin_directory: PathBuf,
}

/// A pod's attachment to the network, as it is kept on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// The pod's network namespace.
    pub namespace: PathBuf,
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`.
    pub pod: [String; 3],
    /// The configuration list in use at ADD: DEL must have the same.
    pub configuration: Value,
    /// The result of ADD; null until it has come.
    pub result: Value,
}

impl Cni {
    /// The configuration list that comes first in the directory by name; `None` while there is
    /// none.
    ///
    /// # Errors
    /// A file that cannot be read as one, named.
    pub fn configuration(&self) -> Result<Option<Value>, String> {
        let directory = &self.configuration_directory;
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {}: {error}", directory.display())),
        };
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let extension = path.extension().and_then(|extension| extension.to_str());
                matches!(extension, Some("conflist" | "conf" | "json"))
            })
            .collect();
        paths.sort();
        let Some(path) = paths.first() else { return Ok(None) };
        let failed = |problem: String| format!("{}: {problem}", path.display());
        let size = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if size > MAX_CONFIGURATION_BYTES {
            return Err(failed(format!("larger than {MAX_CONFIGURATION_BYTES} bytes")));
        }
        let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
        let mut configuration: Value =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        if configuration.get("plugins").is_none() {
            configuration = json!({
                "cniVersion": configuration["cniVersion"],
                "name": configuration["name"],
                "plugins": [configuration],
            });
        }
        match configuration["plugins"].as_array() {
            Some(plugins) if !plugins.is_empty() => Ok(Some(configuration)),
            _ => Err(failed("names no plugin".into())),
        }
    }

    /// Adds the network: plugins in order, each with the result of the one before. Returns the
    /// pod's addresses.
    ///
    /// # Errors
    /// The plugin's own words. The attachment stays on disk for [`Cni::delete`].
    pub async fn add(
        &self,
        attachment: &mut Attachment,
        file: &Path,
    ) -> Result<Vec<IpAddr>, String> {
        keep(attachment, file)?;
        let mut result = Value::Null;
        for plugin in plugins(&attachment.configuration) {
            result = self.run("ADD", attachment, &plugin, &result).await?;
        }
        attachment.result = result;
        keep(attachment, file)?;
        let addresses = addresses(&attachment.result);
        if addresses.is_empty() {
            Err("the network plugin gave no address".into())
        } else {
            Ok(addresses)
        }
    }

    /// Removes the network: plugins in reverse order, each with the final result of ADD.
    ///
    /// # Errors
    /// The plugin's own words; to be tried again.
    pub async fn delete(&self, attachment: &Attachment) -> Result<(), String> {
        for plugin in plugins(&attachment.configuration).into_iter().rev() {
            self.run("DEL", attachment, &plugin, &attachment.result).await?;
        }
        Ok(())
    }

    async fn run(
        &self,
        command: &str,
        attachment: &Attachment,
        plugin: &Value,
        previous: &Value,
    ) -> Result<Value, String> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let failed = |problem: String| {
            format!("plugin type={kind:?} failed ({}): {problem}", command.to_lowercase())
        };
        if kind.is_empty() || kind.contains('/') {
            return Err(failed("its configuration names no program".into()));
        }
        let program = self.plugin_directory.join(kind);
        let input = input(&attachment.configuration, plugin, previous);
        let [namespace, name, uid] = &attachment.pod;
        let id = &attachment.id;
        let mut child = Command::new(&program)
            .env_clear()
            .env("PATH", crate::environment::DEFAULT_PATH)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", &attachment.namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", &self.plugin_directory)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("cannot run {}: {error}", program.display())))?;
        let stdin = child.stdin.take();
        let exchange = async {
            if let Some(mut stdin) = stdin {
                // A plugin that fails early closes its input: its answer says why.
                let _ = stdin.write_all(input.to_string().as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(Duration::from_secs(PLUGIN_TIMEOUT_S), exchange)
            .await
            .map_err(|_| failed(format!("no answer within {PLUGIN_TIMEOUT_S} s")))?
            .map_err(|error| failed(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            return Ok(answer);
        }
        let message = answer["msg"].as_str().filter(|message| !message.is_empty());
        Err(failed(match (message, answer["details"].as_str()) {
            (Some(message), Some(details)) if !details.is_empty() => {
                format!("{message}; {details}")
            }
            (Some(message), _) => message.to_owned(),
            (None, _) => {
                let text = String::from_utf8_lossy(&output.stderr);
                format!("{}: {}", output.status, text.trim())
            }
        }))
    }
}

fn plugins(configuration: &Value) -> Vec<Value> {
    configuration["plugins"].as_array().cloned().unwrap_or_default()
}

/// The plugin's own object, with the list's name and version and the result so far. Capabilities
/// are the runtime's business and are taken out.
fn input(configuration: &Value, plugin: &Value, previous: &Value) -> Value {
    let mut input: Map<String, Value> = plugin.as_object().cloned().unwrap_or_default();
    input.remove("capabilities");
    for key in ["name", "cniVersion"] {
        if let Some(value) = configuration.get(key).filter(|value| !value.is_null()) {
            input.insert(key.into(), value.clone());
        }
    }
    if !previous.is_null() {
        input.insert("prevResult".into(), previous.clone());
    }
    input.into()
}

/// Addresses of the pod's own interface, or those that name none.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let is_inside = |index: Option<u64>| match (index, interfaces) {
        (Some(index), Some(interfaces)) => {
            let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
            interface.is_some_and(|interface| {
                !interface["sandbox"].as_str().unwrap_or_default().is_empty()
            })
        }
        _ => true,
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter(|ip| is_inside(ip["interface"].as_u64()))
        .filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
        .map(|network| network.addr())
        .collect()
}

fn keep(attachment: &Attachment, file: &Path) -> Result<(), String> {
    crate::disk::write_json(file, attachment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_inside_the_pod() {
        let result = json!({
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.244.1.1/24", "interface": 0},
                {"address": "10.244.1.5/24", "interface": 1},
                {"address": "fd00::5/64"},
                {"address": "nonsense"}
            ]
        });
        let expected: Vec<IpAddr> =
            ["10.244.1.5", "fd00::5"].map(|text| text.parse().expect("an address")).into();
        assert_eq!(addresses(&result), expected);
    }

    #[test]
    fn a_plugin_gets_its_own_object_and_the_result_so_far() {
        let list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "a", "x": 1, "capabilities": {"portMappings": true}}]});
        let previous = json!({"ips": []});
        let given = input(&list, &list["plugins"][0], &previous);
        let expected = json!({"type": "a", "x": 1, "name": "n", "cniVersion": "1.0.0",
            "prevResult": {"ips": []}});
        assert_eq!(given, expected);
    }
}
