//! Rolling updates of a DaemonSet: old pods go, or new ones are made beside them, as far as
//! `maxUnavailable` and `maxSurge` let.

use std::sync::Arc;

use crate::object::Object;
use crate::share::share;

use super::{Context, Plan};

/// The pods of a node that are not being deleted.
#[derive(Default)]
struct Pair<'a> {
    new: Option<&'a Arc<Object>>,
    old: Option<&'a Arc<Object>>,
}

/// Whether nodes may have an old and a new pod at a time.
pub(super) fn surges(context: &Context<'_>) -> bool {
    context.set.spec.update_strategy.kind != "OnDelete" && limits(context).0 > 0
}

/// With a surge, of several pods of a node at most two stay: the oldest new one while it is not
/// available, and the oldest old one while it is ready.
pub(super) fn keep_two(context: &Context<'_>, running: &[&Arc<Object>], plan: &mut Plan) {
    if running.len() < 2 {
        return;
    }
    let mut pair = Pair::default();
    for pod in running {
        let place = if context.is_updated(pod) { &mut pair.new } else { &mut pair.old };
        match place {
            None => *place = Some(pod),
            Some(_) => plan.delete.push((*pod).clone()),
        }
    }
    if let (Some(new), Some(old)) = (pair.new, pair.old)
        && (!is_ready(old) || context.is_available(new))
    {
        plan.delete.push(old.clone());
    }
}

/// The next step of an update, when every node has what it shall have.
pub(super) fn step(context: &Context<'_>) -> Plan {
    let (max_surge, max_unavailable) = limits(context);
    match max_surge {
        0 => replace(context, max_unavailable),
        _ => surge(context, max_surge),
    }
}

/// `maxSurge` and `maxUnavailable` in pods.
fn limits(context: &Context<'_>) -> (usize, usize) {
    let update = &context.set.spec.update_strategy.rolling_update;
    let wanted = context.wanted();
    let pods = |value: i32| usize::try_from(value).unwrap_or(0);
    let max_surge = pods(share(update.max_surge.as_ref(), 0, wanted, true));
    let max_unavailable = match &update.max_unavailable {
        None => 1,
        value => pods(share(value.as_ref(), 0, wanted, true)),
    };
    // Percentages of no nodes are zero; an update must be able to move.
    let stuck = max_surge == 0 && max_unavailable == 0;
    (max_surge, if stuck { 1 } else { max_unavailable })
}

fn replace(context: &Context<'_>, max_unavailable: usize) -> Plan {
    let mut unavailable = 0;
    let mut delete = Vec::new();
    let mut candidates = Vec::new();
    for pods in context.pods.values() {
        match pair(context, pods) {
            Some(Pair { new: None, old: Some(old) }) if context.is_available(old) => {
                candidates.push(old.clone());
            }
            // It serves nobody, so that its replacement costs nothing.
            Some(Pair { new: None, old: Some(old) }) => {
                delete.push(old.clone());
                unavailable += 1;
            }
            Some(Pair { new: Some(new), old: None }) if context.is_available(new) => {}
            _ => unavailable += 1,
        }
    }
    delete.extend(candidates.into_iter().take(max_unavailable.saturating_sub(unavailable)));
    Plan { delete, create: Vec::new() }
}

fn surge(context: &Context<'_>, max_surge: usize) -> Plan {
    let mut surging = 0;
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    for (node, pods) in &context.pods {
        match pair(context, pods) {
            None => surging += 1,
            Some(Pair { old: None, .. }) => {}
            Some(Pair { new: None, old: Some(old) }) if context.is_available(old) => {
                candidates.push(node.clone());
            }
            Some(Pair { new: None, .. }) => plan.create.push(node.clone()),
            Some(Pair { new: Some(new), old: Some(old) }) => {
                if !context.is_available(old) || context.is_available(new) {
                    plan.delete.push(old.clone());
                } else {
                    surging += 1;
                }
            }
        }
    }
    plan.create.extend(candidates.into_iter().take(max_surge.saturating_sub(surging)));
    plan.create.retain(|node| context.nodes.get(node.as_str()).is_some_and(|place| place.runs));
    plan
}

/// The new and the old pod of a node; `None` where there are several of one kind.
fn pair<'a>(context: &Context<'_>, pods: &'a [Arc<Object>]) -> Option<Pair<'a>> {
    let mut pair = Pair::default();
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        let place = if context.is_updated(pod) { &mut pair.new } else { &mut pair.old };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

fn is_ready(pod: &Object) -> bool {
    pod.pod().is_some_and(|view| view.is_ready())
}
