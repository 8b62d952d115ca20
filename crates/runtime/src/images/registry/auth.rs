//! Who asks: what registries want to know, and what `imagePullSecrets` say. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::environment::Data;
use crate::images::reference::Reference;

/// A name and a password for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token, which this server gives.
    Bearer {
        /// The server's address.
        realm: String,
        /// What to tell it.
        query: Vec<(String, String)>,
    },
}

impl Credentials {
    /// What a Secret of either type has for an image's registry. Entries that cannot be read are
    /// passed over, as the kubelet does.
    pub fn find(secret: &Data, reference: &Reference) -> Vec<Self> {
        #[derive(Deserialize)]
        struct Config {
            auths: BTreeMap<String, Entry>,
        }
        let Some(secret) = secret else { return Vec::new() };
        let entries: Option<BTreeMap<String, Entry>> = match secret.get(".dockerconfigjson") {
            Some(text) => serde_json::from_slice::<Config>(text).ok().map(|config| config.auths),
            None => secret.get(".dockercfg").and_then(|text| serde_json::from_slice(text).ok()),
        };
        let entries = entries.into_iter().flatten();
        entries
            .filter(|(place, _)| is_meant(place, reference))
            .filter_map(|(_, entry)| entry.credentials())
            .collect()
    }

    /// As the value of `Authorization`.
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

/// One entry of a Secret.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if self.auth.is_empty() {
            let (user, password) = (self.username, self.password);
            return (!user.is_empty()).then_some(Credentials { user, password });
        }
        let text = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Credentials { user: user.to_owned(), password: password.to_owned() })
    }
}

/// Whether an entry is for a reference: by host, and by the beginning of the path where it has one.
fn is_meant(place: &str, reference: &Reference) -> bool {
    let place = place.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    // `https://index.docker.io/v1/` is how Docker writes its own registry.
    let path = path.trim_matches('/');
    let is_whole = path.is_empty() || matches!(path, "v1" | "v2");
    let below = || {
        let rest = reference.repository.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    host == reference.registry && (is_whole || below())
}

impl Challenge {
    /// Reads the header's value: a scheme and `name="value"` pairs. `None` for schemes that nobody
    /// has here.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut query, mut rest) = (None, Vec::new(), rest.trim());
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match name.trim().trim_start_matches(',').trim() {
                "realm" => realm = Some(value.to_owned()),
                name @ ("service" | "scope") => query.push((name.to_owned(), value.to_owned())),
                _ => {}
            }
            rest = after.trim_start();
        }
        Some(Self::Bearer { realm: realm?, query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = "Bearer realm=\"https://a.test/token\",service=\"r.test\", \
                    scope=\"repository:a/b:pull,push\",error=x";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = vec![pair("service", "r.test"), pair("scope", "repository:a/b:pull,push")];
        let realm = "https://a.test/token".to_owned();
        assert_eq!(Challenge::parse(text), Some(Challenge::Bearer { realm, query }));
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        for text in ["", "Negotiate", "Bearer", "Bearer realm=\"x", "Bearer service=\"x\""] {
            assert_eq!(Challenge::parse(text), None, "{text}");
        }
    }

    #[test]
    fn secrets_are_used_for_their_own_registry_alone() {
        let auth = STANDARD.encode("me:pass:word");
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": auth},
            "r.test:5000": {"username": "you", "password": "p"},
            "r.test:5000/team": {"username": "team", "password": "p"},
            "broken.test": {"auth": "%"},
        }});
        let secret =
            Some([(".dockerconfigjson".to_owned(), config.to_string().into_bytes())].into());
        let users = |image: &str| -> Vec<String> {
            let reference = Reference::parse(image).expect("a name");
            let found = Credentials::find(&secret, &reference);
            found.into_iter().map(|one| format!("{}/{}", one.user, one.password)).collect()
        };
        assert_eq!(users("nginx"), ["me/pass:word"]);
        assert_eq!(users("r.test:5000/other"), ["you/p"]);
        assert_eq!(users("r.test:5000/team/x"), ["you/p", "team/p"]);
        assert_eq!(users("r.test:5000/teams"), ["you/p"]);
        for image in ["r.test/team/x", "evil.test/index.docker.io/x", "broken.test/x"] {
            assert_eq!(users(image), Vec::<String>::new(), "{image}");
        }
    }
}
