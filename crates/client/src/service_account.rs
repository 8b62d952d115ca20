//! A pod's ServiceAccount as the kubelet mounts it (projected volume): token and authorities are
//! files that are replaced before they expire, by a rename of the directory that they link to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;

use crate::config::{authorities_of, config_fault, read_bounded};
use crate::transport::{bearer, tls_config};
use crate::{ClientError, Endpoint};

/// Where a pod finds its own.
pub const SERVICE_ACCOUNT_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The files are read again after this long. Tokens are replaced minutes before they expire.
const FRESH: Duration = Duration::from_secs(10);

/// What the files said when they were read last.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) token: HeaderValue,
}

/// The files, and what they said last.
pub(crate) struct ServiceAccount {
    directory: PathBuf,
    read: Mutex<Read>,
}

struct Read {
    /// When the files were read; `None` when they shall be read again.
    at: Option<Instant>,
    files: Files,
    current: Current,
}

/// The files' bytes. Never printed.
#[derive(PartialEq, Eq)]
struct Files {
    authorities: Vec<u8>,
    token: Vec<u8>,
}

impl ServiceAccount {
    pub(crate) fn open(directory: &Path) -> Result<Self, ClientError> {
        let files = Files::read(directory)?;
        let current = files.parse(directory)?;
        let read = Mutex::new(Read { at: Some(Instant::now()), files, current });
        Ok(Self { directory: directory.to_owned(), read })
    }

    /// What the files say now. While they cannot be read, what they said last: the server decides
    /// whether that still counts.
    pub(crate) fn current(&self) -> Current {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.at.is_none_or(|at| at.elapsed() >= FRESH) {
            read.at = Some(Instant::now());
            if let Err(error) = self.refresh(&mut read) {
                tracing::warn!("the ServiceAccount is not read again: {error}");
            }
        }
        read.current.clone()
    }

    /// The files are read again for the next request.
    pub(crate) fn distrust(&self) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).at = None;
    }

    fn refresh(&self, read: &mut Read) -> Result<(), ClientError> {
        let files = Files::read(&self.directory)?;
        if files != read.files {
            read.current = files.parse(&self.directory)?;
            read.files = files;
        }
        Ok(())
    }
}

impl Files {
    fn read(directory: &Path) -> Result<Self, ClientError> {
        Ok(Self {
            authorities: read_bounded(&directory.join("ca.crt"))?,
            token: read_bounded(&directory.join("token"))?,
        })
    }

    fn parse(&self, directory: &Path) -> Result<Current, ClientError> {
        let fault = |problem: String| config_fault(directory, problem);
        let origin = directory.display().to_string();
        let authorities = authorities_of(&self.authorities, &origin)?;
        let tls = tls_config(&authorities, None).map_err(|error| fault(error.to_string()))?;
        let token = std::str::from_utf8(&self.token).ok().filter(|token| !token.trim().is_empty());
        let token = token.and_then(bearer).ok_or_else(|| fault("the token is not text".into()))?;
        Ok(Current { tls: Arc::new(tls), token })
    }
}

impl Endpoint {
    /// Where a pod reaches the API server by the variables that the kubelet gives it
    /// (`KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT`). The address is that of a Service:
    /// it works only where something else has made it work already.
    pub fn service_url(host: &str, port: &str) -> String {
        match host.contains(':') {
            true => format!("https://[{host}]:{port}"),
            false => format!("https://{host}:{port}"),
        }
    }
}
