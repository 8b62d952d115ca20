//! What is measured of a Service's endpoints when somebody asks: flows from the kernel's
//! connection tracking, and how long endpoints take to answer. Nothing of it costs a packet more
//! while nobody asks; what cannot be known is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use kernel::nft::flows::{self, Destination, FlowCounts};
use kernel::round_trip;
use model::{ClusterConfig, Family, Protocol, ServiceBackend};
use plan::services::{Backends, Frontend, RangeFrontend, ServicePlan};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::services::ServiceReport;

/// Endpoints of one Service that are tried at once, and at all.
const PROBES_MAX: usize = 64;
/// An endpoint that has not answered after this long has no round trip.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// What to measure, as the loop plans it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measurement {
    /// What flows of the Service go to, where connection tracking sees them.
    destinations: BTreeSet<Destination>,
    /// Endpoints whose flows pass where nobody counts them.
    unseen: BTreeSet<IpAddr>,
    /// TCP endpoints to try, one an address.
    probes: BTreeMap<IpAddr, SocketAddr>,
}

impl Measurement {
    pub(crate) fn new(plan: &ServicePlan, config: &ClusterConfig, own_pods: &[IpNet]) -> Self {
        let endpoints: BTreeSet<(Protocol, SocketAddr)> = endpoints(plan).collect();
        let mut measurement = Self::default();
        if config.service_backend == ServiceBackend::Ebpf {
            // Translated at the socket or before connection tracking, which sees the endpoint's
            // own address; between pods of one node the bridge leads past it.
            let is_own = |address: IpAddr| own_pods.iter().any(|range| range.contains(&address));
            for (protocol, endpoint) in endpoints.iter().filter(|(_, it)| it.port() != 0) {
                if is_own(endpoint.ip()) {
                    measurement.unseen.insert(endpoint.ip());
                } else {
                    let ports = (endpoint.port(), endpoint.port());
                    let to = destination(*protocol, endpoint.ip(), ports);
                    measurement.destinations.insert(to);
                }
            }
        } else {
            measurement.destinations = destinations(plan, config).collect();
        }
        for (_, endpoint) in endpoints.iter().filter(|(it, _)| *it == Protocol::Tcp) {
            // The plan has no addresses that only the node itself reaches.
            if endpoint.port() != 0 {
                measurement.probes.entry(endpoint.ip()).or_insert(*endpoint);
            }
        }
        measurement
    }

    /// Measures, and writes it into the report.
    pub(crate) async fn carry_out(self, report: &mut ServiceReport) {
        let Self { destinations, unseen, probes } = self;
        let are_seen = !destinations.is_empty();
        let reading = tokio::task::spawn_blocking(move || flows::by_endpoint(&destinations));
        let round_trips = measure_round_trips(probes).await;
        let counts = match reading.await {
            Ok(Ok(counts)) if are_seen => Some(counts),
            Ok(Ok(_)) | Err(_) => None,
            Ok(Err(error)) => {
                tracing::warn!("flows of Services are not counted: {error}");
                None
            }
        };
        for endpoint in &mut report.endpoints {
            let Ok(address) = endpoint.address.parse::<IpAddr>() else { continue };
            endpoint.round_trip_us = round_trips.get(&address).copied();
            let counts = counts.as_ref().filter(|_| !unseen.contains(&address));
            if let Some(counts) = counts {
                let FlowCounts { flows, packets, bytes } =
                    counts.get(&address).copied().unwrap_or_default();
                (endpoint.flows, endpoint.packets, endpoint.bytes) = (Some(flows), packets, bytes);
            }
        }
    }
}

/// Microseconds by address of those that answer.
async fn measure_round_trips(probes: BTreeMap<IpAddr, SocketAddr>) -> BTreeMap<IpAddr, u64> {
    let mut tasks = JoinSet::new();
    for endpoint in probes.into_values().take(PROBES_MAX) {
        tasks.spawn(async move {
            let connecting = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(endpoint));
            let connection = connecting.await.ok()?.ok()?;
            let round_trip = round_trip::of_connection(&connection)?;
            Some((endpoint.ip(), u64::try_from(round_trip.as_micros()).ok()?))
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

fn endpoints(plan: &ServicePlan) -> impl Iterator<Item = (Protocol, SocketAddr)> + '_ {
    let ports = plan.frontends.iter().map(|(frontend, plan)| (frontend.protocol(), plan));
    let ranges = plan.ranges.iter().map(|(range, plan)| (range.protocol, plan));
    ports.chain(ranges).flat_map(|(protocol, plan)| {
        let views = [Some(&plan.backends), plan.outside.as_ref()];
        let endpoints = views.into_iter().flatten().filter_map(|view| match view {
            Backends::Endpoints(endpoints) => Some(endpoints),
            Backends::Reject | Backends::Drop => None,
        });
        endpoints.flatten().map(move |endpoint| (protocol, *endpoint))
    })
}

/// What clients send to. Questions to the DNS address are not tracked.
fn destinations<'a>(
    plan: &'a ServicePlan,
    config: &'a ClusterConfig,
) -> impl Iterator<Item = Destination> + 'a {
    let is_dns = |address: &IpAddr| config.dns_address(Family::of(address)) == Some(*address);
    let ports = plan.frontends.keys().map(|frontend| match *frontend {
        Frontend::ClusterIp { address, protocol, port }
        | Frontend::External { address, protocol, port } => {
            destination(protocol, address, (port, port))
        }
        Frontend::NodePort { family, protocol, port } => {
            Destination { protocol, family, address: None, first_port: port, last_port: port }
        }
    });
    let ranges = plan.ranges.keys().map(|range| {
        let RangeFrontend { address, protocol, first, last, .. } = *range;
        destination(protocol, address, (first, last))
    });
    ports.chain(ranges).filter(move |it| !it.address.as_ref().is_some_and(is_dns))
}

fn destination(
    protocol: Protocol,
    address: IpAddr,
    (first_port, last_port): (u16, u16),
) -> Destination {
    let family = Family::of(&address);
    Destination { protocol, family, address: Some(address), first_port, last_port }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use plan::services::FrontendPlan;

    use super::*;
    use crate::services::EndpointReport;

    fn socket(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn plan_of(cluster_ip: &str, endpoints: &[&str]) -> ServicePlan {
        let at = socket(cluster_ip);
        let (protocol, port) = (Protocol::Tcp, at.port());
        let frontend = Frontend::ClusterIp { address: at.ip(), protocol, port };
        let backends = Backends::Endpoints(endpoints.iter().map(|one| socket(one)).collect());
        ServicePlan {
            frontends: [(frontend, FrontendPlan::new(backends))].into(),
            ..ServicePlan::default()
        }
    }

    /// Each backend leads flows past connection tracking in its own way, or not at all.
    #[test]
    fn flows_are_looked_for_where_connection_tracking_sees_them() {
        let plan = plan_of("10.96.0.7:80", &["10.244.1.5:8080", "10.244.2.5:8080"]);
        let own_pods = ["10.244.1.0/24".parse().expect("a range")];
        for (service_backend, destination, unseen) in [
            (ServiceBackend::Nftables, "10.96.0.7:80", None),
            (ServiceBackend::Iptables, "10.96.0.7:80", None),
            (ServiceBackend::Ipvs, "10.96.0.7:80", None),
            (ServiceBackend::Ebpf, "10.244.2.5:8080", Some("10.244.1.5")),
        ] {
            let config = ClusterConfig { service_backend, ..ClusterConfig::default() };
            let measurement = Measurement::new(&plan, &config, &own_pods);
            let found: Vec<SocketAddr> = measurement
                .destinations
                .iter()
                .map(|it| SocketAddr::new(it.address.expect("one address"), it.first_port))
                .collect();
            assert_eq!(found, [socket(destination)], "{service_backend}");
            let unseen: BTreeSet<IpAddr> =
                unseen.into_iter().map(|it: &str| it.parse().expect("an address")).collect();
            assert_eq!(measurement.unseen, unseen, "{service_backend}");
        }
        let dns = plan_of("10.96.0.10:53", &["10.244.1.5:5353"]);
        let measurement = Measurement::new(&dns, &ClusterConfig::default(), &[]);
        assert!(measurement.destinations.is_empty(), "questions are not tracked");
    }

    #[tokio::test]
    async fn who_answers_has_a_round_trip_and_who_does_not_has_none() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let answering = listener.local_addr().expect("an address");
        let refusing = SocketAddr::from(([127, 0, 0, 2], answering.port()));
        let probes = [answering, refusing].map(|it| (it.ip(), it)).into();
        let measurement = Measurement { probes, ..Measurement::default() };
        let endpoint = |it: SocketAddr| EndpointReport {
            address: it.ip().to_string(),
            ..EndpointReport::default()
        };
        let endpoints = [answering, refusing].map(endpoint).into();
        let mut report = ServiceReport { endpoints, ..ServiceReport::default() };
        measurement.carry_out(&mut report).await;
        let told = report.endpoints.iter().map(|it| (it.round_trip_us.is_some(), it.flows));
        // Nothing was counted, and so nothing is told of flows.
        assert_eq!(told.collect::<Vec<_>>(), [(true, None), (false, None)]);
    }
}
