//! The configuration file of a real cluster: YAML with the keys of [`ClusterConfig`]; what is left
//! out has its default.

use std::path::Path;

use anyhow::{Context, Result, bail};
use model::ClusterConfig;
use serde_json::{Map, Value};

/// Bytes of a configuration that are read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Reads the file.
///
/// # Errors
/// Naming the file and the key to mend.
pub fn read(file: &Path) -> Result<ClusterConfig> {
    let reading = || format!("reading {}", file.display());
    let length = std::fs::metadata(file).with_context(reading)?.len();
    if length > CONFIG_BYTES_MAX {
        bail!("{}: {length} bytes are too many for a configuration", file.display());
    }
    parse(&std::fs::read_to_string(file).with_context(reading)?).with_context(reading)
}

pub(super) fn parse(text: &str) -> Result<ClusterConfig> {
    let given: Option<Map<String, Value>> =
        serde_yaml_ng::from_str(text).context("this is not a YAML mapping")?;
    let Value::Object(mut whole) = serde_json::to_value(ClusterConfig::default())? else {
        bail!("the default configuration is no mapping");
    };
    for (key, value) in given.unwrap_or_default() {
        if !whole.contains_key(&key) {
            let keys: Vec<&str> = whole.keys().map(String::as_str).collect();
            bail!("there is no key {key:?}: the keys are {}", keys.join(", "));
        }
        whole.insert(key, value);
    }
    let config: ClusterConfig = serde_json::from_value(Value::Object(whole))?;
    if let Err(errors) = config.check_ranges(0) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        bail!("{}", errors.join("; "));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = parse("podCidrs: [10.1.0.0/16]\noverlay: host-gw\n").expect("read");
        assert_eq!(config.pod_cidrs[0].to_string(), "10.1.0.0/16");
        assert_eq!(config.overlay, model::Overlay::HostGw);
        assert_eq!(config.service_cidrs, ClusterConfig::default().service_cidrs);
        assert_eq!(parse("").expect("empty"), ClusterConfig::default());
        let config = parse("masqueradePorts: 32768-60999").expect("read");
        assert_eq!(config.masquerade_ports.expect("ports").to_string(), "32768-60999");
    }

    #[test]
    fn faults_name_what_to_mend() {
        let rows = [
            ("podCidr: 10.1.0.0/16", "podCidrs"),
            ("overlay: carrier-pigeon", "vxlan"),
            ("podCidrs: [10.96.0.0/16]", "--service-cidr"),
            ("- a list", "mapping"),
            ("masqueradePorts: 60999-32768", "the lower port first"),
            ("masqueradePorts: 32768:60999", "such as 32768-60999"),
            ("masqueradePorts: 0-2000", "masqueradePorts: 0-2000 has ports below 1024"),
            ("masqueradePorts: 20000-40000", "overlaps the node ports 30000-32767"),
            ("{masqueradePorts: 41000-42000, nodePortRange: [42000, 43000]}", "42000-43000"),
        ];
        for (text, expected) in rows {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
