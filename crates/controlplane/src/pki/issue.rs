//! Making certificates, and judging those that exist.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{KeyPairFiles, PkiError, files, write_private};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Life of the authority, days: longer than any cluster on one machine.
const AUTHORITY_DAYS: u32 = 3650;
/// Life of what it signs, days.
const LEAF_DAYS: u32 = 3 * 365;
/// A leaf with less life than this is made anew at the next start, days.
const RENEW_DAYS: u32 = 365;
/// How far the clock may have been ahead when a certificate was made.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

/// What a leaf certificate says.
pub(super) struct Leaf {
    pub common_name: String,
    pub organization: String,
    pub usage: Usage,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A new ECDSA P-256 key, PKCS#8 in PEM.
pub(super) fn new_key(name: &str) -> Result<String, PkiError> {
    let problem =
        |error: rcgen::Error| PkiError::Issue { name: name.to_owned(), problem: error.to_string() };
    Ok(KeyPair::generate().map_err(problem)?.serialize_pem())
}

/// The authority, able to sign.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Loads the authority, or makes it where there is none yet.
    pub fn ensure(directory: &Path, cluster: &str, now: Timestamp) -> Result<Self, PkiError> {
        let paths =
            KeyPairFiles { certificate: directory.join("ca.crt"), key: directory.join("ca.key") };
        let fault = |path: &PathBuf, problem: String| PkiError::Authority {
            path: path.clone(),
            problem,
            directory: directory.to_owned(),
        };
        // The key is written first: a key without a certificate has signed nothing yet.
        let Some(certificate) = files::read(&paths.certificate)? else {
            return Self::make(&paths, cluster, now);
        };
        let key = files::read(&paths.key)?
            .ok_or_else(|| fault(&paths.key, "the key of the authority is missing".to_owned()))?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| fault(&paths.key, format!("the key is damaged: {error}")))?;
        let damaged = |problem: String| {
            fault(&paths.certificate, format!("the certificate is damaged: {problem}"))
        };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        if !fits(&der, &key) {
            return Err(fault(&paths.key, "the key belongs to another certificate".to_owned()));
        }
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { issuer, certificate: der })
    }

    fn make(paths: &KeyPairFiles, cluster: &str, now: Timestamp) -> Result<Self, PkiError> {
        let fault = |error: rcgen::Error| PkiError::Issue {
            name: "ca".to_owned(),
            problem: error.to_string(),
        };
        let key = KeyPair::generate().map_err(fault)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("flatnet-{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(fault)?;
        write_private(&paths.key, &key.serialize_pem())?;
        write_private(&paths.certificate, &certificate.pem())?;
        Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    /// Makes a leaf unless the one that is there is good.
    pub fn ensure_leaf(
        &self,
        paths: &KeyPairFiles,
        leaf: &Leaf,
        now: Timestamp,
    ) -> Result<(), PkiError> {
        let certificate = files::read(&paths.certificate)?;
        let key = files::read(&paths.key)?;
        if let (Some(certificate), Some(key)) = (certificate, key)
            && self.is_good(&certificate, &key, leaf, now)
        {
            return Ok(());
        }
        let fault = |error: rcgen::Error| PkiError::Issue {
            name: paths.certificate.display().to_string(),
            problem: error.to_string(),
        };
        let key = KeyPair::generate().map_err(fault)?;
        let params = leaf.params(now).map_err(fault)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fault)?;
        write_private(&paths.key, &key.serialize_pem())?;
        write_private(&paths.certificate, &certificate.pem())
    }

    fn is_good(&self, certificate: &str, key: &str, leaf: &Leaf, now: Timestamp) -> bool {
        let (Ok(der), Ok(key)) =
            (CertificateDer::from_pem_slice(certificate.as_bytes()), KeyPair::from_pem(key))
        else {
            return false;
        };
        let (Ok((_, parsed)), Ok((_, authority))) =
            (X509Certificate::from_der(&der), X509Certificate::from_der(&self.certificate))
        else {
            return false;
        };
        let keep_until = now.after(DAY * RENEW_DAYS).seconds();
        fits(&der, &key)
            && parsed.verify_signature(Some(authority.public_key())).is_ok()
            && parsed.validity().not_before.timestamp() <= now.seconds()
            && parsed.validity().not_after.timestamp() > keep_until
            && leaf.is_said_by(&parsed)
    }
}

impl Leaf {
    fn params(&self, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.names.clone())?;
        params.subject_alt_names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.common_name.clone());
        if !self.organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, self.organization.clone());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match self.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, LEAF_DAYS);
        Ok(params)
    }

    /// Whether a certificate says all that this one would.
    fn is_said_by(&self, certificate: &X509Certificate<'_>) -> bool {
        let subject = crate::tls::subject(certificate);
        let Ok(extension) = certificate.subject_alternative_name() else { return false };
        let said = extension.map(|extension| extension.value.general_names.as_slice());
        let said = said.unwrap_or_default();
        let has_name = |name: &String| {
            said.iter().any(|said| matches!(said, GeneralName::DNSName(said) if said == name))
        };
        let has_address = |address: &IpAddr| {
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            said.iter().any(|said| matches!(said, GeneralName::IPAddress(said) if *said == bytes))
        };
        subject.name == self.common_name
            && (self.organization.is_empty() || subject.groups.contains(&self.organization))
            && self.names.iter().all(has_name)
            && self.addresses.iter().all(has_address)
    }
}

/// Whether a certificate was made for a key. A crash between the two files parts them.
fn fits(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
        parsed.public_key().subject_public_key.data.as_ref() == key.der_bytes()
    })
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, days: u32) {
    let now = rcgen::date_time_ymd(1970, 1, 1)
        + Duration::from_secs(u64::try_from(now.seconds()).unwrap_or(0));
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + DAY * days;
}
