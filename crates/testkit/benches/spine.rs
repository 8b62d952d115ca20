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
use model::world::{Kind, Object};
use model::{EndpointSlice, NamespacedName, Service, World};
use reconcile::{Effect, Event, List, Reconciler};
use render::fake::FakeKernel;
use render::{Kernel, Observed};
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
        ("an endpoint's event, from bytes to ops", event_to_ops(services)),
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

/// G5's part before the kernel: the loop with its world, from the bytes of a slice that lost or
/// gained an endpoint to the operations. What the kernel answers is taken in between two runs.
fn event_to_ops(services: u32) -> Duration {
    let config = objects::config();
    let mut reconciler = Reconciler::new(config.clone());
    let mut kernel = FakeKernel::default();
    reconciler.handle(Event::Facts(objects::facts(1, &config)), Duration::ZERO);
    for (kind, objects) in lists(services) {
        reconciler.handle(Event::Listed(List::new(kind, objects)), Duration::ZERO);
    }
    settle(&mut reconciler, &mut kernel);
    let mut endpoints = ENDPOINTS;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..RUNS {
        endpoints = if endpoints == ENDPOINTS { ENDPOINTS - 1 } else { ENDPOINTS };
        let bytes = serde_json::to_vec(&slice(7, endpoints)).expect("a slice");
        let start = Instant::now();
        let slice: EndpointSlice = serde_json::from_slice(&bytes).expect("a slice");
        let event = Event::Present(Object::EndpointSlice(Arc::new(slice)));
        reconciler.handle(event, Duration::ZERO);
        let effects = reconciler.poll(Duration::ZERO);
        times.push(start.elapsed());
        let applies = effects.iter().any(|effect| matches!(effect, Effect::Apply(_)));
        assert!(applies, "the event changes nothing: {effects:?}");
        carry_out(&mut reconciler, &mut kernel, effects);
        settle(&mut reconciler, &mut kernel);
    }
    times.sort();
    times[RUNS / 2]
}

fn settle(reconciler: &mut Reconciler, kernel: &mut FakeKernel) {
    loop {
        let effects = reconciler.poll(Duration::ZERO);
        if effects.is_empty() {
            return;
        }
        carry_out(reconciler, kernel, effects);
    }
}

fn carry_out(reconciler: &mut Reconciler, kernel: &mut FakeKernel, effects: Vec<Effect>) {
    for effect in effects {
        let answer = match effect {
            Effect::Observe => Event::Observed(kernel.observe()),
            Effect::Apply(ops) => Event::Applied(kernel.apply(&ops)),
            _ => continue,
        };
        reconciler.handle(answer, Duration::ZERO);
    }
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
    for (_, objects) in lists(services) {
        for object in objects {
            world.set(object);
        }
    }
    world
}

fn lists(services: u32) -> [(Kind, Vec<Object>); 4] {
    let node = |number| Object::Node(Arc::new(objects::node(number, &objects::config())));
    let service = |number| Object::Service(Arc::new(service(number)));
    let slice = |number| Object::EndpointSlice(Arc::new(slice(number, ENDPOINTS)));
    [
        (Kind::Node, (1..=3).map(node).collect()),
        (Kind::Service, (0..services).map(service).collect()),
        (Kind::EndpointSlice, (0..services).map(slice).collect()),
        (Kind::ServiceCidr, vec![]),
    ]
}

fn service(number: u32) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = format!("service-{number}");
    let address = u32::from(std::net::Ipv4Addr::new(10, 96, 1, 0)) + number;
    service.spec.cluster_ips = vec![std::net::Ipv4Addr::from(address).to_string()];
    service.spec.ports = vec![ServicePort { port: 80, ..ServicePort::default() }];
    service
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
