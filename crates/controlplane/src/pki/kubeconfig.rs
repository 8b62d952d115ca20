//! Kubeconfig files that kubectl and our own programs read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{KeyPairFiles, Pki, PkiError, files};

/// What a kubeconfig shall say.
#[derive(Clone, Copy, Debug)]
pub struct KubeconfigRequest<'a> {
    /// The name of cluster and context.
    pub cluster: &'a str,
    /// The name of the user entry.
    pub user: &'a str,
    /// The API server: `https://HOST:PORT`.
    pub server: &'a str,
    /// Who its holder is.
    pub identity: &'a KeyPairFiles,
}

/// The text of a kubeconfig with certificates and key in it. It is a secret: mode 0600.
///
/// # Errors
/// When a certificate or key cannot be read.
pub fn kubeconfig_text(pki: &Pki, request: &KubeconfigRequest<'_>) -> Result<String, PkiError> {
    let encoded = |path| match files::read(path)? {
        Some(text) => Ok(STANDARD.encode(text)),
        None => Err(PkiError::File {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        }),
    };
    let user = if request.user == request.cluster {
        request.user.to_owned()
    } else {
        format!("{}-{}", request.cluster, request.user)
    };
    let value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": request.cluster, "cluster": {
            "certificate-authority-data": encoded(&pki.authority)?,
            "server": request.server,
        }}],
        "contexts": [{"name": request.cluster, "context": {
            "cluster": request.cluster,
            "user": user,
        }}],
        "current-context": request.cluster,
        "preferences": {},
        "users": [{"name": user, "user": {
            "client-certificate-data": encoded(&request.identity.certificate)?,
            "client-key-data": encoded(&request.identity.key)?,
        }}],
    });
    serde_yaml_ng::to_string(&value).map_err(|error| PkiError::Issue {
        name: "kubeconfig".to_owned(),
        problem: error.to_string(),
    })
}
