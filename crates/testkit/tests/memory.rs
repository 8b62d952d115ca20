//! What the loop of a node keeps in its heap for each Service and endpoint (G16). Bytes as they are
//! asked of the allocator, which are the same on every machine and in every build.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use model::world::{Kind, Object};
use model::{ClusterConfig, EndpointSlice, Service, ServiceBackend};
use reconcile::{Effect, Event, List, Reconciler};
use render::Kernel;
use render::fake::FakeKernel;
use serde_json::{Value, json};
use testkit::objects;

const SERVICES: u32 = 10_000;
/// Endpoints of each Service.
const ENDPOINTS: u32 = 3;
/// What the loop may keep for one Service with its endpoints once the kernel holds all.
struct Limit {
    backend: ServiceBackend,
    bytes_max: i64,
    /// Allocations; each takes some bytes besides.
    allocations_max: i64,
}

#[test]
fn a_service_takes_no_more_memory_than_it_did() {
    let limits = [
        // They were 10,650 in 94 before objects and the elements of sets were packed, and 1,720
        // while plans kept endpoints in trees.
        Limit { backend: ServiceBackend::Nftables, bytes_max: 1_400, allocations_max: 8 },
        // They were 2,158 in 7 while entries of maps lay in trees.
        Limit { backend: ServiceBackend::Ebpf, bytes_max: 1_400, allocations_max: 8 },
    ];
    for Limit { backend, bytes_max, allocations_max } in limits {
        let mut kept = None;
        let taken = measure(|| kept = Some(settled(backend)));
        let loop_ = kept.expect("the loop");
        assert!(loop_.status().converged);
        assert_eq!(loop_.services().len(), SERVICES as usize);
        let each = i64::from(SERVICES);
        let (bytes, allocations) = (taken.bytes_current / each, taken.count_current / each);
        println!(
            "{backend:?}: {bytes} bytes in {allocations} allocations a Service with {ENDPOINTS} \
             endpoints, at most {}",
            taken.bytes_max / each as u64
        );
        assert!(bytes <= bytes_max, "{backend:?}: {bytes} bytes");
        assert!(allocations <= allocations_max, "{backend:?}: {allocations} allocations");
    }
}

fn settled(backend: ServiceBackend) -> Reconciler {
    let config = ClusterConfig { service_backend: backend, ..objects::config() };
    let mut reconciler = Reconciler::new(config.clone());
    let mut kernel = FakeKernel::default();
    reconciler.handle(Event::Facts(objects::facts(1, &config)), Duration::ZERO);
    for (kind, objects) in lists() {
        reconciler.handle(Event::Listed(List::new(kind, objects)), Duration::ZERO);
    }
    loop {
        let effects = reconciler.poll(Duration::ZERO);
        if effects.is_empty() {
            return reconciler;
        }
        for effect in effects {
            let answer = match effect {
                Effect::Observe => Event::Observed(kernel.observe()),
                Effect::Apply(ops) => Event::Applied(kernel.apply(&ops)),
                _ => continue,
            };
            reconciler.handle(answer, Duration::ZERO);
        }
    }
}

fn lists() -> [(Kind, Vec<Object>); 4] {
    let node = |number| Object::Node(Arc::new(objects::node(number, &objects::config())));
    let service = |number| {
        let service: Service = serde_json::from_value(service(number)).expect("a Service");
        Object::Service(Arc::new(service))
    };
    let slice = |number| {
        let slice: EndpointSlice = serde_json::from_value(slice(number)).expect("a slice");
        Object::EndpointSlice(Arc::new(slice))
    };
    [
        (Kind::Node, (1..=3).map(node).collect()),
        (Kind::Service, (0..SERVICES).map(service).collect()),
        (Kind::EndpointSlice, (0..SERVICES).map(slice).collect()),
        (Kind::ServiceCidr, vec![]),
    ]
}

/// As the API server of a cluster sends it, managers of fields and all.
fn service(number: u32) -> Value {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number);
    let name = format!("service-{number}");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": format!("f2f5bd34-3f5a-4f0c-9a8e-{number:012}"),
            "resourceVersion": (100_000 + number).to_string(),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm" },
            "annotations": {
                "meta.helm.sh/release-name": name,
                "meta.helm.sh/release-namespace": "default",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": { "app.kubernetes.io/name": name },
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
        },
        "status": { "loadBalancer": {} },
    })
}

/// As the controller of the cluster writes it.
fn slice(number: u32) -> Value {
    let service = format!("service-{number}");
    let endpoint = |which: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 245, 0, 1)) + number * 3 + which);
        json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node{}", (number + which) % 500),
            "targetRef": {
                "kind": "Pod",
                "name": format!("{service}-6d4cf56db6-abc{which:02}"),
                "namespace": "default",
                "uid": format!("0b9d9a76-7a8f-4a44-8d5c-{number:012}"),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-x7k2p"),
            "generateName": format!("{service}-"),
            "namespace": "default",
            "uid": format!("7c5bd2de-09e2-4f3e-9f0c-{number:012}"),
            "resourceVersion": (200_000 + number).to_string(),
            "generation": 4,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": service,
                "app.kubernetes.io/managed-by": "Helm",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Service",
                "name": service,
                "uid": format!("f2f5bd34-3f5a-4f0c-9a8e-{number:012}"),
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}
