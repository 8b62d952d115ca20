//! The agent as a real cluster's DaemonSet: an API server, a machine that is none of its cluster's
//! own, `flatnet manifests | kubectl apply`, and the test in the kubelet's place, with what the
//! applied objects say and no more.
//!
//! `cargo test -p e2e --test real_node -- WORD` runs the scenarios whose names contain WORD; the
//! last one of each backend takes flatnet from the machine.

#[path = "real_node/ebpf.rs"]
mod ebpf;
#[path = "real_node/kubelet.rs"]
mod kubelet;
#[path = "real_node/lifecycle.rs"]
mod lifecycle;
#[path = "real_node/machine.rs"]
mod machine;
#[path = "real_node/operators.rs"]
mod operators;
#[path = "real_node/packets.rs"]
mod packets;
#[path = "real_node/reboot.rs"]
mod reboot;
#[path = "real_node/rights.rs"]
mod rights;
#[path = "real_node/upgrade.rs"]
mod upgrade;
#[path = "real_node/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use e2e::cluster::Cluster;
use e2e::eventually;
use e2e::inventory::Inventory;
use e2e::outside::Outside;
use e2e::runner::{Scenario, is_any_chosen, run};
use world::{EBPF, NFTABLES, World};

/// How long what has ended may be seen.
const GONE: Duration = Duration::from_secs(5);

/// What holds with Services in nftables and what holds in eBPF too. The last of each takes flatnet
/// from the machine.
const SCENARIOS: &[Scenario<World>] = &[
    ("the_containers_have_the_rights_that_the_daemonset_names", rights::processes),
    ("the_token_allows_what_the_agent_does_and_nothing_more", rights::token),
    ("the_configuration_comes_when_pods_can_be_added", lifecycle::started),
    ("pods_of_the_machine_and_of_the_cluster_see_each_other", packets::pods),
    ("services_are_reached_from_the_machine_and_lead_to_it", packets::services),
    ("names_are_answered_on_the_machine", packets::names),
    ("a_dns_pod_is_replaced_and_no_question_is_lost", upgrade::dns),
    ("host_ports_lead_to_pods_of_the_machine", packets::host_ports),
    ("kubectl_shows_what_the_agent_says_of_its_node", operators::kubectl),
    ("operators_see_what_is_programmed_and_who_has_addresses", operators::commands),
    ("what_differs_is_shown_until_it_is_mended", operators::differences),
    ("prometheus_reads_what_the_agent_counts", operators::metrics),
    ("running_pods_keep_a_mtu_that_the_agent_may_not_change", lifecycle::mtu),
    ("a_killed_agent_stops_nothing_and_changes_nothing_when_it_is_back", lifecycle::killed),
    ("agents_that_are_killed_or_updated_fail_no_request", lifecycle::replaced_under_load),
    ("what_the_agent_has_no_right_to_stops_nothing_else", lifecycle::refused),
    ("clients_elsewhere_go_on_after_the_machine_alone_starts_anew", reboot::rebooted),
    ("uninstall_leaves_the_machine_as_it_was", lifecycle::uninstalled),
];
const WITH_EBPF: &[Scenario<World>] = &[
    ("with_ebpf_the_containers_have_the_rights_that_the_daemonset_names", rights::processes),
    ("with_ebpf_packets_and_services_are_carried_by_programs", ebpf::carried),
    ("with_ebpf_pods_of_the_machine_and_of_the_cluster_see_each_other", packets::pods),
    ("with_ebpf_services_are_reached_from_the_machine_and_lead_to_it", packets::services),
    ("with_ebpf_names_are_answered_on_the_machine", packets::names),
    ("with_ebpf_a_dns_pod_is_replaced_and_no_question_is_lost", upgrade::dns),
    ("with_ebpf_host_ports_lead_to_pods_of_the_machine", packets::host_ports),
    ("with_ebpf_kubectl_shows_what_the_agent_says_of_its_node", operators::kubectl),
    ("with_ebpf_operators_see_what_is_programmed_and_who_has_addresses", operators::commands),
    ("with_ebpf_what_differs_is_shown_until_it_is_mended", operators::differences),
    ("with_ebpf_prometheus_reads_what_the_agent_counts", operators::metrics),
    ("with_ebpf_pins_that_are_lost_come_back", ebpf::repaired),
    ("with_ebpf_a_killed_agent_stops_nothing_and_changes_nothing", lifecycle::killed),
    ("with_ebpf_agents_that_are_killed_or_updated_fail_no_request", lifecycle::replaced_under_load),
    ("with_ebpf_clients_elsewhere_go_on_after_the_machine_starts_anew", reboot::rebooted),
    ("with_ebpf_uninstall_leaves_the_machine_as_it_was", lifecycle::uninstalled),
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
    let mut failed = 0;
    for (backend, scenarios) in [(NFTABLES, SCENARIOS), (EBPF, WITH_EBPF)] {
        if is_any_chosen(scenarios) {
            failed += suite_of(backend, scenarios)?;
        }
    }
    Ok(failed)
}

fn suite_of(backend: &'static str, scenarios: &[Scenario<World>]) -> Result<usize> {
    let before = Inventory::take()?;
    let world = World::up(backend)?;
    let mut failed = run("real_node", &world, scenarios);
    drop(world);
    // The kernel takes namespaces apart after their last process has ended.
    let same = || Inventory::take()?.ensure_same_as(&before);
    if let Err(error) = eventually("nothing stays", GONE, same) {
        println!("test real_node::nothing_stays_after_down ... FAILED\n    {error:#}");
        failed += 1;
    } else {
        println!("test real_node::nothing_stays_after_down ... ok");
    }
    Ok(failed)
}
