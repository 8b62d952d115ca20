//! Whose certificates count for servers over TLS, and what we show of ourselves.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use dns::config::TlsFiles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// The largest file of certificates, in octets: all that a host trusts take a fifth of it.
const MAX_FILE_OCTETS: u64 = 1 << 20;

/// How TLS begins with the servers of one rule, or of all rules that name no files.
pub(super) struct Trust {
    pub(super) for_tls: TlsConnector,
    pub(super) for_https: TlsConnector,
}

impl Trust {
    /// Certificates are those that the host trusts; `SSL_CERT_FILE` names others.
    pub(super) fn of_host() -> Result<Self> {
        Self::new(&Arc::new(host_roots()?), None)
    }

    /// The files of a rule, as they are now.
    pub(super) fn of_files(files: &TlsFiles) -> Result<Self> {
        let roots = match &files.ca {
            Some(path) => roots_of(path).with_context(|| format!("`ca` of `tls`, {path}"))?,
            None => host_roots()?,
        };
        Self::new(&Arc::new(roots), files.identity.as_ref())
    }

    fn new(roots: &Arc<RootCertStore>, identity: Option<&(String, String)>) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots.clone());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)
                    .with_context(|| format!("`cert` of `tls`, {certificate}"))?;
                let own_key = private_key(key).with_context(|| format!("`key` of `tls`, {key}"))?;
                builder.with_client_auth_cert(chain, own_key).with_context(|| {
                    format!("{key} is not the key of the certificate in {certificate}")
                })?
            }
        };
        let connector = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self { for_tls: connector(b"dot"), for_https: connector(b"h2") })
    }
}

fn host_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        bail!("the host has no certificates to trust: install ca-certificates");
    }
    Ok(roots)
}

fn roots_of(path: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).context("a certificate in it is damaged")?;
    }
    Ok(roots)
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>> {
    let octets = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&octets).collect();
    let found = found.context("it is no PEM file")?;
    ensure!(!found.is_empty(), "there is no certificate in it (PEM is read)");
    Ok(found)
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .context("there is no private key in it (PEM is read)")
}

/// A file of the operator's. What is no file might never end, or never begin: others wait for this
/// thread.
fn read(path: &str) -> Result<Vec<u8>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.context("it cannot be opened")?;
    ensure!(file.metadata()?.is_file(), "it is no file");
    let mut octets = Vec::new();
    file.take(MAX_FILE_OCTETS + 1).read_to_end(&mut octets).context("it cannot be read")?;
    ensure!(octets.len() as u64 <= MAX_FILE_OCTETS, "it is larger than {MAX_FILE_OCTETS} octets");
    Ok(octets)
}
