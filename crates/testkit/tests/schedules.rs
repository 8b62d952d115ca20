//! whatever a watch does, the end is a function of the final objects alone. A schedule has one
//! node's loop on a fake kernel, and an API that lists and watches serve in every way
//! that they may: late, in any order between kinds, twice, with gaps that a list closes later, from
//! the past, shrunken. Meanwhile the kernel refuses, the agent dies, somebody flushes its tables.
//!
//! `FLATNET_SEED=N` runs one seed, as a failure prints it; `FLATNET_SEEDS=N` runs so many. Whole
//! clusters, with their store and controllers, are `simulation.rs`'s. Bookmarks bring a node's loop
//! nothing: they are the client's (`client/tests/watch.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use model::kinds::ServiceCidr;
use model::world::{Kind, Object};
use model::{ClusterConfig, NamespacedName, ServiceBackend, World};
use nix::errno::Errno;
use reconcile::{Event, HOLD, KINDS};
use render::fake::FakeKernel;
use render::nft::NftObserved;
use testkit::node::NodeLoop;
use testkit::random::{self, Choices, Generator};
use testkit::{objects, verdict};

/// Schedules of an ordinary run: those of a seed follow each other at one node.
const SCHEDULES: u64 = SEEDS * SCHEDULES_A_SEED;
const SEEDS: u64 = 400;
const SCHEDULES_A_SEED: u64 = 25;
/// What happens in one schedule.
const STEPS: usize = 16;
/// Worlds whose objects may be present in a schedule, and bytes that decide one of them.
const WORLDS: u64 = 3;
const WORLD_BYTES: usize = 200;
/// Events that one delivery takes at most.
const DELIVERY_EVENTS_MAX: usize = 3;
/// Bytes that decide the packet that is looked at in the end, where rules of nftables carry out
/// Services.
const PACKET_BYTES: usize = 16;
/// Ahead of so many operations the kernel refuses one, or the agent dies.
const OPERATIONS_MAX: usize = 6;
const BACKENDS: [ServiceBackend; 4] = [
    ServiceBackend::Nftables,
    ServiceBackend::Iptables,
    ServiceBackend::Ebpf,
    ServiceBackend::Ipvs,
];
/// What may happen at a step, and how often beside the others.
const HAPPENINGS: [(Happening, usize); 13] = [
    (Happening::Change, 14),
    (Happening::Delivery, 12),
    (Happening::Work, 8),
    (Happening::Twice, 2),
    (Happening::Dropped, 2),
    (Happening::Gone, 2),
    (Happening::Past, 2),
    (Happening::Shrunken, 2),
    (Happening::Pause, 2),
    (Happening::Refusal, 2),
    (Happening::Crash, 1),
    (Happening::Flush, 1),
    (Happening::Facts, 1),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// An object of the API comes, changes or goes.
    Change,
    /// Some events of a kind arrive.
    Delivery,
    /// The loop acts.
    Work,
    /// Events arrive twice.
    Twice,
    /// Events are lost; the watch begins anew with a list some time later.
    Dropped,
    /// 410 Gone: a list, and a new watch after it.
    Gone,
    /// A list from the past, and then its later events.
    Past,
    /// A list that lacks objects which are there; a whole one comes some time later.
    Shrunken,
    /// Time passes.
    Pause,
    /// The kernel refuses an operation soon.
    Refusal,
    /// The agent dies between two operations, and the next one starts.
    Crash,
    /// Somebody flushes the tables of nftables.
    Flush,
    /// The node has another address for a while.
    Facts,
}

/// What schedules came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    schedules: u64,
    happened: BTreeMap<Happening, u64>,
    /// Lists that were held back.
    held: u64,
    operations: u64,
    /// Schedules at whose end there were Services.
    with_services: u64,
}

#[test]
fn the_end_is_a_function_of_the_final_objects_alone() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("FLATNET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLATNET_SEEDS").unwrap_or(SEEDS),
    };
    let report = run_all(&seeds);
    println!("{report:?}");
    if seeds.end - seeds.start >= SEEDS {
        // Schedules in which nothing happens show nothing.
        assert!(report.schedules >= SCHEDULES, "{report:?}");
        assert_eq!(report.happened.len(), HAPPENINGS.len(), "{report:?}");
        assert!(report.held > SEEDS / 10, "{report:?}");
        assert!(report.with_services > SCHEDULES / 2, "{report:?}");
    }
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| run(seed).expect("schedules");
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(11));
}

/// The schedules of all seeds, on every processor; seeds that fail are told.
fn run_all(seeds: &Range<u64>) -> Report {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut all = Report::default();
    std::thread::scope(|scope| {
        let start = |first: usize| {
            let mine = seeds.clone().skip(first).step_by(threads);
            scope.spawn(move || mine.map(run_or_tell).fold(Report::default(), Report::and))
        };
        let started: Vec<_> = (0..threads).map(start).collect();
        for thread in started {
            let report = thread.join().expect("every schedule ends as its objects say");
            all = std::mem::take(&mut all).and(report);
        }
    });
    all
}

fn run_or_tell(seed: u64) -> Report {
    let again = "cargo test -p testkit --test schedules";
    run(seed).unwrap_or_else(|error| {
        panic!("seed {seed}: {error:#}\nagain: FLATNET_SEED={seed} {again}")
    })
}

impl Report {
    fn and(mut self, other: Self) -> Self {
        for (happening, count) in other.happened {
            *self.happened.entry(happening).or_default() += count;
        }
        self.schedules += other.schedules;
        self.held += other.held;
        self.operations += other.operations;
        self.with_services += other.with_services;
        self
    }
}

/// Runs the schedules of a seed. After each the node comes to rest, and is compared.
fn run(seed: u64) -> Result<Report> {
    let mut schedule = Schedule::new(seed);
    for number in 0..SCHEDULES_A_SEED {
        for step in 0..STEPS {
            schedule.step().with_context(|| format!("schedule {number}, step {step}"))?;
        }
        schedule.come_to_rest().with_context(|| format!("after schedule {number}"))?;
        schedule.check().with_context(|| format!("after schedule {number}"))?;
        schedule.report.schedules += 1;
    }
    Ok(schedule.report)
}

struct Schedule {
    random: Generator,
    /// What may be present.
    candidates: Vec<Object>,
    served: BTreeMap<Kind, Served>,
    node: NodeLoop<FakeKernel>,
    report: Report,
}

/// One kind as the API serves it, and how far the node's watch of it is.
#[derive(Default)]
struct Served {
    /// All changes: an object's new value, or that it is gone.
    log: Vec<(NamespacedName, Option<Object>)>,
    /// Changes that the node has heard of.
    heard: usize,
    /// The node was told less than happened: the watch ends with a list.
    lacks: bool,
}

impl Served {
    /// The objects after so many changes.
    fn list(&self, changes: usize) -> Vec<Object> {
        let mut present = BTreeMap::new();
        for (key, value) in self.log.iter().take(changes) {
            match value {
                Some(object) => drop(present.insert(key, object)),
                None => drop(present.remove(key)),
            }
        }
        present.into_values().cloned().collect()
    }

    /// The next events, at most so many.
    fn take(&mut self, kind: Kind, count: usize) -> Vec<Event> {
        let news = self.log.iter().skip(self.heard).take(count);
        let event = |(key, value): &(NamespacedName, Option<Object>)| match value {
            Some(object) => Event::Present(object.clone()),
            None => Event::Absent { kind, key: key.clone() },
        };
        let events: Vec<Event> = news.map(event).collect();
        self.heard += events.len();
        events
    }
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let backend = BACKENDS[(seed % BACKENDS.len() as u64) as usize];
        let config = ClusterConfig { service_backend: backend, ..objects::config() };
        let facts = objects::facts(1, &config);
        let mut schedule = Self {
            random: Generator::new(seed),
            candidates: candidates(seed, &config),
            served: KINDS.map(|kind| (kind, Served::default())).into(),
            node: NodeLoop::new(config, facts, FakeKernel::default()),
            report: Report::default(),
        };
        for number in 1..=random::NODES {
            let node = objects::node(number, &schedule.node.config);
            schedule.serve(Object::Node(Arc::new(node)));
        }
        schedule.candidates.clone().into_iter().for_each(|object| schedule.serve(object));
        schedule.list_all();
        schedule
    }

    fn step(&mut self) -> Result<()> {
        let happening = self.happening();
        *self.report.happened.entry(happening).or_default() += 1;
        let kind = KINDS[self.random.below(KINDS.len())];
        match happening {
            Happening::Change => self.change(),
            Happening::Delivery => self.deliver(kind, 1)?,
            Happening::Work => self.work(),
            Happening::Twice => self.deliver(kind, 2)?,
            Happening::Dropped => {
                let served = self.served.get_mut(&kind).context("every kind is served")?;
                served.lacks |= !served.take(kind, DELIVERY_EVENTS_MAX).is_empty();
            }
            Happening::Gone => self.list(kind)?,
            Happening::Past => self.list_past(kind)?,
            Happening::Shrunken => self.list_shrunken(kind)?,
            Happening::Pause => {
                let all = [Duration::from_millis(5), Duration::from_secs(1), HOLD / 2, HOLD];
                self.node.now += all[self.random.below(all.len())];
            }
            Happening::Refusal => {
                let errno = [Errno::EBUSY, Errno::ENOBUFS][self.random.below(2)];
                self.node.kernel.faults.insert(self.random.below(OPERATIONS_MAX), errno as i32);
            }
            Happening::Crash => {
                self.node.crash_during_step(self.random.below(OPERATIONS_MAX));
                self.list_all();
            }
            Happening::Flush => {
                self.node.kernel.state.nft = NftObserved::default();
                self.node.handle(Event::KernelChanged);
            }
            Happening::Facts => self.change_facts(),
        }
        Ok(())
    }

    fn happening(&mut self) -> Happening {
        let mut chosen = self.random.below(HAPPENINGS.iter().map(|(_, share)| share).sum());
        let mut all = HAPPENINGS.iter();
        let found = all.find(|(_, share)| {
            let is_it = chosen < *share;
            chosen = chosen.saturating_sub(*share);
            is_it
        });
        found.map_or(Happening::Work, |(happening, _)| *happening)
    }

    /// An object comes or changes, or one that is there goes.
    fn change(&mut self) {
        let object = self.candidates[self.random.below(self.candidates.len())].clone();
        if self.random.below(3) > 0 {
            return self.serve(object);
        }
        let (kind, key) = (object.kind(), object.key());
        if let Some(served) = self.served.get_mut(&kind) {
            served.log.push((key, None));
        }
    }

    fn serve(&mut self, object: Object) {
        if let Some(served) = self.served.get_mut(&object.kind()) {
            served.log.push((object.key(), Some(object)));
        }
    }

    fn deliver(&mut self, kind: Kind, times: usize) -> Result<()> {
        let count = 1 + self.random.below(DELIVERY_EVENTS_MAX);
        let events = self.served.get_mut(&kind).context("every kind is served")?.take(kind, count);
        for _ in 0..times {
            for event in &events {
                self.node.handle(event.clone());
            }
        }
        Ok(())
    }

    fn work(&mut self) {
        if let Some(did) = self.node.step() {
            self.report.operations += did.ops.len() as u64;
        }
    }

    /// A list as of now.
    fn list(&mut self, kind: Kind) -> Result<()> {
        let served = self.served.get_mut(&kind).context("every kind is served")?;
        (served.heard, served.lacks) = (served.log.len(), false);
        let objects = served.list(served.heard);
        self.listed(kind, objects);
        Ok(())
    }

    fn list_past(&mut self, kind: Kind) -> Result<()> {
        let served = self.served.get_mut(&kind).context("every kind is served")?;
        let changes = self.random.below(served.heard + 1);
        (served.heard, served.lacks) = (changes, false);
        let objects = served.list(changes);
        self.listed(kind, objects);
        Ok(())
    }

    fn list_shrunken(&mut self, kind: Kind) -> Result<()> {
        let served = self.served.get_mut(&kind).context("every kind is served")?;
        (served.heard, served.lacks) = (served.log.len(), true);
        let mut objects = served.list(served.heard);
        objects.truncate(self.random.below(objects.len() + 1) / 2);
        self.listed(kind, objects);
        Ok(())
    }

    /// Of all kinds, the first of them any.
    fn list_all(&mut self) {
        let first = self.random.below(KINDS.len());
        for offset in 0..KINDS.len() {
            let kind = KINDS[(first + offset) % KINDS.len()];
            if let Some(served) = self.served.get_mut(&kind) {
                (served.heard, served.lacks) = (served.log.len(), false);
                let objects = served.list(served.heard);
                self.listed(kind, objects);
            }
        }
    }

    fn listed(&mut self, kind: Kind, objects: Vec<Object>) {
        let listed = objects.len();
        self.node.handle(Event::Listed(reconcile::List::new(kind, objects)));
        let present = self.node.reconciler.world().keys(kind).len();
        self.report.held += u64::from(present > listed);
    }

    fn change_facts(&mut self) {
        let further = IpAddr::from([172, 31, 0, 2]);
        let addresses = &mut self.node.facts.addresses;
        match addresses.iter().position(|address| *address == further) {
            Some(place) => drop(addresses.remove(place)),
            None => addresses.push(further),
        }
        self.node.handle(Event::Facts(self.node.facts.clone()));
    }

    /// No more changes and faults: every watch goes on to its end, and where it lacks something,
    /// with a list.
    fn come_to_rest(&mut self) -> Result<()> {
        let first = self.random.below(KINDS.len());
        for offset in 0..KINDS.len() {
            let kind = KINDS[(first + offset) % KINDS.len()];
            let served = self.served.get_mut(&kind).context("every kind is served")?;
            if served.lacks {
                self.list(kind)?;
                continue;
            }
            for event in served.take(kind, usize::MAX) {
                self.node.handle(event);
            }
        }
        self.node.kernel.faults.clear();
        self.settle()?;
        if *self.node.reconciler.world() != self.world() {
            // Lists that are held back count when their time is over.
            self.node.now += HOLD;
            self.settle()?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let settled = self.node.settle().map_err(|error| anyhow!(error))?;
        self.report.operations += settled.ops.len() as u64;
        Ok(())
    }

    /// What the API has in the end, as a node reads it.
    fn world(&self) -> World {
        let mut world = World::default();
        for served in self.served.values() {
            for mut object in served.list(served.log.len()) {
                reconcile::narrow(&mut object);
                world.set(object);
            }
        }
        world
    }

    /// Objects, plan, rules and kernel are those of a node that never saw anything but the end.
    fn check(&mut self) -> Result<()> {
        let world = self.world();
        let node = &self.node;
        ensure!(*node.reconciler.world() == world, "the loop's objects are not the API's");
        let (config, facts) = (&node.config, &node.facts);
        let (desired, _) = plan::node(&world, config, facts);
        let (extended, _) = plan::service_ranges::extended(&world, config);
        let program = render::render(&desired, &extended, facts);
        ensure!(*node.reconciler.program() == program, "the loop wants other rules");
        let ops = render::diff(&program, &node.kernel.state);
        ensure!(ops.is_empty(), "the kernel lacks {ops:?}");
        // A node that is not in the API keeps what its plugin has.
        let conflist = desired.network.as_ref().map(render::net::conflist);
        let is_written = conflist.is_none() || node.conflist == conflist;
        ensure!(is_written, "the plugin's configuration is {:?}", node.conflist);
        self.report.with_services += u64::from(!desired.services.is_empty());
        let is_in_api = desired.network.is_some();
        if config.service_backend == ServiceBackend::Nftables && is_in_api {
            let bytes = random::bytes(self.random.next(), PACKET_BYTES);
            let packet = random::packet(&mut Choices::new(&bytes), &world, &extended, facts);
            let meant = verdict::by_oracle(&world, &extended, facts, &packet).verdict;
            let traced = verdict::by_nft(&node.kernel.state.nft, &extended, facts, &packet);
            ensure!(traced == Ok(meant.clone()), "{packet:?}: {meant} meant, {traced:?} done");
        }
        Ok(())
    }
}

/// The objects of some random worlds, which share their names.
fn candidates(seed: u64, config: &ClusterConfig) -> Vec<Object> {
    let mut all = Vec::new();
    for world in 0..WORLDS {
        let bytes = random::bytes(seed.rotate_left(32) ^ world, WORLD_BYTES);
        let mut choices = Choices::new(&bytes);
        // With a node everything is rendered anew: most of the changes are others.
        let nodes = random::nodes(&mut choices, config);
        all.extend(nodes.into_iter().take(usize::from(world == 0)));
        all.extend(random::services(&mut choices, config));
    }
    for range in ["10.97.0.0/24", "10.98.0.0/24"] {
        let mut further = ServiceCidr::default();
        further.metadata.name = "further".into();
        further.spec.cidrs = vec![range.into()];
        all.push(Object::ServiceCidr(Arc::new(further)));
    }
    all
}
