//! The host's ways to pods and Services, through the first node. Those to ranges that ServiceCIDR
//! objects add (KEP-1880) come and go with the objects: the control plane's process, which is on
//! the host, follows them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use client::{Client, ResourcePath, WatchEvent, WatchSpec, Watcher};
use ipnet::IpNet;
use model::cluster::overlap;
use model::world::{Kind, Object};
use model::{ClusterConfig, ServiceCidr, World};
use netlink::{Netlink, Route};

use super::fabric::ROUTE_PROTOCOL;
use super::paths::Paths;
use super::preflight;
use super::spec::ClusterSpec;

/// What could not be done is tried again this often: another network may have left the range.
const RETRY: Duration = Duration::from_secs(5);

/// Makes the routes to the configured ranges.
///
/// # Errors
/// The kernel's, naming the range.
pub fn create(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    let left_out = converge(paths, spec, &spec.config)?;
    match left_out.first() {
        Some(reason) => anyhow::bail!("{reason}"),
        None => Ok(()),
    }
}

/// Keeps the routes to the ranges that there are at any time, until it is dropped.
pub async fn follow(paths: &Paths, spec: &ClusterSpec) -> Infallible {
    let mut watcher = watch(paths).await;
    let mut world = World::default();
    let mut told = BTreeSet::new();
    loop {
        let retry = !told.is_empty();
        tokio::select! {
            event = watcher.next() => if !take_in(&mut world, event) { continue },
            () = tokio::time::sleep(RETRY), if retry => {}
        }
        // What is wrong with a range itself is told by the agents, who have Events for it.
        let (config, _) = plan::service_ranges::extended(&world, &spec.config);
        let faults: BTreeSet<String> = match converge(paths, spec, &config) {
            Ok(left_out) => left_out.into_iter().collect(),
            Err(error) => [format!("{error:#}")].into(),
        };
        faults.difference(&told).for_each(|fault| tracing::warn!("{fault}"));
        told = faults;
    }
}

async fn watch(paths: &Paths) -> Watcher<ServiceCidr> {
    let path = ResourcePath::new("networking.k8s.io/v1", "servicecidrs");
    loop {
        match Client::from_kubeconfig(&paths.kubeconfig()).await {
            Ok(client) => return client.watch(WatchSpec::new(path)),
            Err(error) => tracing::warn!("the host gets no routes to further ranges: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether the world is another one now.
fn take_in(world: &mut World, event: WatchEvent<ServiceCidr>) -> bool {
    match event {
        // A whole list: what is not in it is gone (invariant 2).
        WatchEvent::Listed(objects) => {
            *world = World::default();
            objects.into_iter().for_each(|object| set(world, object));
        }
        WatchEvent::Applied(object) => set(world, object),
        WatchEvent::Deleted(object) => {
            world.remove(Kind::ServiceCidr, &object.metadata.key());
        }
        // The watch goes on by itself; what was seen still stands.
        WatchEvent::Lost { .. } | WatchEvent::Resumed => return false,
    }
    true
}

fn set(world: &mut World, object: ServiceCidr) {
    world.set(Object::ServiceCidr(object.into()));
}

/// Makes and removes routes over the host's link until they are those to the ranges of `config`.
/// Answers why some were left out.
fn converge(paths: &Paths, spec: &ClusterSpec, config: &ClusterConfig) -> Result<Vec<String>> {
    let mut host = Netlink::open()?;
    let link = host.require_link(&paths.host_link())?.index;
    let foreign = preflight::foreign_routes(&mut host, paths)?;
    let (routes, left_out) = wanted(spec, config, link, &foreign);
    let mut present = host.routes(Some(ROUTE_PROTOCOL))?;
    // The link is ours, and so is every such route over it.
    present.retain(|route| route.link_index == Some(link));
    let is_at = |all: &[Route], one: &Route| {
        all.iter().any(|other| (other.destination, other.gateway) == (one.destination, one.gateway))
    };
    for route in present.iter().filter(|route| !is_at(&routes, route)) {
        host.delete_route(route)
            .with_context(|| format!("removing the host's route to {}", route.destination))?;
    }
    for route in routes.iter().filter(|route| !is_at(&present, route)) {
        host.add_route(route)
            .with_context(|| format!("routing {} from the host", route.destination))?;
    }
    Ok(left_out)
}

/// The routes to the ranges of `config`, and why there is none to some. What the host reaches
/// elsewhere goes on being reached there: a range of the API hides no network of the machine.
fn wanted(
    spec: &ClusterSpec,
    config: &ClusterConfig,
    link: u32,
    foreign: &[(IpNet, String)],
) -> (Vec<Route>, Vec<String>) {
    let (mut routes, mut left_out) = (Vec::new(), Vec::new());
    let addresses = spec.nodes.first().map(|node| node.addresses.as_slice()).unwrap_or_default();
    for range in config.pod_cidrs.iter().chain(&config.service_cidrs) {
        let of_family = |address: &&IpAddr| address.is_ipv4() == range.addr().is_ipv4();
        let other = foreign.iter().find(|(other, _)| overlap(range, other));
        let reason = match (other, addresses.iter().find(of_family)) {
            (Some((other, link)), _) => format!("it overlaps the route to {other} on {link}"),
            (None, None) => "no node has an address of its family".to_owned(),
            (None, Some(next_hop)) => {
                routes.push(Route::via(*range, *next_hop, link, ROUTE_PROTOCOL));
                continue;
            }
        };
        left_out.push(format!(
            "the host does not reach the cluster's range {range}: {reason}; nodes and pods reach it \
             all the same"
        ));
    }
    (routes, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    /// S-13, KEP-1880: ranges come and go.
    #[test]
    fn every_range_of_nodes_family_is_routed_to_the_first_node_but_those_of_others() {
        let spec = ClusterSpec::new(ClusterConfig::default(), 2, 6443).expect("a cluster");
        let mut config = spec.config.clone();
        for more in ["10.200.0.0/24", "192.168.7.0/24", "fd00:10:96::/112"] {
            config.service_cidrs.push(range(more));
        }
        let foreign = [(range("192.168.0.0/16"), "eth0".to_owned())];
        let (routes, left_out) = wanted(&spec, &config, 7, &foreign);
        let via: Vec<String> = routes
            .iter()
            .map(|route| {
                format!("{} {:?} {:?}", route.destination, route.gateway, route.link_index)
            })
            .collect();
        let first = spec.nodes[0].addresses[0];
        let expected = ["10.244.0.0/16", "10.96.0.0/16", "10.200.0.0/24"]
            .map(|range| format!("{range} {:?} {:?}", Some(first), Some(7)));
        assert_eq!(via, expected);
        assert!(left_out[0].contains("192.168.0.0/16 on eth0"), "{left_out:?}");
        assert!(left_out[1].contains("of its family"), "{left_out:?}");
        assert_eq!(left_out.len(), 2, "{left_out:?}");
    }

    #[test]
    fn lists_replace_and_single_objects_change_what_is_known() {
        let object = |name: &str| {
            let mut object = ServiceCidr::default();
            object.metadata.name = name.into();
            object
        };
        let mut world = World::default();
        for (event, changed, names) in [
            (WatchEvent::Listed(vec![object("a"), object("b")]), true, &["a", "b"][..]),
            (WatchEvent::Applied(object("c")), true, &["a", "b", "c"]),
            (WatchEvent::Deleted(object("a")), true, &["b", "c"]),
            (WatchEvent::Lost { reason: "gone".into() }, false, &["b", "c"]),
            (WatchEvent::Listed(vec![object("b")]), true, &["b"]),
        ] {
            let text = format!("{event:?}");
            assert_eq!(take_in(&mut world, event), changed, "{text}");
            let known: Vec<&str> =
                world.service_cidrs().map(|object| object.metadata.name.as_str()).collect();
            assert_eq!(known, names, "{text}");
        }
    }
}
