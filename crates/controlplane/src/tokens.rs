//! ServiceAccount tokens (JSON Web Tokens, RFC 7519, signed by ES256): made for TokenRequests, and
//! checked when a client shows one.

use std::collections::BTreeMap;
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
use store::authorize::{AUTHENTICATED, SERVICE_ACCOUNT_PREFIX};
use store::validate::FieldErrors;
use store::{Status, Store, registry};

use crate::tls::{TlsError, User, fault};

/// Shortest life of a token that may be asked for, seconds (the real server's).
const LIFE_MINIMUM_S: i64 = 600;
/// Longest life that a request may ask for, seconds (the real server's).
pub(crate) const LIFE_LIMIT_S: i64 = 1 << 32;
/// Longest life of a token; longer wishes are shortened, seconds: a day. Tokens in Secrets that are
/// made for them have none: they end with the Secret.
const LIFE_MAXIMUM_S: i64 = 24 * 60 * 60;
/// Life of a token when none is asked for, seconds (the real server's).
const LIFE_DEFAULT_S: i64 = 60 * 60;
/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The type of Secrets that hold a token.
const TOKEN_SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// Where such a Secret names its account.
const TOKEN_SECRET_ACCOUNT: &str = "/metadata/annotations/kubernetes.io~1service-account.name";
/// How tokens are signed (RFC 7518, 3.4).
const ALGORITHM: &str = "ES256";
/// Groups of all ServiceAccounts; those of one namespace have its name behind.
pub(crate) const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Makes and checks tokens.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// Who signs, and for whom when nobody says for whom: the API server, by its name in the
    /// cluster.
    issuer: String,
    /// Tells this key from others.
    key_name: String,
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
    /// Tells tokens apart in audit logs (KEP-4193); those of before it have none.
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

/// The objects that a token is about. It lives and dies with all but a pod's node, which it only
/// tells.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

/// What a TokenRequest comes to.
#[derive(Debug)]
pub(crate) struct Made {
    /// The request with its token.
    pub answer: Value,
    /// What its sender should know.
    pub warning: Option<String>,
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
        let name = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        let key_name = URL_SAFE_NO_PAD.encode(name);
        Ok(Self { key: pair, random, issuer, key_name })
    }

    /// Who signs, and where his keys are: `/.well-known/openid-configuration` (OpenID Connect
    /// Discovery 1.0). With it others check tokens without asking the API server each time.
    pub fn issuer(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }

    /// The key by which tokens can be checked: `/openid/v1/jwks` (JSON Web Key Set, RFC 7517).
    pub fn keys(&self) -> Value {
        // An uncompressed point: one byte that says so, and both coordinates (SEC 1, 2.3.3).
        let point = self.key.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_name,
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }

    /// Answers a TokenRequest for a ServiceAccount (authentication.k8s.io/v1).
    ///
    /// # Errors
    /// 404 without the account, or the object that it shall be bound to; 400, 409 and 422 for a
    /// request that cannot be granted.
    pub fn request(
        &self,
        store: &Store,
        namespace: &str,
        name: &str,
        body: &Value,
        now: Timestamp,
    ) -> Result<Made, Status> {
        let account = store.get(resource("serviceaccounts")?, namespace, name)?;
        let asked_s = body.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        let asked_s = asked_s.unwrap_or(LIFE_DEFAULT_S);
        check_life(asked_s)?;
        let kept = is_kept(store, namespace, name, body)?;
        let life_s = asked_s.min(if kept { LIFE_LIMIT_S } else { LIFE_MAXIMUM_S });
        let warning = (life_s < asked_s).then(|| {
            format!("requested expiration of {asked_s} seconds shortened to {life_s} seconds")
        });
        let mut audiences = texts(body, "/spec/audiences");
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let issued = now.microseconds() / 1_000_000;
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            serviceaccount: Reference { name: name.to_owned(), uid: account.uid().to_owned() },
            ..Bound::default()
        };
        bound.bind(store, body.pointer("/spec/boundObjectRef"))?;
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            aud: audiences.clone(),
            exp: issued + life_s,
            nbf: issued,
            iat: issued,
            jti: store::names::uid(&mut crate::writer::SystemRandom),
            kubernetes: bound,
        };
        let token = self.sign(&claims).map_err(Status::internal)?;
        let expires = Timestamp::from_microseconds(claims.exp * 1_000_000);
        let mut answer = body.clone();
        let created = now.to_string();
        for (part, value) in [
            (
                "/metadata",
                json!({"name": name, "namespace": namespace, "creationTimestamp": created}),
            ),
            ("/spec/audiences", json!(audiences)),
            ("/spec/expirationSeconds", life_s.into()),
            ("/status", json!({"token": token, "expirationTimestamp": expires.to_string()})),
        ] {
            store::json::set(&mut answer, part, value);
        }
        Ok(Made { answer, warning })
    }

    /// Answers a TokenReview: the status of one whose token is nobody's says so.
    ///
    /// # Errors
    /// 400 without a token.
    pub fn review(&self, store: &Store, review: &Value, now: Timestamp) -> Result<Value, Status> {
        let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let mut audiences = texts(review, "/spec/audiences");
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let Some((mut user, audiences)) = self.read(store, token, &audiences, now) else {
            return Ok(json!({"user": {}, "error": "invalid bearer token"}));
        };
        user.groups.push(AUTHENTICATED.to_owned());
        Ok(json!({"authenticated": true, "user": user.info(), "audiences": audiences}))
    }

    /// The user that a token stands for here; `None` for one that is not ours or not for us, has
    /// expired, or whose account or other object is gone.
    pub fn user_of(&self, store: &Store, token: &str, now: Timestamp) -> Option<User> {
        let own = std::slice::from_ref(&self.issuer);
        self.read(store, token, own, now).map(|(user, _)| user)
    }

    /// The user that a token stands for before any of some audiences, and before which.
    fn read(
        &self,
        store: &Store,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Option<(User, Vec<String>)> {
        let claims = self.verify(token)?;
        let now_s = now.microseconds() / 1_000_000;
        let in_time = claims.nbf <= now_s && now_s < claims.exp;
        let mut shared = claims.aud.clone();
        shared.retain(|audience| audiences.contains(audience));
        if !in_time || claims.iss != self.issuer || shared.is_empty() {
            return None;
        }
        let bound = &claims.kubernetes;
        bound.lives(store)?;
        let account = &bound.serviceaccount;
        let name = format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", bound.namespace, account.name);
        let user = User {
            name,
            uid: account.uid.clone(),
            groups: account_groups(&bound.namespace),
            extra: claims.extra(),
        };
        (user.name == claims.sub).then_some((user, shared))
    }

    fn sign(&self, claims: &Claims) -> Result<String, String> {
        let claims = serde_json::to_vec(claims).map_err(|error| error.to_string())?;
        let header = json!({"alg": ALGORITHM, "kid": self.key_name, "typ": "JWT"}).to_string();
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
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
    vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}

impl Claims {
    /// What is told of the user besides (KEP-4193).
    fn extra(&self) -> BTreeMap<String, Vec<String>> {
        let mut extra = BTreeMap::new();
        let mut tell = |key: &str, value: String| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if !self.jti.is_empty() {
            tell("credential-id", format!("JTI={}", self.jti));
        }
        let bound = &self.kubernetes;
        for (kind, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
            if let Some(Reference { name, uid }) = reference {
                tell(&format!("{kind}-name"), name.clone());
                tell(&format!("{kind}-uid"), uid.clone());
            }
        }
        extra
    }
}

impl Bound {
    /// Binds the token to an object, so that it ends with it.
    fn bind(&mut self, store: &Store, reference: Option<&Value>) -> Result<(), Status> {
        let Some(reference) = reference.filter(|reference| !reference.is_null()) else {
            return Ok(());
        };
        let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
        let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
        let account = &self.serviceaccount.name;
        let (plural, namespace) = match (kind, text("apiVersion")) {
            ("Pod", "" | "v1") => ("pods", self.namespace.as_str()),
            ("Secret", "" | "v1") => ("secrets", self.namespace.as_str()),
            ("Node", "" | "v1") => ("nodes", ""),
            (kind, version) => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to object type {version}, \
                     Kind={kind}"
                )));
            }
        };
        let row = resource(plural)?;
        let found = store.get(row, namespace, name)?;
        if !uid.is_empty() && uid != found.uid() {
            return Err(Status::conflict(
                row,
                name,
                "the UID in the bound object reference does not match the UID in record. The \
                 object might have been deleted and then recreated",
            ));
        }
        let reference = Reference { name: name.to_owned(), uid: found.uid().to_owned() };
        match kind {
            "Secret" => self.secret = Some(reference),
            "Node" => self.node = Some(reference),
            _ => {
                let of_pod = |field| found.value.pointer(field).and_then(Value::as_str);
                if of_pod("/spec/serviceAccountName") != Some(account) {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with \
                         different serviceaccount name."
                    )));
                }
                self.pod = Some(reference);
                self.node = of_pod("/spec/nodeName").and_then(|node| {
                    let found = store.get(resource("nodes").ok()?, "", node).ok()?;
                    Some(Reference { name: node.to_owned(), uid: found.uid().to_owned() })
                });
            }
        }
        Ok(())
    }

    /// Whether all that the token is bound to is still there.
    fn lives(&self, store: &Store) -> Option<()> {
        let lives = |plural: &str, namespace: &str, reference: &Reference| {
            let found = store.get(resource(plural).ok()?, namespace, &reference.name).ok()?;
            (found.uid() == reference.uid).then_some(())
        };
        lives("serviceaccounts", &self.namespace, &self.serviceaccount)?;
        if let Some(pod) = &self.pod {
            lives("pods", &self.namespace, pod)?;
        } else if let Some(node) = &self.node {
            lives("nodes", "", node)?;
        }
        match &self.secret {
            Some(secret) => lives("secrets", &self.namespace, secret),
            None => Some(()),
        }
    }
}

/// Whether a request is for a token that lies in a Secret of its account, made for that.
fn is_kept(store: &Store, namespace: &str, account: &str, body: &Value) -> Result<bool, Status> {
    let of_reference = |field: &str| {
        let found = body.pointer("/spec/boundObjectRef").and_then(|found| found.get(field));
        found.and_then(Value::as_str).unwrap_or_default()
    };
    if of_reference("kind") != "Secret" {
        return Ok(false);
    }
    let secret = store.get(resource("secrets")?, namespace, of_reference("name"))?;
    let text = |pointer| store::json::text(&secret.value, pointer);
    Ok(text("/type") == TOKEN_SECRET_TYPE && text(TOKEN_SECRET_ACCOUNT) == account)
}

/// Refuses lives that the API does not know.
fn check_life(seconds: i64) -> Result<(), Status> {
    let why = match seconds {
        ..LIFE_MINIMUM_S => "may not specify a duration less than 10 minutes",
        LIFE_MINIMUM_S..=LIFE_LIMIT_S => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let mut errors = FieldErrors::default();
    errors.invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", "", &errors))
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

fn resource(plural: &str) -> Result<&'static store::Resource, Status> {
    registry::find("", "v1", plural).ok_or_else(Status::unknown_path)
}
