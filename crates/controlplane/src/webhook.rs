//! Calls of webhooks, for admission and conversion: over TLS, to an address that was looked up once and judged, within
//! the webhook's time, and without what redirects say.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use client::Endpoint;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, Uri};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use store::selector::{FieldSelector, LabelSelector};
use store::webhooks::{Callee, Place};
use store::{ListOptions, Store, registry};
use tokio::sync::Semaphore;

/// Calls at a time; further ones wait, within their time.
const MAX_CALLS: usize = 128;
/// Largest answer of a webhook, bytes: an object and a patch of it, or objects as they were sent, in
/// a version that says more.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The way to webhooks.
pub(crate) struct Webhooks {
    permits: Semaphore,
}

/// Where one call goes.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// `https://HOST:PORT`, whose host the certificate must name.
    origin: String,
    path: String,
    /// Addresses to dial, where the cluster knows them; else the host is looked up.
    dial: Option<SocketAddr>,
}

impl Webhooks {
    pub fn new() -> Self {
        Self { permits: Semaphore::new(MAX_CALLS) }
    }

    /// Sends a review and brings the answer. `chance` chooses between endpoints.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn ask(
        &self,
        callee: &Callee,
        target: Result<Asked, String>,
        review: &Value,
    ) -> Result<Value, String> {
        let limit = Duration::from_secs(callee.timeout_seconds);
        let asked = async {
            let Asked(target) = target?;
            let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
            send(callee, target, review).await
        };
        let answer = match tokio::time::timeout(limit, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                let seconds = callee.timeout_seconds;
                Err(format!("no answer within {seconds} s: context deadline exceeded"))
            }
        };
        answer.map_err(|why| format!("Post {:?}: {why}", url(callee)))
    }
}

/// What is asked for, as the real server's errors write it.
fn url(callee: &Callee) -> String {
    let place = match &callee.place {
        Place::Url(url) => url.clone(),
        Place::Service { namespace, name, path, port } => {
            let slash = if path.is_empty() { "/" } else { "" };
            format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
        }
    };
    format!("{place}?timeout={}s", callee.timeout_seconds)
}

/// Where a call goes, found in the published state.
pub(crate) struct Asked(Target);

/// Finds where a webhook answers.
///
/// # Errors
/// When its Service has nobody who is ready, or it is no place to call.
pub(crate) fn find(store: &Store, callee: &Callee, chance: u64) -> Result<Asked, String> {
    match &callee.place {
        Place::Url(url) => {
            let uri: Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
            let authority = uri.authority().ok_or_else(|| format!("{url:?} names no host"))?;
            let path = if uri.path().is_empty() { "/" } else { uri.path() };
            let origin = format!("https://{authority}");
            Ok(Asked(Target { origin, path: path.to_owned(), dial: None }))
        }
        Place::Service { namespace, name, path, port } => {
            let dial = endpoint_of(store, namespace, name, *port, chance)?;
            let path = if path.is_empty() { "/" } else { path };
            let origin = format!("https://{name}.{namespace}.svc:{port}");
            Ok(Asked(Target { origin, path: path.to_owned(), dial: Some(dial) }))
        }
    }
}

/// A ready endpoint of a Service: the host that we run on need not know the Service's address.
fn endpoint_of(
    store: &Store,
    namespace: &str,
    name: &str,
    port: u16,
    chance: u64,
) -> Result<SocketAddr, String> {
    let row = |group, plural| registry::find(group, "v1", plural).ok_or("not served".to_owned());
    let service = store.get(row("", "services")?, namespace, name).map_err(|gone| gone.message)?;
    if service.value.pointer("/spec/type").is_some_and(|kind| kind == "ExternalName") {
        return Err(format!("service {namespace}/{name} is an ExternalName, which is not called"));
    }
    let ports = service.value.pointer("/spec/ports").and_then(Value::as_array);
    let found = ports.into_iter().flatten().find(|one| one["port"] == port);
    let found = found.ok_or_else(|| format!("service {namespace}/{name} has no port {port}"))?;
    let port_name = found["name"].as_str().unwrap_or_default();
    let ready = ready_endpoints(store, namespace, name, port_name)?;
    let count = u64::try_from(ready.len()).unwrap_or(u64::MAX).max(1);
    let chosen = usize::try_from(chance % count).unwrap_or(0);
    ready.get(chosen).copied().ok_or_else(|| {
        format!("no endpoints available for service {name:?} in namespace {namespace:?}")
    })
}

/// Where a Service's port is answered: addresses of its slices alone, and of these none that only
/// this machine gets to.
///
/// # Errors
/// Slices cannot be read, for people.
pub(crate) fn ready_endpoints(
    store: &Store,
    namespace: &str,
    name: &str,
    port_name: &str,
) -> Result<Vec<SocketAddr>, String> {
    let row = |group, plural| registry::find(group, "v1", plural).ok_or("not served".to_owned());
    let options = ListOptions {
        namespace: namespace.to_owned(),
        labels: LabelSelector::parse(&format!("kubernetes.io/service-name={name}"))
            .map_err(|error| error.message)?,
        fields: FieldSelector::default(),
        ..ListOptions::default()
    };
    let slices = store.list(row("discovery.k8s.io", "endpointslices")?, &options);
    let slices = slices.map_err(|error| error.message)?.items;
    Ok(slices
        .iter()
        .flat_map(|slice| ready_addresses(&slice.value, port_name))
        .filter(|address| refusal(address.ip()).is_none())
        .filter(|address| !address.ip().to_canonical().is_loopback())
        .collect())
}

fn ready_addresses(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let items = |field: &str| slice.get(field).and_then(Value::as_array).into_iter().flatten();
    let port = items("ports")
        .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
    let Some(port) = port else { return Vec::new() };
    items("endpoints")
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .filter_map(|endpoint| endpoint["addresses"].get(0)?.as_str()?.parse().ok())
        .map(|address: IpAddr| SocketAddr::new(address, port))
        .collect()
}

/// Why an address is never called, whoever names it.
fn refusal(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if is_link_local {
        // Among them is where clouds answer for their credentials.
        Some("a link-local address")
    } else if address.is_unspecified() {
        Some("no address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

/// The address of a URL's host: looked up once, judged, and dialled as it is, so that no second
/// answer of DNS goes elsewhere. A name may not lead to this machine itself; who writes
/// `localhost` or a loopback address into a webhook's URL says that he means it.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| error.to_string())?;
    judge(host, found)
}

fn judge(host: &str, found: impl IntoIterator<Item = SocketAddr>) -> Result<SocketAddr, String> {
    let means_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok();
    let mut refused = "nothing".to_owned();
    for address in found {
        let why = refusal(address.ip());
        let leads_home = address.ip().to_canonical().is_loopback() && !means_loopback;
        match why.or(leads_home.then_some("a loopback address")) {
            None => return Ok(address),
            Some(why) => refused = format!("{why}, {}, which is not called", address.ip()),
        }
    }
    Err(format!("{host:?} leads to {refused}"))
}

/// Who may sign the certificate of a webhook: whom it names, or else whom this machine trusts.
fn authorities(callee: &Callee) -> Result<Vec<CertificateDer<'static>>, String> {
    if !callee.authorities.is_empty() {
        let named: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&callee.authorities).collect();
        return named.map_err(|error| format!("the caBundle: {error}"));
    }
    let mut trusted = rustls_native_certs::load_native_certs().certs;
    // Among them are some of forms that nobody reads any more.
    let mut readable = rustls::RootCertStore::empty();
    trusted.retain(|certificate| readable.add(certificate.clone()).is_ok());
    if trusted.is_empty() {
        return Err(
            "tls: the webhook has no caBundle to know its certificate by, and the machine \
                    of the control plane trusts nobody: name one, or install ca-certificates"
                .to_owned(),
        );
    }
    Ok(trusted)
}

async fn send(callee: &Callee, target: Target, review: &Value) -> Result<Value, String> {
    let authorities = authorities(callee)?;
    let endpoint = Endpoint::without_identity(&target.origin, &authorities)
        .map_err(|error| error.to_string())?;
    let dial = match target.dial {
        Some(address) => address,
        None => resolve(endpoint.host(), endpoint.port()).await?,
    };
    let body = serde_json::to_vec(review).map_err(|error| error.to_string())?;
    let request = Request::post(format!("{}?timeout={}s", target.path, callee.timeout_seconds))
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = endpoint.dialling(dial).send_once(request).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let code = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes();
    if !code.is_success() {
        return Err(format!("the server answered {code}"));
    }
    serde_json::from_slice(&body).map_err(|error| format!("the answer is no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_to_where_only_this_machine_gets() {
        let cases = [
            ("hook.example.org", "192.0.2.1:443", true),
            ("hook.example.org", "[2001:db8::1]:443", true),
            ("hook.example.org", "127.0.0.1:443", false),
            ("hook.example.org", "[::1]:443", false),
            ("hook.example.org", "[::ffff:127.0.0.1]:443", false),
            ("hook.example.org", "169.254.169.254:443", false),
            ("hook.example.org", "[fe80::1]:443", false),
            ("hook.example.org", "[::ffff:169.254.169.254]:443", false),
            ("hook.example.org", "0.0.0.0:443", false),
            ("hook.example.org", "224.0.0.1:443", false),
            // Who writes it means it; nobody means the metadata of a cloud.
            ("127.0.0.1", "127.0.0.1:443", true),
            ("localhost", "127.0.0.1:443", true),
            ("169.254.169.254", "169.254.169.254:443", false),
        ];
        for (host, address, allowed) in cases {
            let address: SocketAddr = address.parse().expect("an address");
            assert_eq!(judge(host, [address]).is_ok(), allowed, "{host} at {address}");
        }
        let both = ["127.0.0.1:1", "192.0.2.1:1"].map(|text| text.parse().expect("an address"));
        assert_eq!(judge("hook.example.org", both), Ok(both[1]));
    }
}
