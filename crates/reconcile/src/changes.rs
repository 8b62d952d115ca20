//! What became of the changes that the API told: kube-proxy's counters, and how long endpoints
//! take from the change that made them to the kernel.

use std::collections::{BTreeSet, VecDeque};

use model::world::{DirtyKey, Kind, Object};
use model::{NamespacedName, Protocol, Timestamp};
use plan::services::{Backends, Frontend, ServicePlan};

/// The annotation of an EndpointSlice that says when the pod or Service changed that made it
/// change (KEP-752).
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Trigger times that are kept until they are taken; of more the oldest go.
pub const TRIGGER_TIMES_MAX: usize = 4096;

/// Numbers of now and since the start, as kube-proxy counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeCounts {
    /// Changes of Services since the start.
    pub services_total: u64,
    /// Services whose changes the kernel does not hold yet.
    pub services_pending: usize,
    /// Changes of EndpointSlices since the start.
    pub endpoints_total: u64,
    /// Services of which EndpointSlices changed that the kernel does not hold yet.
    pub endpoints_pending: usize,
    /// Ports of Services whose ClusterIP drops here: `internalTrafficPolicy: Local`, and endpoints
    /// on other nodes alone.
    pub no_local_internal: usize,
    /// The same of `externalTrafficPolicy: Local` for clients outside the cluster.
    pub no_local_external: usize,
}

/// What is on its way into the kernel.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    services_total: u64,
    endpoints_total: u64,
    services_pending: BTreeSet<NamespacedName>,
    endpoints_pending: BTreeSet<NamespacedName>,
    waiting: VecDeque<Timestamp>,
    programmed: VecDeque<Timestamp>,
    no_local_internal: usize,
    no_local_external: usize,
}

impl Changes {
    /// Objects of a kind came, changed or went, and touched these keys. A list counts as one change
    /// of each.
    pub(crate) fn note(&mut self, kind: Kind, touched: &[DirtyKey]) {
        let services = touched.iter().filter_map(|key| match key {
            DirtyKey::Service(service) => Some(service.clone()),
            DirtyKey::Network | DirtyKey::Pod(_) => None,
        });
        let (total, pending) = match kind {
            Kind::Service => (&mut self.services_total, &mut self.services_pending),
            Kind::EndpointSlice => (&mut self.endpoints_total, &mut self.endpoints_pending),
            Kind::Node | Kind::ServiceCidr | Kind::Pod => return,
        };
        *total += touched.len() as u64;
        pending.extend(services);
    }

    /// A slice came or changed, and said what triggered that ([`trigger_of`]).
    pub(crate) fn note_trigger(&mut self, time: Option<Timestamp>) {
        if let Some(time) = time {
            push(&mut self.waiting, time);
        }
    }

    /// The kernel holds what is planned.
    pub(crate) fn finish(&mut self) {
        self.services_pending.clear();
        self.endpoints_pending.clear();
        for time in self.waiting.drain(..) {
            push(&mut self.programmed, time);
        }
    }

    /// The plan of one Service is another one.
    pub(crate) fn replan(&mut self, former: Option<&ServicePlan>, plan: Option<&ServicePlan>) {
        let (internal, external) = former.map(without_local).unwrap_or_default();
        self.no_local_internal = self.no_local_internal.saturating_sub(internal);
        self.no_local_external = self.no_local_external.saturating_sub(external);
        let (internal, external) = plan.map(without_local).unwrap_or_default();
        self.no_local_internal += internal;
        self.no_local_external += external;
    }

    /// The trigger times of what the kernel has come to hold since this was asked last.
    pub(crate) fn take_programmed(&mut self) -> VecDeque<Timestamp> {
        std::mem::take(&mut self.programmed)
    }

    pub(crate) fn counts(&self) -> ChangeCounts {
        ChangeCounts {
            services_total: self.services_total,
            services_pending: self.services_pending.len(),
            endpoints_total: self.endpoints_total,
            endpoints_pending: self.endpoints_pending.len(),
            no_local_internal: self.no_local_internal,
            no_local_external: self.no_local_external,
        }
    }
}

/// When that happened which made a slice come or change. What made it go its annotation does not
/// tell.
pub(crate) fn trigger_of(object: &Object) -> Option<Timestamp> {
    let Object::EndpointSlice(slice) = object else { return None };
    Timestamp::parse(slice.metadata.annotations.get(TRIGGER_TIME_ANNOTATION)?)
}

fn push(times: &mut VecDeque<Timestamp>, time: Timestamp) {
    if times.len() >= TRIGGER_TIMES_MAX {
        times.pop_front();
    }
    times.push_back(time);
}

/// How many ports of a Service drop at its ClusterIP, and how many drop clients from outside.
fn without_local(plan: &ServicePlan) -> (usize, usize) {
    let mut internal: BTreeSet<(&str, Protocol)> = BTreeSet::new();
    let mut external = internal.clone();
    for (frontend, plan) in &plan.frontends {
        let port = (plan.port_name.as_str(), frontend.protocol());
        let is_dropped = |backends: &Backends| *backends == Backends::Drop;
        if matches!(frontend, Frontend::ClusterIp { .. }) {
            if is_dropped(&plan.backends) {
                internal.insert(port);
            }
        } else if is_dropped(plan.outside.as_ref().unwrap_or(&plan.backends)) {
            external.insert(port);
        }
    }
    (internal.len(), external.len())
}
