//! The objects that every cluster has: made at the start, and again when somebody removes them.

use std::net::{IpAddr, SocketAddr};

use client::{Client, ClientError, ResourcePath};
use model::{ClusterConfig, Family};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::roles;

/// The namespaces that always exist.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// One object that must exist, and the parts of it that must not differ.
pub(crate) struct Wanted {
    /// Where it stands.
    pub collection: ResourcePath,
    /// What it is.
    pub object: Value,
    /// The top-level fields that are put right when they differ.
    pub kept: &'static [&'static str],
}

/// Makes what is missing and puts right what differs. Writes nothing when all is well.
///
/// # Errors
/// The first request that failed.
pub(crate) async fn ensure(
    client: &Client,
    config: &ClusterConfig,
    advertised: SocketAddr,
) -> Result<(), ClientError> {
    // What stands in a namespace comes after it; the rest goes together, to share its commits.
    for wanted in [NAMESPACES.into_iter().map(namespace).collect(), wanted(config, advertised)] {
        let mut tasks = JoinSet::new();
        for one in wanted {
            let client = client.clone();
            tasks.spawn(async move { ensure_one(&client, &one).await });
        }
        while let Some(ended) = tasks.join_next().await {
            // A task of ours that panicked has said so; the next round tries again.
            ended.unwrap_or(Ok(()))?;
        }
    }
    Ok(())
}

async fn ensure_one(client: &Client, wanted: &Wanted) -> Result<(), ClientError> {
    let name = wanted.object["metadata"]["name"].as_str().unwrap_or_default();
    let path = wanted.collection.clone().name(name);
    let Some(mut found) = client.get_optional::<Value>(&path).await? else {
        return match client.create::<_, Value>(&wanted.collection, &wanted.object).await {
            // Somebody was faster: the next round looks at theirs.
            Err(error) if error.is_already_exists() => Ok(()),
            created => created.map(|_| ()),
        };
    };
    let differing: Vec<&str> = wanted
        .kept
        .iter()
        .copied()
        .filter(|field| found.get(field) != wanted.object.get(field))
        .collect();
    let labels = missing_labels(&found, &wanted.object);
    if differing.is_empty() && labels.is_empty() {
        return Ok(());
    }
    for (name, value) in labels {
        found["metadata"]["labels"][name] = value.clone();
    }
    if let (Some(found), Some(wanted)) = (found.as_object_mut(), wanted.object.as_object()) {
        for field in differing {
            found.insert(field.to_owned(), wanted.get(field).cloned().unwrap_or_default());
        }
    }
    match client.update::<_, Value>(&path, &found).await {
        Err(error) if error.is_conflict() => Ok(()),
        updated => updated.map(|_| ()),
    }
}

/// The labels that an object should have and has not: others are found by them.
fn missing_labels<'a>(found: &Value, wanted: &'a Value) -> Vec<(&'a str, &'a Value)> {
    let labels = wanted["metadata"]["labels"].as_object().into_iter().flatten();
    let labels = labels.filter(|(name, value)| found["metadata"]["labels"][*name] != **value);
    labels.map(|(name, value)| (name.as_str(), value)).collect()
}

fn wanted(config: &ClusterConfig, advertised: SocketAddr) -> Vec<Wanted> {
    let mut all = roles::wanted();
    all.push(default_service_cidr(config));
    all.push(storage_class());
    all.extend(store::SYSTEM_PRIORITY_CLASSES.map(|(name, value)| priority_class(name, value)));
    let family = config.service_cidrs.first().map(|range| Family::of(&range.addr()));
    let Some(family) = family else { return all };
    if let Some(address) = config.kubernetes_address(family) {
        all.push(kubernetes_service(address));
        all.push(kubernetes_endpoint_slice(advertised));
        all.push(kubernetes_endpoints(advertised));
    }
    all.extend(dns_service(config));
    all
}

fn namespace(name: &str) -> Wanted {
    Wanted {
        collection: ResourcePath::new("v1", "namespaces"),
        object: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        kept: &[],
    }
}

/// Says which ranges are configured. It adds none to them (`store::alloc`), so that it may be of
/// another time: its ranges cannot be changed.
fn default_service_cidr(config: &ClusterConfig) -> Wanted {
    Wanted {
        collection: ResourcePath::new("networking.k8s.io/v1", "servicecidrs"),
        object: json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": store::alloc::DEFAULT_SERVICE_CIDR},
            "spec": {"cidrs": config.service_cidrs},
        }),
        kept: &[],
    }
}

/// What the cluster's own pods name, so that they come before all others.
fn priority_class(name: &str, value: i64) -> Wanted {
    let about = match name {
        "system-node-critical" => {
            "Used for system critical pods that must not be moved from their current node."
        }
        _ => {
            "Used for system critical pods that must run in the cluster, but can be moved to \
             another node if necessary."
        }
    };
    Wanted {
        collection: ResourcePath::new("scheduling.k8s.io/v1", "priorityclasses"),
        object: json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": about,
        }),
        kept: &[],
    }
}

/// The class of claims that name none: directories of the node on which the first pod runs.
fn storage_class() -> Wanted {
    Wanted {
        collection: ResourcePath::new("storage.k8s.io/v1", "storageclasses"),
        object: json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": controllers::volumes::PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        }),
        kept: &[],
    }
}

/// How pods find the API: `KUBERNETES_SERVICE_HOST` and `kubernetes.default.svc`.
fn kubernetes_service(address: IpAddr) -> Wanted {
    Wanted {
        collection: ResourcePath::new("v1", "services").namespace("default"),
        object: json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address,
                "clusterIPs": [address],
                "ports": [
                    {"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443},
                ],
            },
        }),
        kept: &[],
    }
}

/// The Service has no selector, so its slice is ours.
fn kubernetes_endpoint_slice(advertised: SocketAddr) -> Wanted {
    Wanted {
        collection: ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default"),
        object: json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": Family::of(&advertised.ip()),
            "endpoints": [
                {"addresses": [advertised.ip()], "conditions": {"ready": true}},
            ],
            "ports": [{"name": "https", "port": advertised.port(), "protocol": "TCP"}],
        }),
        kept: &["endpoints", "ports"],
    }
}

/// The older form, which kubectl 1.20 describes.
fn kubernetes_endpoints(advertised: SocketAddr) -> Wanted {
    Wanted {
        collection: ResourcePath::new("v1", "endpoints").namespace("default"),
        object: json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{
                "addresses": [{"ip": advertised.ip()}],
                "ports": [{"name": "https", "port": advertised.port(), "protocol": "TCP"}],
            }],
        }),
        kept: &["subsets"],
    }
}

/// Where pods ask names. Every node answers on the address itself, so it needs no endpoints.
fn dns_service(config: &ClusterConfig) -> Option<Wanted> {
    let families = config.service_cidrs.iter().map(|range| Family::of(&range.addr()));
    let addresses: Vec<IpAddr> = families.filter_map(|family| config.dns_address(family)).collect();
    Some(Wanted {
        collection: ResourcePath::new("v1", "services").namespace("kube-system"),
        object: json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {
                    "k8s-app": "kube-dns",
                    "kubernetes.io/cluster-service": "true",
                    "kubernetes.io/name": "flatnet-dns",
                },
            },
            "spec": {
                "type": "ClusterIP",
                "ipFamilyPolicy": "PreferDualStack",
                "clusterIP": addresses.first()?,
                "clusterIPs": addresses,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                ],
            },
        }),
        kept: &[],
    })
}
