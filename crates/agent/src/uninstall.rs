//! Takes everything of ours from a node: what stands in `render::owned`, and our files.
//! What belongs to others stays, and so do kernel parameters but those of connection tracking: others
//! may rely on them meanwhile. Every step takes absence for success, so that it can be run again.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kernel::edge::Edge;
use model::{ClusterConfig, Family, layout};
use netlink::Netlink;
use render::ebpf::NodeObserved;
use render::ipvs::IpvsObserved;
use render::net::{LOOPBACK, NetProgram, NetState};
use render::{Kernel, Program};

use crate::health::STATUS_SOCKET;
use crate::options::Places;
use crate::{install, lock, parameters};

/// Removes everything. With `purge` also what a reinstalled flatnet, or another plugin that reads
/// host-local's directory, would go on with: addresses, records of pods, keys. Answers what was
/// removed, a line each.
///
/// # Errors
/// When an agent runs here, or what could not be removed; it goes on from there when run again.
pub fn uninstall(places: &Places, purge: bool) -> Result<Vec<String>> {
    let lock = lock::take(&places.run)?;
    let mut removed = Vec::new();
    // First what lets runtimes add pods.
    remove_file(&places.cni_configuration.join(layout::CNI_CONFIGURATION_FILE), &mut removed)?;
    remove_file(&places.cni_plugin.join(layout::CNI_PLUGIN), &mut removed)?;
    remove_pod_links(&mut removed)?;
    removed.extend(Edge::open()?.repair(&[])?);
    remove_own(&mut removed)?;
    remove_dns_addresses(install::remembered(&places.run), &mut removed)?;
    removed.extend(parameters::restore(&places.run)?);
    if purge {
        remove_tree(&places.ipam.join(layout::CNI_NETWORK), &mut removed)?;
        remove_tree(&places.records, &mut removed)?;
        remove_tree(&places.wireguard_keys, &mut removed)?;
    }
    remove_tree(&places.dns_zone, &mut removed)?;
    let sockets = [STATUS_SOCKET, layout::DNS_FEED_SOCKET, layout::DNS_CONTROL_SOCKET];
    for name in sockets.into_iter().chain([install::REMEMBERED, parameters::FILE]) {
        remove_file(&places.run.join(name), &mut removed)?;
    }
    lock.remove(&places.run)?;
    Ok(removed)
}

/// The node's ends of pods' links, by their alias.
fn remove_pod_links(removed: &mut Vec<String>) -> Result<()> {
    let mut netlink = Netlink::open()?;
    for link in netlink.links()? {
        let alias = link.alias.as_deref().unwrap_or_default();
        if alias.starts_with(layout::POD_LINK_ALIAS_PREFIX) {
            match netlink.delete_link(link.index) {
                Err(error) if !error.is_absent() => return Err(error.into()),
                _ => removed.push(format!("link {} of a pod", link.name)),
            }
        }
    }
    Ok(())
}

/// Links, routes, neighbours and tables: the way from what is there to nothing.
fn remove_own(removed: &mut Vec<String>) -> Result<()> {
    let net = NetProgram { state: Some(NetState::default()), ..NetProgram::default() };
    let nothing = Program { net, ..Program::default() };
    let mut kernel = kernel::Linux::open()?;
    let mut present = kernel.observe()?;
    let rows = render::inventory::differences(&nothing, &present);
    if crate::names::remove()? {
        removed.push("eBPF program that answers for DNS".to_owned());
    }
    if crate::forwarding::remove()? {
        removed.push("eBPF programs that forward packets of pods".to_owned());
    }
    // Nobody is left who could let its flows come to their end.
    kernel.remove_ipvs()?;
    kernel.remove_ebpf()?;
    *present.ipvs = IpvsObserved::default();
    *present.ebpf = NodeObserved::default();
    let ops = render::diff(&nothing, &present);
    let faults: Vec<String> = kernel
        .apply(&ops)
        .into_iter()
        .filter_map(|result| result.err())
        .map(|error| error.to_string())
        .collect();
    if !faults.is_empty() {
        bail!("not everything could be removed: {}", faults.join("; "));
    }
    removed.extend(rows.into_iter().map(|row| format!("{} {}", row.kind.name(), row.name)));
    Ok(())
}

/// Of loopback's addresses those of ours have a mark, and are gone. That of the Service may have been
/// made without one, and is nobody else's; one beside it may have been there before us.
fn remove_dns_addresses(config: Option<ClusterConfig>, removed: &mut Vec<String>) -> Result<()> {
    let Some(config) = config else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    let index = netlink.require_link(LOOPBACK)?.index;
    let ours = [Family::V4, Family::V6].map(|family| config.dns_address(family));
    for found in netlink.addresses(Some(index))? {
        if ours.contains(&Some(found.address.addr())) {
            netlink.delete_address(index, found.address)?;
            removed.push(format!("address {} on {LOOPBACK}", found.address));
        }
    }
    Ok(())
}

fn remove_file(path: &Path, removed: &mut Vec<String>) -> Result<()> {
    note(fs::remove_file(path), path, removed)
}

fn remove_tree(path: &Path, removed: &mut Vec<String>) -> Result<()> {
    note(fs::remove_dir_all(path), path, removed)
}

fn note(result: std::io::Result<()>, path: &Path, removed: &mut Vec<String>) -> Result<()> {
    match result {
        Ok(()) => removed.push(path.display().to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
    }
    Ok(())
}
