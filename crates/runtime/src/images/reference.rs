//! Names of images as people write them (the grammar of distribution/reference). Pure.

use std::fmt;

/// Where images without a registry in their name come from.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Below which its own images are.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";
/// The registry that stands for this machine: its images are loaded or built in, never pulled.
const THIS_MACHINE: &str = "localhost";
/// Longest name, bytes (distribution/reference).
const MAX_NAME_BYTES: usize = 255;
/// Longest tag, bytes (distribution/reference).
const MAX_TAG_BYTES: usize = 128;

/// A whole name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, with a port where it has one.
    pub registry: String,
    /// Path at the registry.
    pub repository: String,
    /// Which of the repository.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one that has this tag now.
    Tag(String),
    /// The one with this content.
    Digest(Digest),
}

/// A SHA-256 digest, as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Reference {
    /// Reads a name; what is left out is filled in as by every runtime.
    ///
    /// # Errors
    /// The words of runtimes for a name that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || "invalid reference format".to_owned();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).ok_or_else(invalid)?)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].rfind(':') {
            Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid());
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let (registry, repository) = match registry {
            DEFAULT_REGISTRY | "index.docker.io" if !path.contains('/') => {
                (DEFAULT_REGISTRY, format!("{DEFAULT_NAMESPACE}/{path}"))
            }
            "index.docker.io" => (DEFAULT_REGISTRY, path),
            registry => (registry, path),
        };
        let is_path = !path_is_wrong(&repository) && !host_is_wrong(registry);
        if !is_path || registry.len() + repository.len() >= MAX_NAME_BYTES {
            return Err(invalid());
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, version })
    }

    /// Whether the image is this machine's own, which no registry has.
    pub fn is_of_this_machine(&self) -> bool {
        self.registry == THIS_MACHINE
    }

    /// Registry and path, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match &self.version {
            Version::Tag(tag) => write!(formatter, "{name}:{tag}"),
            Version::Digest(digest) => write!(formatter, "{name}@{digest}"),
        }
    }
}

impl Digest {
    /// Reads `sha256:` and 64 hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == 64 && digits.bytes().all(hexadecimal)).then(|| Self(text.to_owned()))
    }

    /// The digest of a hash's 32 bytes.
    pub fn of(hash: &[u8]) -> Self {
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{digits}"))
    }

    /// The digits alone: a name of a file.
    pub fn digits(&self) -> &str {
        self.0.trim_start_matches("sha256:")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!("{text:?} is no digest: only sha256: and 64 hexadecimal digits are read")
        })
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

fn is_host(text: &str) -> bool {
    text.contains(['.', ':'])
        || text == THIS_MACHINE
        || text.bytes().any(|b| b.is_ascii_uppercase())
}

fn host_is_wrong(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return true;
            }
            ("v6", port)
        }
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_is_right =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    !name.split('.').all(label) || !port_is_right
}

/// Letters and digits, with single `.`, one or two `_` or any number of `-` between them.
fn path_is_wrong(path: &str) -> bool {
    let component = |component: &str| {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = component.as_bytes();
        let edges = bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain);
        let separators = bytes.split(|byte| plain(byte)).filter(|run| !run.is_empty());
        let mut runs = separators
            .map(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'));
        edges && runs.all(|is_right| is_right)
    };
    !path.split('/').all(component)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let any = |byte: u8| word(byte) || matches!(byte, b'.' | b'-');
    tag.len() <= MAX_TAG_BYTES && tag.bytes().next().is_some_and(word) && tag.bytes().all(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_filled_in_as_by_every_runtime() {
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("quay.io/a/b__c/d-e:v1", "quay.io/a/b__c/d-e:v1"),
            ("localhost/toolbox", "localhost/toolbox:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ];
        for (text, whole) in cases {
            assert_eq!(Reference::parse(text).map(|one| one.to_string()).as_deref(), Ok(whole));
        }
        let both = Reference::parse(&format!("nginx:1@{HASH}")).expect("a name");
        assert_eq!(both.to_string(), format!("docker.io/library/nginx@{HASH}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(300);
        let cases = [
            "",
            "/",
            "a/",
            "/a",
            "Upper",
            "a..b",
            "a/../b",
            "../a",
            "a:",
            "a:-x",
            "a@sha256:00",
            "a b",
            "a___b",
            "-a",
            "host.x:port/a",
            "https://x.test/a",
            "[::g]:1/a",
            long.as_str(),
        ];
        for text in cases {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
