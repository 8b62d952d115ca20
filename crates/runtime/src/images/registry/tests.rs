//! Against a small registry of the test's own on loopback.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::images::tests::{Directory, What, configuration, gzip, tar, zstd};
use crate::tests::certificates::Authority;

/// What the registry has, by path, and what it was asked, with who asked.
#[derive(Default)]
struct Content {
    documents: BTreeMap<String, Vec<u8>>,
    /// Lets nobody in without this token, which it gives for `me:secret`.
    token: Option<&'static str>,
    asked: Vec<(String, Option<String>)>,
    /// Where a path leads instead.
    elsewhere: BTreeMap<String, String>,
}

#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Content>>);

impl Registry {
    /// Serves on a port of loopback until the test's runtime ends.
    async fn start(&self) -> String {
        self.serve(None).await
    }

    /// The same, by TLS with this certificate and key.
    async fn serve(&self, tls: Option<TlsAcceptor>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address").to_string();
        let (registry, own) = (self.clone(), address.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (registry, own, tls) = (registry.clone(), own.clone(), tls.clone());
                let service = service_fn(move |request| {
                    let answer = registry.answer(&request, &own);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => {
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        }
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
                });
            }
        });
        address
    }

    fn with<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.0.lock().expect("no test failed"))
    }

    fn answer(&self, request: &Request<Incoming>, own: &str) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let who = request.headers().get("authorization").and_then(|who| who.to_str().ok());
        let who = who.map(str::to_owned);
        self.with(|content| {
            content.asked.push((path.clone(), who.clone()));
            let status = |status: u16| Response::builder().status(status);
            let body = |text: &[u8]| Full::new(Bytes::copy_from_slice(text));
            let none = || body(b"");
            let token = content.token.unwrap_or_default();
            if path == "/token" {
                let may = who.as_deref() == Some("Basic bWU6c2VjcmV0");
                let scope = request.uri().query().unwrap_or_default().contains("scope=repository:");
                let code = if may && scope { 200 } else { 401 };
                return status(code).body(body(json!({"token": token}).to_string().as_bytes()));
            }
            if content.token.is_some() && who != Some(format!("Bearer {token}")) {
                let challenge = format!(
                    "Bearer realm=\"http://{own}/token\",service=\"test\",\
                     scope=\"repository:shop/web:pull\""
                );
                return status(401).header("WWW-Authenticate", challenge).body(none());
            }
            if let Some(place) = content.elsewhere.get(&path) {
                return status(307).header("Location", place.as_str()).body(none());
            }
            match content.documents.get(&path) {
                Some(document) => status(200).body(body(document)),
                None => status(404).body(none()),
            }
        })
        .expect("an answer")
    }

    /// Puts an image behind an index of two platforms. Returns the index's digest.
    fn put(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Digest {
        let base = format!("/v2/{repository}");
        let blob = |kind: &str, content: &[u8]| -> Value {
            let digest = digest(content);
            self.with(|all| {
                all.documents.insert(format!("{base}/{kind}/{digest}"), content.into())
            });
            json!({"digest": digest.to_string(), "size": content.len()})
        };
        let config = blob("blobs", &configuration(layers, json!({"Cmd": ["/x"]})));
        let parts = layers.iter().enumerate().map(|(number, layer)| {
            blob("blobs", &if number % 2 == 0 { gzip(layer) } else { zstd(layer) })
        });
        let manifest = json!({"config": config, "layers": parts.collect::<Vec<_>>()});
        let mut own = blob("manifests", manifest.to_string().as_bytes());
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        own["platform"] = json!({"os": "linux", "architecture": architecture});
        let other = json!({"digest": format!("sha256:{}", "0".repeat(64)),
            "platform": {"os": "linux", "architecture": "s390x"}});
        let index = json!({"manifests": [other, own]}).to_string().into_bytes();
        blob("manifests", &index);
        let whole = digest(&index);
        self.with(|all| all.documents.insert(format!("{base}/manifests/{tag}"), index));
        whole
    }
}

fn layers() -> Vec<Vec<u8>> {
    let file = |text: &'static str| What::File(text.as_bytes());
    vec![tar(&[("a", 0o644, 0, file("1"))]), tar(&[("b", 0o644, 0, file("2"))])]
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("a name")
}

async fn pull_plain(store: &Store, name: &str) -> Result<Image, String> {
    pull(store, &reference(name), &Settings::default(), &[]).await
}

#[tokio::test]
async fn images_come_by_tag_and_by_digest() {
    let directory = Directory::new("pull");
    let store = directory.store();
    let registry = Registry::default();
    let host = registry.start().await;
    let whole = registry.put("shop/web", "1", &layers());
    let image = pull_plain(&store, &format!("{host}/shop/web:1")).await.expect("pulled");
    assert!(image.pulled && image.layers.len() == 2);
    let text =
        |number: usize, name: &str| fs::read_to_string(store.layers(&image)[number].join(name));
    assert_eq!((text(0, "b").expect("b"), text(1, "a").expect("a")), ("2".into(), "1".into()));
    let by_digest = format!("{host}/shop/web@{whole}");
    assert_eq!(store.find(&reference(&by_digest)).map(|found| found.id), Some(image.id.clone()));
    let again = pull_plain(&store, &by_digest).await.expect("pulled");
    assert_eq!((again.id, again.names.len()), (image.id, 1));
    let blobs =
        |all: &mut Content| all.asked.iter().filter(|one| one.0.contains("/blobs/")).count();
    assert_eq!(registry.with(blobs), 4, "two layers once, and each time the configuration");
    let error = pull_plain(&store, &format!("{host}/shop/none:1")).await.expect_err("not there");
    assert!(error.contains("not found"), "{error}");
    assert_eq!(fs::read_dir(directory.0.join("store/incoming")).expect("there").count(), 0);
}

#[tokio::test]
async fn whoever_must_say_who_he_is_does_so_by_a_token_and_only_where_he_is_asked() {
    let directory = Directory::new("token");
    let store = directory.store();
    let (registry, other) = (Registry::default(), Registry::default());
    let (host, elsewhere) = (registry.start().await, other.start().await);
    registry.put("shop/web", "1", &layers());
    registry.with(|content| content.token = Some("t0k3n"));
    let name = format!("{host}/shop/web:1");
    let error = pull_plain(&store, &name).await.expect_err("nobody");
    assert!(error.contains("failed to authorize"), "{error}");
    // One layer is on another host, which must not hear of the token.
    let layer = format!("/v2/shop/web/blobs/{}", digest(&gzip(&layers()[0])));
    let content = registry.with(|all| all.documents.remove(&layer)).expect("a layer");
    other.with(|all| all.documents.insert("/cdn".into(), content));
    registry.with(|all| all.elsewhere.insert(layer, format!("http://{elsewhere}/cdn")));
    let config = json!({"auths": {&host: {"username": "me", "password": "secret"},
        "other.test": {"username": "you", "password": "secret"}}});
    let secret = [(".dockerconfigjson".to_owned(), config.to_string().into_bytes())].into();
    let credentials = Credentials::find(&Some(secret), &reference(&name));
    assert_eq!(credentials.len(), 1);
    pull(&store, &reference(&name), &Settings::default(), &credentials).await.expect("pulled");
    assert_eq!(other.with(|all| all.asked.clone()), [("/cdn".to_owned(), None)]);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_has_nothing() {
    let directory = Directory::new("mirror");
    let store = directory.store();
    let (registry, mirror) = (Registry::default(), Registry::default());
    let (host, mirror_host) = (registry.start().await, mirror.start().await);
    registry.put("shop/web", "1", &layers());
    mirror.put("shop/web", "2", &layers()[..1]);
    let mirrors = [(host.clone(), vec![format!("http://{mirror_host}")])].into();
    let settings = Settings { mirrors, ..Settings::default() };
    for tag in ["2", "1"] {
        let name = reference(&format!("{host}/shop/web:{tag}"));
        let image = pull(&store, &name, &settings, &[]).await.expect(tag);
        assert!(image.repository_digests.iter().all(|one| one.starts_with(&host)), "{image:?}");
    }
    let tags = |all: &mut Content| {
        let paths = all.asked.iter().map(|one| one.0.clone());
        paths.filter(|path| path.ends_with("/1") || path.ends_with("/2")).collect::<Vec<_>>()
    };
    assert_eq!(mirror.with(tags), ["/v2/shop/web/manifests/2", "/v2/shop/web/manifests/1"]);
    assert_eq!(registry.with(tags), ["/v2/shop/web/manifests/1"]);
}

#[tokio::test]
async fn a_registry_by_tls_is_trusted_by_its_authority_alone() {
    let directory = Directory::new("tls");
    let store = directory.store();
    let authority = Authority::new(&directory.0.join("pki"));
    let issued = authority.issue("registry", Some("127.0.0.1"));
    let certificate = CertificateDer::from_pem_file(issued.certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(issued.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a configuration");
    let registry = Registry::default();
    registry.put("shop/web", "1", &layers());
    let host = registry.serve(Some(TlsAcceptor::from(Arc::new(config)))).await;
    // Nothing answers at the registry itself: its name has no address (RFC 6761).
    let name = reference("registry.invalid/shop/web:1");
    let mirrors: BTreeMap<String, Vec<String>> =
        [(name.registry.clone(), vec![format!("https://{host}")])].into();
    let file = directory.0.join("registries.json");
    let text = json!({"mirrors": &mirrors, "authorities": [authority.file()]});
    let strangers = Settings { mirrors, ..Settings::default() };
    pull(&store, &name, &strangers, &[]).await.expect_err("nobody knows its authority");
    assert_eq!(registry.with(|all| all.asked.len()), 0, "nothing was asked");
    fs::write(&file, text.to_string()).expect("written");
    let settings = Settings::read(&file).expect("settings");
    pull(&store, &name, &settings, &[]).await.expect("pulled");
    fs::write(&file, r#"{"mirors": {}}"#).expect("written");
    let error = Settings::read(&file).expect_err("a mistake");
    assert!(error.contains("mirors"), "{error}");
    assert_eq!(Settings::read(&directory.0.join("none")), Ok(Settings::default()));
}

#[tokio::test]
async fn a_registry_that_gives_something_else_is_refused() {
    let directory = Directory::new("lies");
    let store = directory.store();
    let registry = Registry::default();
    let host = registry.start().await;
    let whole = registry.put("shop/web", "1", &layers());
    let by_digest = format!("{host}/shop/web@{whole}");
    let paths = registry.with(|all| all.documents.keys().cloned().collect::<Vec<_>>());
    for path in paths.iter().filter(|path| path.contains("sha256:")) {
        let change = |all: &mut Content| all.documents.get_mut(path).map(|text| text.push(b' '));
        registry.with(change);
        let error = pull_plain(&store, &by_digest).await.expect_err(path);
        assert!(error.contains("the registry gave") || error.contains("is longer"), "{error}");
        registry.with(|all| all.documents.get_mut(path).map(Vec::pop));
    }
    assert_eq!(store.list(), []);
    pull_plain(&store, &by_digest).await.expect("whole again");
}
