//! What the iptables backend costs at many Services, in each variant: the first load, a reading, and
//! the change of one endpoint, from the plan to the kernel (G5's peer). Needs root.
//!
//! ```text
//! ./x bench iptables [SERVICES]
//! ```

use std::net::SocketAddr;
use std::time::Instant;

use kernel::iptables::{IptablesDriver, Variant};
use model::{ClusterConfig, NamespacedName, Protocol};
use netlink::Netns;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use render::iptables::{IptablesObserved, IptablesOp, diff, diff_touched, render, update};

/// Services unless the command line says otherwise, with three endpoints each.
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 3;
/// Changes of one endpoint.
const ROUNDS: u32 = 9;

fn main() {
    let number = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let services = number.unwrap_or(SERVICES);
    println!("{services} Services × {ENDPOINTS} endpoints; CPU of flatnet + programs, ms");
    let heads = ["plan to ops", "load", "read", "one change", "its p50 wall", "to ops, µs"];
    println!("{:<8}{}", "", heads.map(|head| format!("{head:>16}")).concat());
    for variant in Variant::ALL {
        let namespace = Netns::create().expect("a network namespace (this needs root)");
        namespace.run(|| measure(variant, services)).expect("the namespace");
    }
}

fn measure(variant: Variant, services: u32) {
    let mut driver = IptablesDriver::with(variant).expect("a driver");
    let mut desired = Desired::default();
    for number in 0..services {
        let name = NamespacedName::new("shop", format!("web-{number}"));
        desired.services.insert(name, service(number, 0));
    }
    let config = ClusterConfig::default();
    let mut believed = IptablesObserved::default();
    let before = Cpu::now();
    let mut program = render(&desired, &config, &facts());
    let ops = diff(&program, &believed);
    let planned = before.until_now();
    let loaded = apply(&ops, &mut believed, &mut driver);
    let before = Cpu::now();
    driver.observe().expect("observe");
    let read = before.until_now();
    let (mut changes, mut walls, mut plans_us) = (vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        let number = services / 2;
        let name = NamespacedName::new("shop", format!("web-{number}"));
        let former = desired.services.insert(name.clone(), service(number, round));
        let former = [(name, former)].into();
        let start = Instant::now();
        let touched = update(&mut program, &desired, &config, &facts(), &former);
        let ops = diff_touched(&program, &believed, &touched);
        plans_us.push(start.elapsed().as_micros());
        changes.push(apply(&ops, &mut believed, &mut driver));
        walls.push(start.elapsed().as_millis());
    }
    plans_us.sort_unstable();
    walls.sort_unstable();
    changes.sort_unstable_by_key(|cpu| cpu.own + cpu.programs);
    let middle = ROUNDS as usize / 2;
    let cells = [planned, loaded, read, changes[middle]].map(|cpu| cpu.text());
    let cells = cells.map(|cell| format!("{cell:>16}")).concat();
    let (wall, plan_us) = (walls[middle], plans_us[middle]);
    println!("{:<8}{cells}{wall:>16}{plan_us:>16}", format!("{variant:?}"));
}

fn apply(ops: &[IptablesOp], believed: &mut IptablesObserved, driver: &mut IptablesDriver) -> Cpu {
    let before = Cpu::now();
    for op in ops {
        driver.apply(op).unwrap_or_else(|error| panic!("{error}"));
        believed.apply(op).expect("the model of the kernel agrees");
    }
    before.until_now()
}

/// CPU time in milliseconds.
#[derive(Clone, Copy)]
struct Cpu {
    own: i64,
    programs: i64,
}

impl Cpu {
    fn now() -> Self {
        let of = |who| {
            let usage = getrusage(who).expect("usage");
            (usage.user_time() + usage.system_time()).num_milliseconds()
        };
        Self { own: of(UsageWho::RUSAGE_SELF), programs: of(UsageWho::RUSAGE_CHILDREN) }
    }

    fn until_now(self) -> Self {
        let now = Self::now();
        Self { own: now.own - self.own, programs: now.programs - self.programs }
    }

    fn text(self) -> String {
        format!("{} + {}", self.own, self.programs)
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        addresses: vec![[172, 30, 0, 2].into()],
        ..Default::default()
    }
}

/// A ClusterIP; `round` moves one of its endpoints.
fn service(number: u32, round: u32) -> ServicePlan {
    let [_, _, third, fourth] = (number + 256).to_be_bytes();
    let frontend = Frontend::ClusterIp {
        address: [10, 96 + (number >> 16) as u8, third, fourth].into(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let endpoint = |index: u32| {
        let moved = if index == 0 { round } else { 0 };
        let [_, second, third, fourth] = (number * ENDPOINTS + index).to_be_bytes();
        SocketAddr::from(([10, 128 + second, third, fourth], 8080 + moved as u16))
    };
    let endpoints = (0..ENDPOINTS).map(endpoint).collect();
    let plan = FrontendPlan::new(Backends::Endpoints(endpoints));
    ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() }
}
