//! What one change costs in the pure path, by the number of Services. Medians, so that a busy
//! machine shows less.
//!
//! ```text
//! ./x bench
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::kinds::{Endpoint, EndpointPort, SERVICE_NAME_LABEL, ServicePort};
use model::world::Object;
use model::{EndpointSlice, NamespacedName, Service, World};
use render::Observed;
use testkit::objects;

/// Numbers of Services.
const SIZES: [u32; 2] = [1_000, 10_000];
/// Endpoints of each Service.
const ENDPOINTS: u8 = 3;
/// Runs of one measurement.
const RUNS: usize = 9;

fn main() {
    println!("{:<44}{}", "median of one run", SIZES.map(|size| format!("{size:>14}")).concat());
    let columns: Vec<Vec<(&str, Duration)>> = SIZES.iter().map(|size| measure(*size)).collect();
    for row in 0..columns[0].len() {
        let cells: Vec<String> = columns
            .iter()
            .map(|column| format!("{:>14}", format!("{:.1?}", column[row].1)))
            .collect();
        println!("{:<44}{}", columns[0][row].0, cells.concat());
    }
}

fn measure(services: u32) -> Vec<(&'static str, Duration)> {
    let config = objects::config();
    let facts = objects::facts(1, &config);
    let mut world = world(services);
    let (desired, _) = plan::node(&world, &config, &facts);
    let program = render::render(&desired, &config, &facts);
    let mut observed = Observed::default();
    let ops = render::diff(&program, &observed);
    let load = median(|| {
        let mut empty = Observed::default();
        for op in &ops {
            empty.apply(op).expect("the fake takes what diff says");
        }
        black_box(&empty);
    });
    for op in &ops {
        observed.apply(op).expect("the fake takes what diff says");
    }
    let key = NamespacedName::new("default", "service-7");
    let mut changed = desired.clone();
    world.set(Object::EndpointSlice(Arc::new(slice(7, ENDPOINTS - 1))));
    let (plan, _) = plan::services::plan(&world, &config, &facts, &key);
    changed.services.insert(key.clone(), plan.expect("a plan"));
    let next = render::render(&changed, &config, &facts);
    vec![
        ("plan one Service", median(|| plan::services::plan(&world, &config, &facts, &key))),
        ("plan everything", median(|| plan::node(&world, &config, &facts))),
        ("render everything", median(|| render::render(&desired, &config, &facts))),
        ("diff of nothing changed", median(|| render::diff(&program, &observed))),
        ("diff of one Service changed", median(|| render::diff(&next, &observed))),
        ("diff of the first load", median(|| render::diff(&program, &Observed::default()))),
        ("first load into the fake kernel", load),
        ("zone of cluster DNS", median(|| plan::zone::zone(&world, &config))),
    ]
}

fn median<T>(mut work: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            black_box(work());
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn world(services: u32) -> World {
    let mut world = World::default();
    for number in 1..=3 {
        world.set(Object::Node(Arc::new(objects::node(number, &objects::config()))));
    }
    for number in 0..services {
        let mut service = Service::default();
        service.metadata.namespace = "default".into();
        service.metadata.name = format!("service-{number}");
        let address = u32::from(std::net::Ipv4Addr::new(10, 96, 1, 0)) + number;
        service.spec.cluster_ips = vec![std::net::Ipv4Addr::from(address).to_string()];
        service.spec.ports = vec![ServicePort { port: 80, ..ServicePort::default() }];
        world.set(Object::Service(Arc::new(service)));
        world.set(Object::EndpointSlice(Arc::new(slice(number, ENDPOINTS))));
    }
    world
}

fn slice(number: u32, endpoints: u8) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    slice.metadata.namespace = "default".into();
    slice.metadata.name = format!("service-{number}-1");
    let service = format!("service-{number}");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), service);
    slice.address_type = "IPv4".into();
    slice.ports = vec![EndpointPort { port: Some(8080), ..EndpointPort::default() }];
    for endpoint in 0..endpoints {
        let host = number as u8;
        slice.endpoints.push(Endpoint {
            addresses: vec![format!("10.244.{}.{}", 1 + endpoint, host.max(2))],
            node_name: format!("node{}", 1 + endpoint),
            ..Endpoint::default()
        });
    }
    slice
}
