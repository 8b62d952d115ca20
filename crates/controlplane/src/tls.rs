//! The server's side of TLS, and who a client is by its certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use store::authorize::User;

use crate::pki::Pki;

/// Why the server cannot speak TLS.
#[derive(Debug, thiserror::Error)]
#[error(
    "{file}: {problem}; restore the file from a copy, or remove it (not ca.crt or ca.key) and \
     start again: it is made anew"
)]
pub struct TlsError {
    file: String,
    problem: String,
}

/// TLS 1.2 and 1.3, ALPN h2 and http/1.1. A client certificate is asked for and verified, but
/// a client without one gets as far as the few paths that are open to all.
pub(crate) fn server_config(pki: &Pki) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&pki.authority)? {
        roots.add(authority).map_err(|error| fault(&pki.authority, error))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| fault(&pki.authority, error))?;
    let key = PrivateKeyDer::from_pem_file(&pki.server.key)
        .map_err(|error| fault(&pki.server.key, error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(&pki.server.certificate, error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&pki.server.certificate)?, key)
        .map_err(|error| fault(&pki.server.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The user of a verified certificate; `None` when it names nobody.
pub(crate) fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(subject(&parsed)).filter(|user| !user.name.is_empty())
}

/// Common name and organizations of a certificate.
pub(crate) fn subject(certificate: &X509Certificate<'_>) -> User {
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).ok()
    };
    User {
        name: subject.iter_common_name().find_map(text).unwrap_or_default(),
        groups: subject.iter_organization().filter_map(text).collect(),
        ..User::default()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| fault(path, error))
}

pub(crate) fn fault(path: &Path, problem: impl ToString) -> TlsError {
    TlsError { file: path.display().to_string(), problem: problem.to_string() }
}
