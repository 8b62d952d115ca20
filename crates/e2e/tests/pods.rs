//! What pods ask of the network through Kubernetes: ports of their node, limits of their traffic,
//! addresses of their own choice and pools of addresses.
//!
//! `cargo test -p e2e --test pods -- WORD` runs the scenarios whose names contain WORD;
//! `E2E_KEEP=1` leaves the cluster running for a look around.

#[path = "pods/addresses.rs"]
mod addresses;
#[path = "pods/bandwidth.rs"]
mod bandwidth;
#[path = "pods/host_ports.rs"]
mod host_ports;
#[path = "pods/world.rs"]
mod world;

use std::process::ExitCode;

use anyhow::Result;
use e2e::cluster::Cluster;
use e2e::inventory::Inventory;
use e2e::outside::Outside;
use e2e::runner::{Scenario, run};
use world::World;

const SCENARIOS: &[Scenario<World>] = &[
    ("host_ports_answer_from_everywhere_on_their_node_alone", host_ports::reachable),
    ("host_ports_take_nothing_that_only_passes_the_node", host_ports::no_transit),
    ("host_ports_come_back_after_their_table_was_deleted", host_ports::rebuilt),
    ("a_udp_host_port_is_the_next_pods_at_once", host_ports::taken_over),
    ("a_host_port_keeps_a_second_pod_off_the_node", host_ports::conflict),
    ("bandwidth_annotations_hold_within_five_percent", bandwidth::limits_hold),
    ("a_pod_keeps_its_fixed_address_and_others_hear_who_has_it", addresses::fixed),
    ("pods_named_as_a_stateful_sets_get_addresses_by_ordinal", addresses::ordinals),
    ("pods_of_a_pool_get_its_blocks_and_full_nodes_borrow", addresses::pools),
    ("pods_wait_for_an_agent_that_does_not_answer", addresses::waits_for_the_agent),
    ("a_wrong_bandwidth_annotation_is_told_and_the_pod_waits", bandwidth::wrong_annotation),
];

fn main() -> ExitCode {
    match suite() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("test result: FAILED. {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn suite() -> Result<usize> {
    Outside::prepare()?;
    Cluster::take_down_leftovers()?;
    let before = Inventory::take()?;
    let world = World::up()?;
    let mut failed = run("pods", &world, SCENARIOS);
    drop(world);
    if std::env::var_os("E2E_KEEP").is_none() {
        if let Err(error) = Inventory::take()?.ensure_same_as(&before) {
            println!("test pods::nothing_stays_after_down ... FAILED\n    {error:#}");
            failed += 1;
        } else {
            println!("test pods::nothing_stays_after_down ... ok");
        }
    }
    Ok(failed)
}
