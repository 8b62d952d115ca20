//! Kubeconfig files: where the server is, and who we are.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use crate::{ClientError, Endpoint};

/// A kubeconfig is small; a file above this is something else.
const MAX_KUBECONFIG_BYTES: u64 = 1 << 20;

/// Who we are and whom we believe, in DER. Never printed.
pub struct Identity {
    /// The authorities that may sign the server's certificate.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Our certificate, then its intermediates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The key of our certificate.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.certificates.len()).finish()
    }
}

impl Identity {
    /// Reads an identity from the text of PEM files. `origin` names them in errors.
    ///
    /// # Errors
    /// [`ClientError::Config`] when a part is missing or is not PEM.
    pub fn from_pem(
        authorities: &[u8],
        certificates: &[u8],
        key: &[u8],
        origin: &str,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            authorities: authorities_of(authorities, origin)?,
            certificates: certificates_of("client certificate", certificates, origin)?,
            key: PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| unusable("client key", origin, &error.to_string()))?,
        })
    }
}

/// The authorities in the text of a PEM file.
pub(crate) fn authorities_of(
    pem: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    certificates_of("certificate authority", pem, origin)
}

fn certificates_of(
    part: &str,
    pem: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(part, origin, "it holds no PEM certificate")),
        Err(error) => Err(unusable(part, origin, &error.to_string())),
    }
}

fn unusable(part: &str, origin: &str, problem: &str) -> ClientError {
    let problem = format!("the {part} is not usable: {problem}");
    ClientError::Config { path: origin.to_owned(), problem }
}

/// The current context of a kubeconfig file, resolved. A token is read once: files of tokens that
/// are replaced are a pod's ServiceAccount ([`Endpoint::for_service_account`]).
pub struct Kubeconfig {
    /// The server's URL, always `https`.
    pub server: String,
    authorities: Vec<CertificateDer<'static>>,
    user: Credential,
}

/// Who we are.
enum Credential {
    Certificate(Identity),
    Token(String),
}

impl fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubeconfig").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Kubeconfig {
    /// Reads a file. Certificates and keys may stand in it or in files beside it.
    ///
    /// # Errors
    /// [`ClientError::Config`] naming the file and the entry to mend.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let fault = |problem: String| config_fault(path, problem);
        let text = read_bounded(path)?;
        let file: File = serde_yaml_ng::from_slice(&text)
            .map_err(|error| fault(format!("this is not a kubeconfig: {error}")))?;
        let context = named(&file.contexts, &file.current_context)
            .ok_or_else(|| fault(format!("no context {:?}", file.current_context)))?;
        let cluster = named(&file.clusters, &context.context.cluster)
            .ok_or_else(|| fault(format!("no cluster {:?}", context.context.cluster)))?;
        let user = named(&file.users, &context.context.user)
            .ok_or_else(|| fault(format!("no user {:?}", context.context.user)))?;
        let cluster = &cluster.cluster;
        if !cluster.server.starts_with("https://") {
            return Err(fault(format!(
                "the server {:?} is not an https URL: credentials never travel in clear",
                cluster.server
            )));
        }
        let part = |field: &str, data: &Option<String>, file: &Option<PathBuf>| {
            data_or_file(path, field, data.as_deref(), file.as_deref())
        };
        let user = &user.user;
        let authority = part(
            "certificate-authority",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?;
        let origin = path.display().to_string();
        let authorities = authorities_of(&authority, &origin)?;
        let server = cluster.server.clone();
        if let Some(token) = user.token(path)? {
            return Ok(Self { server, authorities, user: Credential::Token(token) });
        }
        let certificate =
            part("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
        let key = part("client-key", &user.client_key_data, &user.client_key)?;
        let identity = Identity::from_pem(&authority, &certificate, &key, &origin)?;
        Ok(Self { server, authorities, user: Credential::Certificate(identity) })
    }

    /// The server as something to connect to.
    ///
    /// # Errors
    /// [`ClientError::Config`] when URL or key cannot be used.
    pub fn endpoint(&self) -> Result<Endpoint, ClientError> {
        match &self.user {
            Credential::Certificate(identity) => Endpoint::new(&self.server, identity),
            Credential::Token(token) => {
                Endpoint::with_token(&self.server, &self.authorities, token)
            }
        }
    }
}

pub(crate) fn config_fault(path: &Path, problem: String) -> ClientError {
    ClientError::Config { path: path.display().to_string(), problem }
}

pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, ClientError> {
    let length = std::fs::metadata(path)
        .map_err(|error| config_fault(path, format!("cannot be read: {error}")))?
        .len();
    if length > MAX_KUBECONFIG_BYTES {
        return Err(config_fault(path, format!("{length} bytes is too large for a kubeconfig")));
    }
    std::fs::read(path).map_err(|error| config_fault(path, format!("cannot be read: {error}")))
}

fn data_or_file(
    kubeconfig: &Path,
    field: &str,
    data: Option<&str>,
    file: Option<&Path>,
) -> Result<Vec<u8>, ClientError> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        return STANDARD.decode(data.trim()).map_err(|error| {
            config_fault(kubeconfig, format!("{field}-data is not base64: {error}"))
        });
    }
    let Some(file) = file else {
        return Err(config_fault(
            kubeconfig,
            format!(
                "neither {field} nor {field}-data is set; flatnet uses client certificates or tokens"
            ),
        ));
    };
    read_bounded(&beside(kubeconfig, file))
}

/// Relative names are relative to the kubeconfig, as kubectl reads them.
fn beside(kubeconfig: &Path, file: &Path) -> PathBuf {
    kubeconfig.parent().unwrap_or_else(|| Path::new(".")).join(file)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

trait Named {
    fn name(&self) -> &str;
}

fn named<'a, T: Named>(entries: &'a [T], name: &str) -> Option<&'a T> {
    entries.iter().find(|entry| entry.name() == name)
}

macro_rules! named_entry {
    ($entry:ident { $field:ident: $value:ident }) => {
        #[derive(Deserialize)]
        struct $entry {
            name: String,
            $field: $value,
        }

        impl Named for $entry {
            fn name(&self) -> &str {
                &self.name
            }
        }
    };
}

named_entry!(NamedContext { context: Context });
named_entry!(NamedCluster { cluster: Cluster });
named_entry!(NamedUser { user: User });

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    // The one name of the format that is not in kebab case.
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

impl User {
    /// The bearer token, if the user has one and no certificate.
    fn token(&self, kubeconfig: &Path) -> Result<Option<String>, ClientError> {
        if self.client_certificate.is_some() || self.client_certificate_data.is_some() {
            return Ok(None);
        }
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        let bytes = read_bounded(&beside(kubeconfig, file))?;
        match String::from_utf8(bytes) {
            Ok(token) => Ok(Some(token)),
            Err(_) => Err(config_fault(file, "the token is not text".to_owned())),
        }
    }
}
