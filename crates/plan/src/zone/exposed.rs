//! Which objects of the cluster have names: the options `namespaces`, `namespace_labels`, `labels`,
//! `noendpoints` and `endpoint_pod_names` of CoreDNS's plugin `kubernetes`.

use std::collections::BTreeSet;

use model::Service;
use model::selector::LabelSelector;
use serde::{Deserialize, Serialize};

/// What a DNS worker's configuration chooses; left out, everything that the specification names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exposure {
    /// The namespaces whose Services and pods have names.
    pub namespaces: Namespaces,
    /// The labels of Services that have names.
    pub labels: LabelSelector,
    /// Whether endpoints have none, nor headless Services, which are nothing else.
    pub without_endpoints: bool,
    /// Whether an endpoint without a hostname is called by its pod.
    pub endpoint_pod_names: bool,
}

/// A choice of namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespaces {
    /// All of them.
    #[default]
    All,
    /// Those with these names.
    Named(BTreeSet<String>),
    /// Those with these labels.
    Labelled(LabelSelector),
}

/// A choice, and what it comes to in the cluster as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exposed {
    /// The choice.
    pub exposure: Exposure,
    /// The namespaces that have the labels of [`Namespaces::Labelled`]; of no meaning for others.
    pub labelled: BTreeSet<String>,
}

impl Exposed {
    /// Whether names of a namespace's Services and pods are there.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        match &self.exposure.namespaces {
            Namespaces::All => true,
            Namespaces::Named(names) => names.contains(namespace),
            Namespaces::Labelled(_) => self.labelled.contains(namespace),
        }
    }

    /// Whether a Service's names are there.
    pub fn has_service(&self, service: &Service) -> bool {
        self.has_namespace(&service.metadata.namespace)
            && self.exposure.labels.matches(&service.metadata.labels)
            && !(self.exposure.without_endpoints && service.is_headless())
    }
}
