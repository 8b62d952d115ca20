//! What issue after issue must go on working: one cluster, all scenarios, then nothing left.
//!
//! `cargo test -p e2e --test cluster -- WORD` runs the scenarios whose names contain WORD;
//! `E2E_KEEP=1` leaves the cluster running for a look around.

#[path = "cluster/acceleration.rs"]
mod acceleration;
#[path = "cluster/claims.rs"]
mod claims;
#[path = "cluster/containers.rs"]
mod containers;
#[path = "cluster/controllers.rs"]
mod controllers;
#[path = "cluster/direct.rs"]
mod direct;
#[path = "cluster/dns.rs"]
mod dns;
#[path = "cluster/dns_kills.rs"]
mod dns_kills;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/families.rs"]
mod families;
#[path = "cluster/forwards.rs"]
mod forwards;
#[path = "cluster/in_cluster.rs"]
mod in_cluster;
#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/kube_rs.rs"]
mod kube_rs;
#[path = "cluster/kubectl.rs"]
mod kubectl;
#[path = "cluster/languages.rs"]
mod languages;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/patterns.rs"]
mod patterns;
#[path = "cluster/registry.rs"]
mod registry;
#[path = "cluster/resolvers.rs"]
mod resolvers;
#[path = "cluster/rollouts.rs"]
mod rollouts;
#[path = "cluster/schedules.rs"]
mod schedules;
#[path = "cluster/services.rs"]
mod services;
#[path = "cluster/streams.rs"]
mod streams;
#[path = "cluster/world.rs"]
mod world;

use std::process::ExitCode;

use anyhow::Result;
use e2e::cluster::Cluster;
use e2e::inventory::Inventory;
use e2e::outside::Outside;
use e2e::runner::{Scenario, run};
use world::World;

const SCENARIOS: &[Scenario<World>] = &[
    ("pods_on_one_node_and_across_see_each_others_addresses", network::pod_to_pod),
    ("pods_reach_each_other_by_direct_routes_too", network::host_gw),
    ("a_cluster_of_ipv6_alone_works_whole", families::ipv6_only),
    ("both_families_work_in_one_cluster", families::dual_stack),
    ("a_node_reaches_its_pods_without_translation", network::node_to_pod),
    ("pods_are_masqueraded_towards_the_outside_only", network::pod_to_outside),
    ("large_datagrams_and_bodies_cross_the_tunnel", network::large_messages),
    ("node_ports_answer_on_every_node_from_outside", services::node_ports),
    ("cluster_ips_answer_nodes_and_the_host", services::cluster_ip_from_node_and_host),
    ("a_further_range_of_services_is_reached_from_everywhere", services::further_range),
    ("pods_answer_clients_outside_past_the_node_that_they_came_to", direct::server_return),
    ("a_pod_reaches_itself_through_its_service", services::hairpin),
    ("a_service_without_endpoints_refuses_at_once", services::refused_without_endpoints),
    (
        "internal_policy_local_keeps_pods_and_programs_of_nodes_on_their_node",
        services::internal_policy_local,
    ),
    ("a_named_port_of_a_sidecar_is_reached", services::sidecar_port),
    ("readiness_false_stops_traffic_within_a_second", services::readiness),
    ("a_node_that_is_cut_off_gets_no_new_connections_and_comes_back", failover::cut_node),
    ("a_pod_that_falls_silent_gets_no_new_connections_and_comes_back", failover::frozen_pod),
    ("with_ebpf_what_falls_silent_gets_no_new_connections_and_comes_back", failover::with_ebpf),
    ("with_xdp_clients_outside_are_served_past_the_stack", acceleration::accelerated),
    ("without_fail_over_connections_to_a_frozen_pod_go_on_failing", failover::switched_off),
    ("names_resolve_inside_a_pod_with_usual_tools", dns::usual_tools),
    ("headless_and_srv_names_resolve_to_pods", dns::headless_and_srv),
    ("names_that_do_not_exist_are_answered_so", dns::absent_names),
    ("plain_questions_have_one_answer_in_the_kernel_and_by_the_worker", dns::kernel_and_worker),
    ("names_are_there_by_the_choice_of_the_configuration", dns::chosen_names),
    ("the_kernel_answers_on_while_the_agent_is_away", dns::kernel_without_agent),
    ("a_headless_record_follows_its_endpoints_at_once", dns::changes_are_fresh),
    ("a_new_pod_has_its_own_names_at_once", dns::own_names),
    ("a_killed_dns_worker_is_back_at_once_and_loses_no_question", dns_kills::killed),
    ("a_dns_worker_is_replaced_and_no_question_is_asked_twice", dns_kills::replaced),
    ("an_answer_is_explained_for_a_pod_by_name", dns::explained),
    ("what_is_asked_is_counted_and_configurations_are_checked", dns::operators),
    ("every_kind_of_resolver_in_a_pod_gets_the_same_answers", resolvers::every_kind),
    ("names_are_answered_while_the_api_server_is_away", resolvers::without_api_server),
    ("containers_of_a_pod_share_localhost_and_volumes", patterns::patterns),
    ("a_port_can_be_taken_once_in_a_pod", patterns::port_conflict),
    ("a_crashing_container_restarts_and_the_address_stays", patterns::crash),
    ("a_killed_pause_process_gives_a_new_sandbox", patterns::killed_pause),
    ("scaling_and_deleting_under_load_fail_no_request", controllers::scale_under_load),
    ("a_rolling_update_under_load_fails_no_request", controllers::rolling_update_under_load),
    ("pods_move_switch_and_scale_and_no_client_outside_notices", rollouts::by_default),
    ("with_ebpf_pods_move_switch_and_scale_and_nobody_notices", rollouts::with_ebpf),
    ("deleted_namespaces_go_with_their_contents", controllers::namespace_deletion),
    ("jobs_run_to_their_end", controllers::jobs_run_to_their_end),
    ("priorities_decide_who_has_a_place", controllers::priorities_decide),
    ("cron_jobs_run_by_the_clock_and_by_hand", schedules::cron_jobs),
    ("data_of_claims_outlives_pods_and_goes_with_them", claims::data_outlives_pods),
    ("quotas_refuse_count_and_are_described", claims::quotas),
    ("sets_roll_out_and_budgets_stop_drains", controllers::sets_roll_out_and_budgets_stop_drains),
    ("the_recorded_manifests_apply_and_then_are_unchanged", kubectl::manifests),
    ("get_and_describe_show_what_users_expect", kubectl::troubleshooting_chain),
    ("kinds_that_users_define_are_like_others_and_outlive_the_server", kubectl::custom_resources),
    ("exec_passes_input_output_and_exit_codes", kubectl::exec),
    ("logs_follow_and_choose_containers", kubectl::logs),
    ("images_are_loaded_run_and_looked_into", containers::loaded_and_looked_into),
    ("images_are_pulled_for_those_whom_the_registry_lets_in", registry::pulled_by_who_may),
    ("ports_of_pods_and_services_are_forwarded", streams::port_forward),
    ("a_refused_port_is_told_by_name", streams::refused),
    ("forwarded_ports_carry_datagrams_and_go_on_with_the_next_pod", forwards::survives_pods),
    ("what_nodes_and_pods_use_is_shown", forwards::top),
    ("requests_are_sent_on_to_services_pods_and_nodes", forwards::sent_on),
    ("files_are_copied_both_ways", streams::copy),
    ("interactive_pods_are_run_and_removed", streams::run_interactively),
    ("running_containers_are_attached_to", streams::attach),
    ("kube_rs_watches_by_both_strategies_and_comes_back", kube_rs::watches),
    ("a_controller_of_kube_rs_keeps_what_it_owns", kube_rs::controller),
    ("kube_rs_executes_and_forwards_ports", kube_rs::streams),
    ("the_python_client_watches_patches_and_executes", languages::python),
    ("a_python_controller_works_in_a_pod_by_its_account", in_cluster::python_controller),
    ("the_npm_client_informs_patches_and_executes", languages::npm),
    ("killed_processes_come_back_and_lose_nothing", kills::kills),
    ("a_cluster_comes_back_after_a_power_cut", kills::power_cut),
    ("a_stopped_cluster_comes_back_with_its_objects", kills::keep),
    ("a_stopped_cluster_comes_back_with_the_data_of_claims", claims::data_outlives_a_stop),
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
    let mut failed = run("cluster", &world, SCENARIOS);
    drop(world);
    if std::env::var_os("E2E_KEEP").is_none() {
        if let Err(error) = Inventory::take()?.ensure_same_as(&before) {
            println!("test cluster::nothing_stays_after_down ... FAILED\n    {error:#}");
            failed += 1;
        } else {
            println!("test cluster::nothing_stays_after_down ... ok");
        }
    }
    Ok(failed)
}
