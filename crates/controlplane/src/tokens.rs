//! ServiceAccount tokens (JSON Web Tokens, RFC 7519, signed by ES256): made for TokenRequests, and
//! checked when a client shows one.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Status, Store, registry};

use crate::tls::{TlsError, User, fault};

/// Shortest life of a token that may be asked for, seconds (the real server's).
const LIFE_MINIMUM_S: i64 = 600;
/// Longest life of a token; longer wishes are shortened, seconds: a day.
const LIFE_MAXIMUM_S: i64 = 24 * 60 * 60;
/// Life of a token when none is asked for, seconds (the real server's).
const LIFE_DEFAULT_S: i64 = 60 * 60;
/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The head of every token of ours.
const HEADER: &str = r#"{"alg":"ES256","typ":"JWT"}"#;
/// Groups of all ServiceAccounts; those of one namespace have its name behind.
const GROUP: &str = "system:serviceaccounts";

/// Makes and checks tokens.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// Who signs, and for whom when nobody says for whom: the API server, by its name in the
    /// cluster.
    issuer: String,
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: i64,
    nbf: i64,
    iat: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

/// The objects that a token lives and dies with.
#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

impl Tokens {
    /// Reads the signing key, PKCS#8 in PEM.
    ///
    /// # Errors
    /// When the file is absent or damaged.
    pub fn open(key: &Path, cluster_domain: &str) -> Result<Self, TlsError> {
        let random = SystemRandom::new();
        let der = PrivatePkcs8KeyDer::from_pem_file(key).map_err(|error| fault(key, error))?;
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|error| fault(key, error))?;
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        Ok(Self { key: pair, random, issuer })
    }

    /// Answers a TokenRequest for a ServiceAccount (authentication.k8s.io/v1).
    ///
    /// # Errors
    /// 404 without the account, or the pod that it shall be bound to; 400 and 422 for a request
    /// that cannot be granted.
    pub fn request(
        &self,
        store: &Store,
        namespace: &str,
        name: &str,
        body: &Value,
        now: Timestamp,
    ) -> Result<Value, Status> {
        let account = store.get(resource("serviceaccounts")?, namespace, name)?;
        let seconds = body.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        if seconds.is_some_and(|seconds| seconds < LIFE_MINIMUM_S) {
            let why = format!(
                "TokenRequest is invalid: spec.expirationSeconds: Invalid value: {}: may not \
                 specify a duration less than 10 minutes",
                seconds.unwrap_or_default()
            );
            return Err(Status::failure(422, "Invalid", why));
        }
        let life_s = seconds.unwrap_or(LIFE_DEFAULT_S).min(LIFE_MAXIMUM_S);
        let asked = body.pointer("/spec/audiences").and_then(Value::as_array);
        let mut audiences: Vec<String> =
            asked.into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect();
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let issued = now.microseconds() / 1_000_000;
        let pod = bound_pod(store, namespace, body.pointer("/spec/boundObjectRef"))?;
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            aud: audiences.clone(),
            exp: issued + life_s,
            nbf: issued,
            iat: issued,
            kubernetes: Bound {
                namespace: namespace.to_owned(),
                serviceaccount: Reference { name: name.to_owned(), uid: account.uid().to_owned() },
                pod,
            },
        };
        let token = self.sign(&claims).map_err(Status::internal)?;
        let expires = Timestamp::from_microseconds(claims.exp * 1_000_000);
        let mut answer = body.clone();
        if let Some(answer) = answer.as_object_mut() {
            answer.insert("metadata".into(), json!({"name": name, "namespace": namespace}));
            answer.insert(
                "spec".into(),
                json!({
                    "audiences": audiences,
                    "expirationSeconds": life_s,
                    "boundObjectRef": body.pointer("/spec/boundObjectRef"),
                }),
            );
            let status = json!({"token": token, "expirationTimestamp": expires.to_string()});
            answer.insert("status".into(), status);
        }
        Ok(answer)
    }

    /// The user that a token stands for; `None` for one that is not ours, has expired, or whose
    /// account or pod is gone.
    pub fn user_of(&self, store: &Store, token: &str, now: Timestamp) -> Option<User> {
        let claims = self.verify(token)?;
        let now_s = now.microseconds() / 1_000_000;
        let in_time = claims.nbf <= now_s && now_s < claims.exp;
        if !in_time || claims.iss != self.issuer || !claims.aud.contains(&self.issuer) {
            return None;
        }
        let bound = &claims.kubernetes;
        let lives = |plural: &str, reference: &Reference| {
            let found =
                store.get(resource(plural).ok()?, &bound.namespace, &reference.name).ok()?;
            (found.uid() == reference.uid).then_some(())
        };
        lives("serviceaccounts", &bound.serviceaccount)?;
        if let Some(pod) = &bound.pod {
            lives("pods", pod)?;
        }
        let name =
            format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name);
        (name == claims.sub).then(|| User { name, groups: account_groups(&bound.namespace) })
    }

    fn sign(&self, claims: &Claims) -> Result<String, String> {
        let claims = serde_json::to_vec(claims).map_err(|error| error.to_string())?;
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// What a token of ours says, whoever shows it and whenever.
    fn verify(&self, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // The algorithm is ours, whatever the token's head says.
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key())
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

/// The groups of a ServiceAccount.
pub(crate) fn account_groups(namespace: &str) -> Vec<String> {
    vec![GROUP.to_owned(), format!("{GROUP}:{namespace}")]
}

/// A token may be bound to a pod, so that it ends with it.
fn bound_pod(
    store: &Store,
    namespace: &str,
    reference: Option<&Value>,
) -> Result<Option<Reference>, Status> {
    let Some(reference) = reference.filter(|reference| !reference.is_null()) else {
        return Ok(None);
    };
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind") != "Pod" {
        let why = format!("cannot bind token to object of type {}", text("kind"));
        return Err(Status::bad_request(why));
    }
    let pods = resource("pods")?;
    let pod = store.get(pods, namespace, text("name"))?;
    if !text("uid").is_empty() && text("uid") != pod.uid() {
        return Err(Status::conflict(
            pods,
            text("name"),
            "the UID in the bound object reference does not match the UID in record",
        ));
    }
    Ok(Some(Reference { name: text("name").to_owned(), uid: pod.uid().to_owned() }))
}

fn resource(plural: &str) -> Result<&'static store::Resource, Status> {
    registry::find("", "v1", plural).ok_or_else(Status::unknown_path)
}
