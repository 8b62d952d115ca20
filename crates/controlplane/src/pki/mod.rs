//! The cluster's own certificate authority, and all that it signs.
//!
//! Everything stands in one directory, mode 0700, files 0600, keys ECDSA P-256. What is there and
//! still good is kept: an `up` after a reboot changes no certificate. A leaf that is missing,
//! damaged, about to expire or without a needed name is made anew; the authority never is, since
//! everything else hangs on it.

mod files;
mod issue;
mod kubeconfig;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::{ClusterConfig, Family, Timestamp, layout};

pub use kubeconfig::{KubeconfigRequest, kubeconfig_text};

use files::{create_directory, write_private};
use issue::{Authority, Leaf, Usage};

/// Common name of the certificate that the API server shows to node runtimes, kubeadm's name.
pub const RUNTIME_CLIENT_NAME: &str = "kube-apiserver-kubelet-client";
/// Common name of the administrator's certificate, kubeadm's name.
pub const ADMIN_NAME: &str = "kubernetes-admin";

/// What the certificates must cover.
#[derive(Clone, Debug)]
pub struct PkiRequest {
    /// The cluster: its domain and the first service address go into the server certificate.
    pub config: ClusterConfig,
    /// The addresses that the API server listens on, besides loopback.
    pub server_addresses: Vec<IpAddr>,
    /// Name and addresses of every node.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

/// A certificate and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The certificates of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePki {
    /// What node programs show to the API server: CN `system:node:NAME`, O `system:nodes`.
    pub client: KeyPairFiles,
    /// What the node's runtime serves with, for the node's addresses.
    pub serving: KeyPairFiles,
}

/// All certificates of a cluster, by their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// The certificate of the authority.
    pub authority: PathBuf,
    /// The API server's serving certificate.
    pub server: KeyPairFiles,
    /// The administrator's client certificate: O `system:masters`.
    pub admin: KeyPairFiles,
    /// What the API server shows to node runtimes: CN [`RUNTIME_CLIENT_NAME`].
    pub runtime_client: KeyPairFiles,
    /// What tokens of ServiceAccounts are signed with.
    pub service_account_key: PathBuf,
    /// Per node name.
    pub nodes: BTreeMap<String, NodePki>,
}

/// Why certificates cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}: {source}; check the permissions and the space of the state directory")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The authority is damaged or incomplete.
    #[error(
        "{path}: {problem}; restore the file from a copy, or remove the directory {directory} to \
         make a new authority (every kubeconfig made so far stops working then)"
    )]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The directory of certificates.
        directory: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("the certificate {name} cannot be made: {problem}")]
    Issue {
        /// Its file's stem.
        name: String,
        /// The library's words.
        problem: String,
    },
}

impl Pki {
    /// The places of all certificates below `directory`, whether they exist or not.
    pub fn at<'a>(directory: &Path, nodes: impl IntoIterator<Item = &'a String>) -> Self {
        let pair = |name: &str| KeyPairFiles {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        let of_node = |node: &String| NodePki {
            client: pair(&format!("node-{node}-client")),
            serving: pair(&format!("node-{node}-serving")),
        };
        Self {
            authority: directory.join("ca.crt"),
            server: pair("apiserver"),
            admin: pair("admin"),
            runtime_client: pair("apiserver-runtime-client"),
            service_account_key: directory.join("sa.key"),
            nodes: nodes.into_iter().map(|node| (node.clone(), of_node(node))).collect(),
        }
    }
}

/// Makes what is missing or no longer good, and says where everything is.
///
/// # Errors
/// [`PkiError`], naming the file and what to do.
pub fn ensure(directory: &Path, request: &PkiRequest, now: Timestamp) -> Result<Pki, PkiError> {
    create_directory(directory)?;
    let authority = Authority::ensure(directory, &request.config.name, now)?;
    let pki = Pki::at(directory, request.nodes.keys());
    let leaf = |files: &KeyPairFiles, leaf: Leaf| authority.ensure_leaf(files, &leaf, now);
    leaf(&pki.server, server_leaf(request))?;
    leaf(&pki.admin, client_leaf(ADMIN_NAME, layout::GROUP_MASTERS))?;
    leaf(&pki.runtime_client, client_leaf(RUNTIME_CLIENT_NAME, layout::GROUP_MASTERS))?;
    if files::read(&pki.service_account_key)?.is_none() {
        write_private(&pki.service_account_key, &issue::new_key("sa")?)?;
    }
    for (node, files) in &pki.nodes {
        let name = format!("system:node:{node}");
        leaf(&files.client, client_leaf(&name, layout::GROUP_NODES))?;
        leaf(
            &files.serving,
            Leaf {
                common_name: name,
                organization: layout::GROUP_NODES.to_owned(),
                usage: Usage::Server,
                names: vec![node.clone()],
                addresses: request.nodes.get(node).cloned().unwrap_or_default(),
            },
        )?;
    }
    Ok(pki)
}

fn client_leaf(common_name: &str, organization: &str) -> Leaf {
    Leaf {
        common_name: common_name.to_owned(),
        organization: organization.to_owned(),
        usage: Usage::Client,
        names: Vec::new(),
        addresses: Vec::new(),
    }
}

/// The names under which clients reach the API server, in pods and outside.
fn server_leaf(request: &PkiRequest) -> Leaf {
    let config = &request.config;
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()];
    addresses.extend(&request.server_addresses);
    addresses.extend(
        [Family::V4, Family::V6].into_iter().filter_map(|family| config.kubernetes_address(family)),
    );
    addresses.sort();
    addresses.dedup();
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut names: Vec<String> = names.map(str::to_owned).into();
    names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    Leaf {
        common_name: "kube-apiserver".to_owned(),
        organization: String::new(),
        usage: Usage::Server,
        names,
        addresses,
    }
}
