//! A control plane on loopback, to try kubectl against: `serve DIRECTORY PORT`. The kubeconfig
//! stands in the directory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use controlplane::Options;
use controlplane::pki::{self, KubeconfigRequest, PkiRequest};
use model::{ClusterConfig, Timestamp};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: serve DIRECTORY PORT";
    let directory = PathBuf::from(arguments.next().ok_or(usage)?);
    let port: u16 = arguments.next().ok_or(usage)?.parse()?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let config =
        ClusterConfig { node_cidrs: vec!["127.0.0.0/8".parse()?], ..ClusterConfig::default() };
    let request = PkiRequest {
        config: config.clone(),
        server_addresses: vec![loopback],
        nodes: BTreeMap::new(),
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Timestamp::from_seconds(i64::try_from(since.as_secs())?);
    let pki = pki::ensure(&directory.join(controlplane::PKI_DIRECTORY), &request, now)?;
    let server = format!("https://127.0.0.1:{port}");
    let identity = &pki.admin;
    let request =
        KubeconfigRequest { cluster: "flatnet", user: "admin", server: &server, identity };
    std::fs::write(directory.join("kubeconfig"), pki::kubeconfig_text(&pki, &request)?)?;
    let listen = SocketAddr::new(loopback, port);
    // Endpoints may not be on loopback, so the Service `kubernetes` leads nowhere here.
    let advertised = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)), port);
    let options = Options::new(directory, config, vec![listen], advertised);
    controlplane::run(options, async {
        // Without a handler Ctrl-C ends the program all the same.
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    Ok(())
}
