//! Our CNI plugin under container runtimes of others: Debian's podman and containerd, the latter by
//! its own client and by the interface that a kubelet uses. Needs root and `target/tools/runtimes`
//! and `target/flatnet`, which `./x test` makes.
//!
//! `cargo test -p e2e --test runtimes -- WORD` runs the scenarios whose names contain WORD.

#[path = "runtimes/containerd.rs"]
mod containerd;
#[path = "runtimes/cri.rs"]
mod cri;
#[path = "runtimes/image.rs"]
mod image;
#[path = "runtimes/kubelet.rs"]
mod kubelet;
#[path = "runtimes/machine.rs"]
mod machine;
#[path = "runtimes/podman.rs"]
mod podman;
#[path = "runtimes/protobuf.rs"]
mod protobuf;

use std::process::ExitCode;

use anyhow::Result;
use e2e::inventory::Inventory;
use e2e::runner::{Scenario, run};
use machine::Machine;

const SCENARIOS: &[Scenario<Machine>] = &[
    ("two_containers_of_podman_reach_each_other", podman::two_containers),
    ("a_published_port_of_podman_is_reached_from_outside", podman::published_port),
    ("sixteen_containers_of_podman_at_once_leave_nothing", podman::many_at_once),
    ("two_containers_of_containerd_reach_each_other", containerd::two_containers),
    ("sixteen_containers_of_containerd_at_once_leave_nothing", containerd::many_at_once),
    ("containers_of_podman_and_containerd_share_the_network", containerd::beside_podman),
    ("pods_of_a_kubelet_reach_each_other", kubelet::two_pods),
    ("a_host_port_of_a_pod_is_reached_from_outside", kubelet::host_port),
    ("bandwidth_annotations_of_a_pod_reach_its_link", kubelet::bandwidth),
    ("a_kubelet_may_stop_a_pod_twice_and_after_its_process_died", kubelet::stopping),
    ("a_node_without_a_configuration_is_not_ready", kubelet::readiness),
];

fn main() -> ExitCode {
    match suite() {
        Ok(code) => code,
        Err(error) => {
            println!("test result: FAILED. {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn suite() -> Result<ExitCode> {
    if machine::is_inside() {
        let machine = Machine::prepare()?;
        let failed = run("runtimes", &machine, SCENARIOS);
        return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let before = Inventory::take()?;
    let code = machine::run_inside()?;
    Inventory::take()?.ensure_same_as(&before)?;
    Ok(code)
}
