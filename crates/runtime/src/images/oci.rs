//! The documents of images: the OCI's image specification, and Docker's of the same shape. Pure.

use std::collections::BTreeMap;

use model::meta::null_as_default;
use serde::{Deserialize, Serialize};

use super::reference::Digest;

/// Largest manifest or configuration that is read, bytes (the registries' own limit).
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most layers of an image (Docker's own limit; overlayfs has room for 500).
pub const MAX_LAYERS: usize = 127;
/// Manifests, alone and of several platforms, that are read.
pub const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Points to a document or layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Its length, bytes.
    #[serde(default)]
    pub size: u64,
    /// For which machines.
    #[serde(default, deserialize_with = "null_as_default")]
    pub platform: Platform,
    /// Among them names.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
}

/// An image's parts, or the manifests of several platforms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    /// The configuration of one image.
    pub config: Option<Descriptor>,
    /// Its layers, the lowest first.
    #[serde(deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// Or manifests to choose from.
    #[serde(deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDocument {
    /// For which machines.
    pub architecture: String,
    /// For which system.
    pub os: String,
    /// What its containers are started with.
    #[serde(deserialize_with = "null_as_default")]
    pub config: ImageConfig,
    /// Its layers.
    pub rootfs: Layers,
}

/// `rootfs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layers {
    /// The layers' contents before compression, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// `config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// The first words of the command.
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Those that a pod's arguments replace.
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// User and group by name or number: `user`, `user:group`.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// Ports that it listens on, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// What ends it: `SIGQUIT`, `QUIT` or `3`.
    #[serde(deserialize_with = "null_as_default")]
    pub stop_signal: String,
}

impl Manifest {
    /// Of several manifests the one for this machine.
    ///
    /// # Errors
    /// The platforms that there are.
    pub fn for_this_machine(&self) -> Result<&Descriptor, String> {
        let own = architecture();
        let fits =
            |one: &&Descriptor| one.platform.architecture == own && one.platform.os == "linux";
        // One that names no platform is meant for all.
        let unnamed = |one: &&Descriptor| one.platform.architecture.is_empty();
        self.manifests.iter().find(fits).or_else(|| self.manifests.iter().find(unnamed)).ok_or_else(
            || {
                let platform =
                    |one: &Descriptor| format!("{}/{}", one.platform.os, one.platform.architecture);
                let all: Vec<String> = self.manifests.iter().map(platform).collect();
                format!("no match for platform linux/{own} in manifest: it has {}", all.join(", "))
            },
        )
    }
}

impl ImageDocument {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Why no container can be made of it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Self = serde_json::from_slice(text)
            .map_err(|error| format!("the image's configuration cannot be read: {error}"))?;
        let own = architecture();
        if document.os != "linux" || document.architecture != own {
            return Err(format!(
                "the image is for {}/{}, this machine is linux/{own}",
                document.os, document.architecture
            ));
        }
        let count = document.rootfs.diff_ids.len();
        if count > MAX_LAYERS {
            return Err(format!("the image has {count} layers, at most {MAX_LAYERS} are read"));
        }
        Ok(document)
    }
}

/// This machine's kind in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_of_this_machine_is_chosen() {
        let text = |architecture: &str, digit: char| {
            let digest = format!("sha256:{}", String::from(digit).repeat(64));
            serde_json::json!({"digest": digest, "size": 1,
                "platform": {"os": "linux", "architecture": architecture}})
        };
        let all = serde_json::json!({"manifests": [text("s390x", 'a'), text(architecture(), 'b')]});
        let manifest: Manifest = serde_json::from_value(all).expect("a manifest");
        let chosen = manifest.for_this_machine().expect("one");
        assert_eq!(chosen.digest.digits(), "b".repeat(64));
        let none = serde_json::json!({"manifests": [text("s390x", 'a')], "config": null});
        let manifest: Manifest = serde_json::from_value(none).expect("a manifest");
        let error = manifest.for_this_machine().expect_err("none");
        assert!(error.contains("it has linux/s390x"), "{error}");
    }

    #[test]
    fn a_digest_that_would_name_another_file_is_refused() {
        for digest in ["sha256:../../etc/passwd", "sha512:00", "", "sha256:ABC"] {
            let text = serde_json::json!({"config": {"digest": digest}});
            assert!(serde_json::from_value::<Manifest>(text).is_err(), "{digest}");
        }
    }
}
