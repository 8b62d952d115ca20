//! What must hold when things die, are stopped, or are broken by others (R-01 …,
//! ), and a random run of all of it.
//!
//! `cargo test -p e2e --test reliability -- WORD` runs the scenarios whose names contain WORD.
//! `./x chaos --minutes N --seed S` runs the random one longer, or again.

#[path = "reliability/backends.rs"]
mod backends;
#[path = "reliability/chaos.rs"]
mod chaos;
#[path = "reliability/damage.rs"]
mod damage;
#[path = "reliability/ebpf.rs"]
mod ebpf;
#[path = "reliability/endpoints.rs"]
mod endpoints;
#[path = "reliability/foreign.rs"]
mod foreign;
#[path = "reliability/forgery.rs"]
mod forgery;
#[path = "reliability/kills.rs"]
mod kills;
#[path = "reliability/leaks.rs"]
mod leaks;
#[path = "reliability/losses.rs"]
mod losses;
#[path = "reliability/memory.rs"]
mod memory;
#[path = "reliability/places.rs"]
mod places;
#[path = "reliability/pods.rs"]
mod pods;
#[path = "reliability/schedule.rs"]
mod schedule;
#[path = "reliability/upgrade.rs"]
mod upgrade;
#[path = "reliability/world.rs"]
mod world;

use std::process::ExitCode;

use anyhow::Result;
use e2e::cluster::Cluster;
use e2e::inventory::Inventory;
use e2e::outside::Outside;
use e2e::runner::{Scenario, run};
use world::World;

const SCENARIOS: &[Scenario<World>] = &[
    ("r_01_killed_agents_cost_no_stream_datagram_or_connection", kills::killed_under_load),
    ("r_02_a_node_without_agent_goes_on", kills::down_under_load),
    // Before anything is in eBPF: these two wait until no flow is there.
    ("r_05_a_restart_with_nothing_changed_writes_nothing", kills::silent_restarts),
    ("r_25_pods_and_services_that_come_and_go_leave_nothing", leaks::come_and_go),
    ("r_02_with_ebpf_a_node_without_agent_goes_on", ebpf::down_under_load),
    ("r_03_rules_of_another_version_are_replaced_under_load", kills::upgraded_under_load),
    ("r_03_another_build_takes_over_and_gives_back_under_load", upgrade::there_and_back),
    ("r_03_what_dies_starts_again_from_a_file_that_was_replaced", upgrade::replaced_file),
    ("r_03_with_ebpf_maps_of_other_sizes_take_over_under_load", ebpf::resized_under_load),
    ("r_04_agents_out_of_memory_cost_nothing", memory::ended),
    ("r_04_a_stopped_agent_catches_up", kills::stopped_under_load),
    ("r_04_a_full_disk_is_named_and_survived", places::full_disk),
    ("r_04_an_agent_whose_run_directory_is_wiped_comes_back", places::run_wiped),
    ("r_04_unmounted_pins_of_ebpf_come_back_with_all_that_was_pinned", places::pins_unmounted),
    ("r_05_with_ebpf_a_restart_with_nothing_changed_writes_nothing", ebpf::silent_restarts),
    ("r_11_a_second_agent_of_a_node_is_refused", kills::second_agent),
    ("r_22_each_kind_of_damage_is_repaired_within_a_second_and_told", damage::repaired),
    ("r_24_the_service_backend_changes_under_load", backends::changed_under_load),
    ("r_01_killed_agents_cost_nothing_on_each_service_backend", backends::killed_on_each),
    ("r_19_new_connections_leave_what_terminates", endpoints::new_connections_go_elsewhere),
    ("r_19_clients_of_removed_endpoints_are_told", endpoints::removed_endpoints_are_told),
    ("r_25_with_ebpf_pods_and_services_leave_nothing_either", leaks::come_and_go_with_ebpf),
    ("the_same_seed_gives_the_same_schedule", schedule::replays),
    ("chaos_doubles_and_loses_no_address_and_leaks_nothing", chaos::random),
    ("r_23_what_others_have_is_as_before_also_after_uninstall", foreign::untouched),
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
    let mut failed = run("reliability", &world, SCENARIOS);
    drop(world);
    if std::env::var_os("E2E_KEEP").is_none() {
        if let Err(error) = Inventory::take()?.ensure_same_as(&before) {
            println!("test reliability::nothing_stays_after_down ... FAILED\n    {error:#}");
            failed += 1;
        } else {
            println!("test reliability::nothing_stays_after_down ... ok");
        }
    }
    Ok(failed)
}
