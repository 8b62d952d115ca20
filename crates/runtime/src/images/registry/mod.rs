//! Images from registries, by the OCI's distribution specification: by tag and digest, with tokens,
//! over TLS; plain HTTP reaches this machine's own loopback alone. Whatever comes is checked against
//! the digest that it was asked by.

mod auth;
mod http;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::{Duration, timeout};

use super::oci::{Descriptor, ImageDocument, MANIFEST_TYPES, MAX_DOCUMENT_BYTES, Manifest};
use super::reference::{Digest, Reference, Version};
use super::store::{Image, Store, digest};
use auth::Challenge;
pub use auth::Credentials;
use http::{Answer, Client, Url};

/// Longest pull, seconds.
const PULL_LIMIT_S: u64 = 3_600;
/// Largest layer that is downloaded, bytes.
const MAX_LAYER_BYTES: u64 = 32 << 30;
/// Largest answer of an authorization server, bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// As much of a refusal as is told, bytes.
const MAX_REFUSAL_BYTES: u64 = 2 << 10;
/// Where Docker's own registry answers.
const DOCKER_ADDRESS: &str = "registry-1.docker.io";

/// How registries are reached, from a file of the administrator's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// By registry: addresses that are asked before it, such as `https://mirror.test:5000`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// PEM files of authorities that are trusted besides those of the machine.
    pub authorities: Vec<PathBuf>,
}

impl Settings {
    /// Reads the file; one that is not there says nothing.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| format!("{} is wrong: {error}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        }
    }
}

/// Pulls an image, with each of the credentials in turn, and without any where there are none.
///
/// # Errors
/// In the words of runtimes, what the registry refused or what was wrong with its answers.
pub async fn pull(
    store: &Store,
    reference: &Reference,
    settings: &Settings,
    credentials: &[Credentials],
) -> Result<Image, String> {
    let client = Client::new(&settings.authorities)?;
    let mut last = String::new();
    for place in places(reference, settings)? {
        let given: Vec<Option<&Credentials>> = match (place.is_mirror, credentials) {
            // Secrets name the registry, not who stands in for it.
            (true, _) | (false, []) => vec![None],
            (false, credentials) => credentials.iter().map(Some).collect(),
        };
        for credentials in given {
            let session =
                Session { client: &client, place: &place, reference, credentials, token: None };
            let limit = Duration::from_secs(PULL_LIMIT_S);
            let pulled = timeout(limit, session.pull(store)).await;
            last = match pulled {
                Ok(Ok(image)) => return Ok(image),
                Ok(Err(message)) => message,
                Err(_) => format!("it took more than {PULL_LIMIT_S} s"),
            };
            tracing::info!("image {reference} from {}: {last}", place.base.origin());
        }
    }
    Err(format!("failed to pull and unpack image \"{reference}\": {last}"))
}

/// Where to ask.
struct Place {
    base: Url,
    is_mirror: bool,
}

fn places(reference: &Reference, settings: &Settings) -> Result<Vec<Place>, String> {
    let mut places = Vec::new();
    for mirror in settings.mirrors.get(&reference.registry).into_iter().flatten() {
        places.push(Place { base: Url::parse(mirror)?, is_mirror: true });
    }
    let host = match reference.registry.as_str() {
        "docker.io" => DOCKER_ADDRESS,
        host => host,
    };
    let secure = Url::parse(&format!("https://{host}"))?;
    let base = if secure.is_loopback() { Url::parse(&format!("http://{host}"))? } else { secure };
    places.push(Place { base, is_mirror: false });
    Ok(places)
}

/// One try at one place.
struct Session<'a> {
    client: &'a Client,
    place: &'a Place,
    reference: &'a Reference,
    credentials: Option<&'a Credentials>,
    /// The value of `Authorization`, once the registry has asked for one.
    token: Option<String>,
}

impl Session<'_> {
    async fn pull(mut self, store: &Store) -> Result<Image, String> {
        let version = match &self.reference.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let text = self.document(&format!("manifests/{version}")).await?;
        let whole = digest(&text);
        if let Version::Digest(wanted) = &self.reference.version {
            check(wanted, &whole)?;
        }
        let mut manifest = parse(&text)?;
        if manifest.config.is_none() {
            let chosen = manifest.for_this_machine()?.digest.clone();
            let text = self.document(&format!("manifests/{chosen}")).await?;
            check(&chosen, &digest(&text))?;
            manifest = parse(&text)?;
        }
        let config = manifest.config.as_ref().ok_or("the manifest has no configuration")?;
        let text = self.document(&format!("blobs/{}", config.digest)).await?;
        check(&config.digest, &digest(&text))?;
        let document = ImageDocument::parse(&text)?;
        let diff_ids = &document.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (wanted, found) = (diff_ids.len(), manifest.layers.len());
            return Err(format!(
                "the image's configuration has {wanted} layers, its manifest {found}"
            ));
        }
        let mut layers: Vec<Digest> = Vec::new();
        for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let chain = match store.has_layer(diff_id, &layers) {
                Some(chain) => chain,
                None => self.layer(store, descriptor, diff_id, &layers).await?,
            };
            layers.insert(0, chain);
        }
        let names = match &self.reference.version {
            Version::Tag(_) => vec![self.reference.clone()],
            Version::Digest(_) => Vec::new(),
        };
        let origin = format!("{}@{whole}", self.reference.name());
        store.add_image(&text, layers, &names, Some(origin))
    }

    async fn layer(
        &mut self,
        store: &Store,
        descriptor: &Descriptor,
        diff_id: &Digest,
        below: &[Digest],
    ) -> Result<Digest, String> {
        let wanted = &descriptor.digest;
        if descriptor.size > MAX_LAYER_BYTES {
            return Err(format!("the layer {wanted} has {} bytes", descriptor.size));
        }
        let scratch = store.scratch()?;
        let path = scratch.path().join("blob");
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        let mut answer = self.get(&format!("blobs/{wanted}")).await?;
        let mut length = 0_u64;
        while let Some(part) = answer.next().await? {
            length += part.len() as u64;
            if length > descriptor.size {
                return Err(format!(
                    "the layer {wanted} is longer than its {} bytes",
                    descriptor.size
                ));
            }
            file.write_all(&part).map_err(failed)?;
        }
        let file = std::fs::File::open(&path).map_err(failed)?;
        let (store, diff_id, below) = (store.clone(), diff_id.clone(), below.to_vec());
        let unpacked =
            tokio::task::spawn_blocking(move || store.add_layer(file, &diff_id, &below)).await;
        let unpacked = unpacked.map_err(|error| format!("cannot unpack {wanted}: {error}"))??;
        check(wanted, &unpacked.digest)?;
        Ok(unpacked.chain)
    }

    async fn document(&mut self, path: &str) -> Result<Vec<u8>, String> {
        self.get(path).await?.whole(MAX_DOCUMENT_BYTES).await
    }

    /// Asks; where the registry wants to know who asks, once more with an answer to that.
    async fn get(&mut self, path: &str) -> Result<Answer, String> {
        let mut url = self.place.base.below(&format!("/v2/{}/{path}", self.reference.repository));
        if self.place.is_mirror {
            url = url.with_query(&[("ns", &self.reference.registry)]);
        }
        let accept = MANIFEST_TYPES.join(", ");
        let mut answer = self.client.get(&url, self.token.as_deref(), &accept).await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = answer.challenge().and_then(Challenge::parse)
        {
            self.token = Some(self.authorize(&challenge).await?);
            answer = self.client.get(&url, self.token.as_deref(), &accept).await?;
        }
        let reference = self.reference;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::NOT_FOUND => {
                Err(format!("failed to resolve reference \"{reference}\": {reference}: not found"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "failed to resolve reference \"{reference}\": pull access denied, repository does \
                 not exist or may require authorization: server message: {}",
                answer.refusal(MAX_REFUSAL_BYTES).await
            )),
            status => Err(format!(
                "unexpected status from GET request to {url}: {status}: {}",
                answer.refusal(MAX_REFUSAL_BYTES).await
            )),
        }
    }

    async fn authorize(&self, challenge: &Challenge) -> Result<String, String> {
        let basic = self.credentials.map(Credentials::basic);
        let (realm, query) = match challenge {
            Challenge::Basic => {
                return basic.ok_or_else(|| {
                    "the registry asks for credentials: give them by \
                                             imagePullSecrets"
                        .to_owned()
                });
            }
            Challenge::Bearer { realm, query } => (realm, query),
        };
        let query: Vec<(&str, &str)> =
            query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let url = Url::parse(realm)?.with_query(&query);
        if !url.is_secure() && !self.place.base.is_loopback() {
            return Err(format!("the registry asks for credentials to be sent in clear to {url}"));
        }
        let answer = self.client.get(&url, basic.as_deref(), "application/json").await?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let refusal = answer.refusal(MAX_REFUSAL_BYTES).await;
            return Err(format!("failed to authorize: {url}: {status}: {refusal}"));
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let text = answer.whole(MAX_TOKEN_BYTES).await?;
        let given: Token = serde_json::from_slice(&text)
            .map_err(|error| format!("failed to authorize: {url} gives no token: {error}"))?;
        let token = if given.token.is_empty() { given.access_token } else { given.token };
        Ok(format!("Bearer {token}"))
    }
}

fn parse(text: &[u8]) -> Result<Manifest, String> {
    serde_json::from_slice(text).map_err(|error| format!("the manifest is wrong: {error}"))
}

fn check(wanted: &Digest, found: &Digest) -> Result<(), String> {
    if wanted == found { Ok(()) } else { Err(format!("the registry gave {found} for {wanted}")) }
}

#[cfg(test)]
mod tests;
