//! LimitRanger: a new pod gets what the LimitRanges of its namespace give, and keeps to them.

use model::Quantity;
use serde_json::Value;

use crate::kinds::limits::{Amounts, LIMIT_RANGE, amounts};
use crate::kinds::pod::POD;
use crate::kinds::quota::add;
use crate::{Status, Store, json};

/// The annotation that says what was given.
const ANNOTATION: &str = "/metadata/annotations/kubernetes.io~1limit-ranger";
/// The lists of containers, and how their members are called.
const CONTAINERS: [(&str, &str); 2] =
    [("/spec/containers", "container"), ("/spec/initContainers", "init container")];

impl Store {
    /// Fills in what the LimitRanges of a namespace give, and refuses what they forbid.
    pub(super) fn admit_limits(&self, namespace: &str, pod: &mut Value) -> Result<(), Status> {
        let mut ranges = self.head_objects(LIMIT_RANGE.storage);
        ranges.retain(|range| range.key.namespace == namespace);
        let mut told = Vec::new();
        let limits = || ranges.iter().flat_map(|range| json::items(&range.value, "/spec/limits"));
        for limit in limits().filter(|limit| json::text(limit, "/type") == "Container") {
            give(limit, pod, &mut told);
        }
        if !told.is_empty() {
            let text = format!("LimitRanger plugin set: {}", told.join("; "));
            json::set(pod, ANNOTATION, text);
        }
        for range in &ranges {
            let mut faults = Vec::new();
            for limit in json::items(&range.value, "/spec/limits") {
                check(limit, pod, &mut faults);
            }
            let why = match faults.as_slice() {
                [] => continue,
                [one] => one.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            return Err(Status::forbidden(&POD, json::text(pod, "/metadata/name"), why));
        }
        Ok(())
    }
}

/// Gives the containers of a pod what they do not say themselves.
fn give(limit: &Value, pod: &mut Value, told: &mut Vec<String>) {
    for (list, called) in CONTAINERS {
        for container in json::items_mut(pod, list) {
            let name = json::text(container, "/name").to_owned();
            for (from, to, word) in
                [("/defaultRequest", "requests", "request"), ("/default", "limits", "limit")]
            {
                let place = format!("/resources/{to}");
                let mut given = Vec::new();
                for (resource, amount) in json::members(limit, from) {
                    let Some(target) = json::object_mut(container, &place) else { continue };
                    if !target.contains_key(resource) {
                        target.insert(resource.to_owned(), amount.clone());
                        given.push(resource);
                    }
                }
                if !given.is_empty() {
                    given.sort_unstable();
                    told.push(format!("{} {word} for {called} {name}", given.join(", ")));
                }
            }
        }
    }
}

fn check(limit: &Value, pod: &Value, faults: &mut Vec<String>) {
    match json::text(limit, "/type") {
        "Container" => {
            for container in CONTAINERS.into_iter().flat_map(|(list, _)| json::items(pod, list)) {
                let side = |side: &str| of_container(container, side);
                Checked { limit, requests: side("requests"), limits: side("limits") }.run(faults);
            }
        }
        "Pod" => {
            let side = |side: &str| of_pod(pod, side);
            Checked { limit, requests: side("requests"), limits: side("limits") }.run(faults);
        }
        _ => {}
    }
}

/// What a pod asks for, or may use: all its containers together, or more where an init container
/// takes more before they run. Those that stay beside them count throughout (KEP-753).
pub(super) fn of_pod(pod: &Value, side: &str) -> Amounts {
    let (mut staying, mut most) = (Amounts::new(), Amounts::new());
    for container in json::items(pod, "/spec/initContainers") {
        let own = of_container(container, side);
        let mut now = staying.clone();
        add(&mut now, &own);
        if json::text(container, "/restartPolicy") == "Always" {
            staying = now.clone();
        }
        raise(&mut most, &now);
    }
    for container in json::items(pod, "/spec/containers") {
        add(&mut staying, &of_container(container, side));
    }
    raise(&mut most, &staying);
    most
}

/// The requests or the limits of a container.
pub(super) fn of_container(container: &Value, side: &str) -> Amounts {
    amounts(container, &format!("/resources/{side}"))
}

/// Raises each amount to that of another list.
fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = most.entry(name.clone()).or_insert(*amount);
        *known = (*known).max(*amount);
    }
}

/// One limit with what a container or pod says.
struct Checked<'a> {
    limit: &'a Value,
    requests: Amounts,
    limits: Amounts,
}

impl Checked<'_> {
    fn run(&self, faults: &mut Vec<String>) {
        let kind = json::text(self.limit, "/type");
        for (name, wanted) in amounts(self.limit, "/min") {
            let fault = self.below(&name, wanted);
            faults.extend(
                fault.map(|fault| format!("minimum {name} usage per {kind} is {wanted}{fault}")),
            );
        }
        for (name, wanted) in amounts(self.limit, "/max") {
            let fault = self.above(&name, wanted);
            faults.extend(
                fault.map(|fault| format!("maximum {name} usage per {kind} is {wanted}{fault}")),
            );
        }
        for (name, wanted) in amounts(self.limit, "/maxLimitRequestRatio") {
            let fault = self.apart(&name, wanted);
            faults.extend(fault.map(|fault| {
                format!("{name} max limit to request ratio per {kind} is {wanted}, but {fault}")
            }));
        }
    }

    fn below(&self, name: &str, wanted: Quantity) -> Option<String> {
        let is_low = |amount: &&Quantity| **amount < wanted;
        match (self.requests.get(name), self.limits.get(name)) {
            (None, _) => Some(".  No request is specified".to_owned()),
            (Some(request), _) if is_low(&request) => Some(format!(", but request is {request}")),
            (_, limit) => limit.filter(is_low).map(|limit| format!(", but limit is {limit}")),
        }
    }

    fn above(&self, name: &str, wanted: Quantity) -> Option<String> {
        let is_high = |amount: &&Quantity| **amount > wanted;
        match (self.limits.get(name), self.requests.get(name)) {
            (None, _) => Some(".  No limit is specified".to_owned()),
            (Some(limit), _) if is_high(&limit) => Some(format!(", but limit is {limit}")),
            (_, request) => {
                request.filter(is_high).map(|request| format!(", but request is {request}"))
            }
        }
    }

    fn apart(&self, name: &str, wanted: Quantity) -> Option<String> {
        let given = |amounts: &Amounts| amounts.get(name).filter(|one| !one.is_zero()).copied();
        let none = |word: &str| Some(format!("no {word} is specified or {word} is 0"));
        let Some(request) = given(&self.requests) else { return none("request") };
        let Some(limit) = given(&self.limits) else { return none("limit") };
        let ratio = limit.ratio(&request).filter(|ratio| *ratio > wanted.ones())?;
        Some(format!("provided ratio is {ratio:.6}"))
    }
}
