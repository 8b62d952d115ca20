//! metrics.k8s.io: what nodes and pods use. A runtime counts CPU time only as a sum, so that a rate
//! needs two samples. They are taken when somebody asks: whoever asks first, or after a long while,
//! waits for [`MIN_WINDOW_MS`]; who asks again gets what was used since the last time. Nothing runs
//! while nobody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::Body;
use hyper::{Response, StatusCode};
use serde_json::Value;
use store::metrics::{self, Sample};
use store::selector::{FieldSelector, LabelSelector};
use store::{List, ListOptions, Object, Status, registry};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::negotiate;
use super::objects::{include, show, show_list};
use super::proxy::Proxy;
use super::route::Target;
use super::{Api, Call};
use crate::writer::Shared;

/// Where runtimes tell of their use: the kubelet's path.
const SUMMARY: &str = "/stats/summary";
/// Shortest time that a rate is taken over, milliseconds.
const MIN_WINDOW_MS: u64 = 1_000;
/// Longest one, milliseconds: over more it would say little of now.
const MAX_WINDOW_MS: u64 = 60_000;
/// For how long an answer serves all who ask, milliseconds: so often at most a node is asked.
const FRESH_MS: u64 = 5_000;
/// Longest wait for a node, milliseconds. One that does not answer is left out.
const NODE_TIMEOUT_MS: u64 = 5_000;
/// Nodes that are asked at a time.
const MAX_ASKED: usize = 32;
/// Largest answer of a node, bytes; a full node's has some 100 KiB.
const MAX_SUMMARY_BYTES: usize = 4 << 20;
/// Nodes whose samples are kept. With more they are forgotten and taken anew.
const MAX_METERS: usize = 1_024;

/// An earlier and a later sample of a node.
type Samples = (Sample, Sample);

/// The samples of all nodes.
pub(crate) struct Meters {
    proxy: Arc<Proxy>,
    nodes: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Meter>>>>,
    permits: Arc<Semaphore>,
}

/// The last samples of one node, and when they were taken. Who holds it asks the node.
#[derive(Default)]
struct Meter(Option<(Instant, Arc<Samples>)>);

impl Meters {
    pub fn new(proxy: Arc<Proxy>) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_ASKED));
        Self { proxy, nodes: Mutex::default(), permits }
    }

    /// Samples of nodes, all at once. Those that do not answer are absent.
    async fn measure(
        &self,
        shared: &Shared,
        nodes: BTreeSet<String>,
    ) -> BTreeMap<String, Arc<Samples>> {
        let mut asked = JoinSet::new();
        for node in nodes {
            let address = match self.proxy.address_of(shared, &node) {
                Ok(address) => address,
                Err(status) => {
                    tracing::debug!(node, "not measured: {}", status.message);
                    continue;
                }
            };
            let (meter, proxy) = (self.meter(&node), Arc::clone(&self.proxy));
            let permits = Arc::clone(&self.permits);
            asked.spawn(async move {
                let _permit = permits.acquire().await.ok()?;
                match meter.lock().await.samples(&proxy, address).await {
                    Ok(samples) => Some((node, samples)),
                    Err(problem) => {
                        tracing::debug!(node, "not measured: {problem}");
                        None
                    }
                }
            });
        }
        let mut found = BTreeMap::new();
        while let Some(measured) = asked.join_next().await {
            found.extend(measured.ok().flatten());
        }
        found
    }

    fn meter(&self, node: &str) -> Arc<tokio::sync::Mutex<Meter>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= MAX_METERS && !nodes.contains_key(node) {
            nodes.clear();
        }
        Arc::clone(nodes.entry(node.to_owned()).or_default())
    }
}

impl Meter {
    async fn samples(&mut self, proxy: &Proxy, address: IpAddr) -> Result<Arc<Samples>, String> {
        let known = self.0.as_ref().map(|(taken_at, samples)| (taken_at.elapsed(), samples));
        let earlier = match known {
            Some((age, samples)) if age < Duration::from_millis(FRESH_MS) => {
                return Ok(Arc::clone(samples));
            }
            Some((age, samples)) if age <= Duration::from_millis(MAX_WINDOW_MS) => {
                samples.1.clone()
            }
            _ => {
                let sample = sample(proxy, address).await?;
                tokio::time::sleep(Duration::from_millis(MIN_WINDOW_MS)).await;
                sample
            }
        };
        let samples = Arc::new((earlier, sample(proxy, address).await?));
        self.0 = Some((Instant::now(), Arc::clone(&samples)));
        Ok(samples)
    }
}

async fn sample(proxy: &Proxy, address: IpAddr) -> Result<Sample, String> {
    let limit = Duration::from_millis(NODE_TIMEOUT_MS);
    let document = proxy.document(address, SUMMARY, MAX_SUMMARY_BYTES);
    let document = tokio::time::timeout(limit, document).await;
    let document = document.map_err(|_| format!("no answer within {NODE_TIMEOUT_MS} ms"))?;
    Sample::from_summary(&document.map_err(|status| status.message)?)
        .map_err(|problem| format!("the answer of {address} is no summary: {problem}"))
}

impl Api {
    /// `GET` of NodeMetrics and PodMetrics.
    pub(super) async fn metrics(
        &self,
        call: &Call,
        target: &Target,
    ) -> Result<Response<Body>, Status> {
        let accepted = negotiate::accepted(&call.headers, false)?.as_text();
        let include = include(&call.query())?;
        let measured = self.measured(call, target).await?;
        if target.name.is_empty() {
            let list = List {
                resource: target.resource,
                revision: 0,
                items: measured,
                continue_token: None,
                remaining: None,
            };
            return Ok(show_list(&list, accepted, include));
        }
        let (namespace, name) = (&target.namespace, &target.name);
        let absent = || metrics::not_available(target.resource, namespace, name);
        show(StatusCode::OK, measured.first().ok_or_else(absent)?, accepted, include)
    }

    /// What is known of the nodes or pods that a request names.
    async fn measured(&self, call: &Call, target: &Target) -> Result<Vec<Arc<Object>>, Status> {
        let of_nodes = target.resource == &metrics::NODES;
        let source = registry::find("", "v1", target.resource.plural);
        let source = source.ok_or_else(Status::unknown_path)?;
        let (namespace, name) = (&target.namespace, &target.name);
        let objects = if name.is_empty() {
            let query = call.query();
            let options = ListOptions {
                namespace: namespace.clone(),
                labels: LabelSelector::parse(query.get("labelSelector"))?,
                fields: FieldSelector::parse(target.resource, query.get("fieldSelector"))?,
                ..ListOptions::default()
            };
            self.shared.read().list(source, &options)?.items
        } else {
            let found = self.shared.read().get(source, namespace, name);
            vec![found.map_err(|_| metrics::not_available(target.resource, namespace, name))?]
        };
        let node_of = |object: &Object| match of_nodes {
            true => object.key.name.clone(),
            false => {
                let node = object.value.pointer("/spec/nodeName").and_then(Value::as_str);
                node.unwrap_or_default().to_owned()
            }
        };
        let nodes = objects.iter().map(|object| node_of(object)).filter(|node| !node.is_empty());
        let samples = self.meters.measure(&self.shared, nodes.collect()).await;
        let measured = objects.iter().filter_map(|object| {
            let samples = samples.get(&node_of(object))?;
            match of_nodes {
                true => metrics::of_node(object, samples),
                false => metrics::of_pod(object, samples),
            }
        });
        Ok(measured.map(Arc::new).collect())
    }
}
