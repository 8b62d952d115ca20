//! A node's agent: the real loop on a fake kernel, fed by watches that misbehave in every way that
//! a watch is allowed to, and by some that are not.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use controllers::Kind as ApiKind;
use model::ClusterConfig;
use model::world::{Kind, Object};
use nix::errno::Errno;
use reconcile::{Event, KINDS, List};
use render::fake::FakeKernel;
use render::nft::NftObserved;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::{EventType, WatchEvent, Watcher};

use super::api::Api;
use crate::node::NodeLoop;
use crate::objects;
use crate::random::Generator;

/// Operations ahead of which a fault may be laid.
const FAULT_OPS_MAX: usize = 4;
/// Watch events that one delivery takes at most.
const DELIVERY_EVENTS_MAX: usize = 3;

/// What can go wrong at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The watch breaks and begins anew with a list.
    Relist,
    /// A list from the past, as another API server's cache gives it; then its later events.
    StaleList,
    /// Events come twice.
    Duplicate,
    /// The kernel refuses an operation soon.
    Refuse,
    /// The agent dies between two operations and starts again.
    Crash,
    /// Somebody flushes our nftables tables.
    Flush,
}

/// All faults.
pub const FAULTS: [Fault; 6] =
    [Fault::Relist, Fault::StaleList, Fault::Duplicate, Fault::Refuse, Fault::Crash, Fault::Flush];

/// An agent and its watches.
pub struct Agent {
    /// The loop and its kernel.
    pub node: NodeLoop<FakeKernel>,
    /// Whether somebody changed the kernel since it was read last: then it may refuse more than
    /// what was made to fail.
    pub is_disturbed: bool,
    watches: BTreeMap<Kind, Watch>,
}

struct Watch {
    watcher: Watcher,
    /// The list before the last one, with its revision.
    earlier: (Vec<Object>, u64),
}

impl Agent {
    /// The agent of the n-th node, just started.
    ///
    /// # Errors
    /// When the store refuses a list.
    pub fn start(api: &Api, config: &ClusterConfig, number: u8) -> Result<Self> {
        let facts = objects::facts(number, config);
        let node = NodeLoop::new(config.clone(), facts, FakeKernel::default());
        let mut agent = Self { node, is_disturbed: false, watches: BTreeMap::new() };
        for kind in KINDS {
            agent.relist(api, kind)?;
        }
        Ok(agent)
    }

    /// Takes some waiting events of one kind; answers whether there were any.
    ///
    /// # Errors
    /// When an object of the store cannot be read.
    pub fn deliver(&mut self, api: &Api, kind: Kind, random: &mut Generator) -> Result<bool> {
        self.take(api, kind, 1 + random.below(DELIVERY_EVENTS_MAX), 1)
    }

    fn take(&mut self, api: &Api, kind: Kind, count: usize, times: usize) -> Result<bool> {
        let watch = self.watches.get_mut(&kind).context("every kind is watched")?;
        let Ok(events) = api.store.watch_next(&mut watch.watcher, count) else {
            // 410: the window has moved on.
            self.relist(api, kind)?;
            return Ok(true);
        };
        for _ in 0..times {
            for event in &events {
                let WatchEvent::Object(what, object) = event else { continue };
                let object = read(kind, &object.value)?;
                self.node.handle(match what {
                    EventType::Deleted => Event::Absent { kind, key: object.key() },
                    EventType::Added | EventType::Modified => Event::Present(object),
                });
            }
        }
        Ok(!events.is_empty())
    }

    /// A list and a new watch after it.
    ///
    /// # Errors
    /// When an object of the store cannot be read.
    pub fn relist(&mut self, api: &Api, kind: Kind) -> Result<()> {
        let (objects, revision) = list(api, kind)?;
        let watcher =
            api.watch(api_kind(kind), revision).map_err(|status| anyhow!("{status:?}"))?;
        let earlier = (objects.clone(), revision);
        self.watches.insert(kind, Watch { watcher, earlier });
        self.node.handle(Event::Listed(List::new(kind, objects)));
        Ok(())
    }

    /// Lets one thing go wrong.
    ///
    /// # Errors
    /// When an object of the store cannot be read.
    pub fn fail(&mut self, api: &Api, fault: Fault, random: &mut Generator) -> Result<()> {
        let kind = KINDS[random.below(KINDS.len())];
        match fault {
            Fault::Relist => self.relist(api, kind),
            Fault::StaleList => {
                let watch = self.watches.get_mut(&kind).context("every kind is watched")?;
                let (objects, revision) = watch.earlier.clone();
                let watcher = api.watch(api_kind(kind), revision);
                watch.watcher = watcher.map_err(|status| anyhow!("{status:?}"))?;
                self.node.handle(Event::Listed(List::new(kind, objects)));
                Ok(())
            }
            Fault::Duplicate => self.take(api, kind, DELIVERY_EVENTS_MAX, 2).map(|_| ()),
            Fault::Refuse => {
                let errno = [Errno::EBUSY, Errno::ENOBUFS][random.below(2)];
                self.node.kernel.faults.insert(random.below(FAULT_OPS_MAX), errno as i32);
                Ok(())
            }
            Fault::Crash => {
                self.node.crash_during_step(random.below(FAULT_OPS_MAX));
                KINDS.into_iter().try_for_each(|kind| self.relist(api, kind))
            }
            Fault::Flush => {
                self.node.kernel.state.nft = NftObserved::default();
                self.is_disturbed = true;
                self.node.handle(Event::KernelChanged);
                Ok(())
            }
        }
    }
}

/// All objects of a kind as the network reads them, and the revision of the list.
///
/// # Errors
/// When an object of the store cannot be read.
pub fn list(api: &Api, kind: Kind) -> Result<(Vec<Object>, u64)> {
    let (values, revision) = api.list(api_kind(kind)).map_err(|status| anyhow!("{status:?}"))?;
    let objects: Result<Vec<Object>> = values.iter().map(|value| read(kind, value)).collect();
    Ok((objects?, revision))
}

fn read(kind: Kind, value: &Value) -> Result<Object> {
    fn typed<T: DeserializeOwned>(value: &Value) -> Result<Arc<T>> {
        let read = T::deserialize(value);
        Ok(Arc::new(read.with_context(|| format!("cannot read {value}"))?))
    }
    Ok(match kind {
        Kind::Node => Object::Node(typed(value)?),
        Kind::Service => Object::Service(typed(value)?),
        Kind::EndpointSlice => Object::EndpointSlice(typed(value)?),
        Kind::ServiceCidr => Object::ServiceCidr(typed(value)?),
        Kind::Pod => Object::Pod(typed(value)?),
    })
}

fn api_kind(kind: Kind) -> ApiKind {
    match kind {
        Kind::Node => ApiKind::Node,
        Kind::Service => ApiKind::Service,
        Kind::EndpointSlice => ApiKind::EndpointSlice,
        Kind::ServiceCidr => ApiKind::ServiceCidr,
        Kind::Pod => ApiKind::Pod,
    }
}
