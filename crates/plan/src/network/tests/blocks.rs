//! Blocks of pools, which Nodes have by an annotation.

use model::pool::{BLOCKS_ANNOTATION, Pool};

use super::*;

fn config() -> ClusterConfig {
    let pool = Pool {
        name: "shop".into(),
        cidr: "10.244.200.0/24".parse().expect("a range"),
        block_size: 28,
        namespace_selector: Default::default(),
        node_selector: Default::default(),
    };
    ClusterConfig { pools: vec![pool], ..ClusterConfig::default() }
}

/// The plan of node1 where nodes have these annotations.
fn plan_of(blocks: &[(Row<'_>, &str)]) -> (NetworkPlan, Vec<Finding>) {
    let mut world = World::default();
    for (row, text) in blocks {
        world.set(Object::Node(Arc::new(node(row, &[(BLOCKS_ANNOTATION, text)]))));
    }
    let (plan, findings) = plan(&world, &config(), &facts(1500));
    (plan.expect("a plan"), findings)
}

fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

#[test]
fn own_blocks_are_ranges_of_the_node_that_only_the_agent_gives_out() {
    let (plan, findings) = plan_of(&[(NODE1, "10.244.200.0/28,10.244.200.32/28")]);
    assert_eq!(findings, []);
    assert!(plan.agent_chooses_addresses);
    let all = ["10.244.1.0/24", "10.244.200.0/28", "10.244.200.32/28"];
    assert_eq!(texts(&plan.pod_ranges), all);
    assert_eq!(texts(&plan.blocks), all[1..]);
    assert_eq!(texts(&plan.gateways), ["10.244.1.1/24", "10.244.200.1/28", "10.244.200.33/28"]);
    // One address of cluster DNS and of the tunnel's end, however many blocks.
    assert_eq!(texts(&plan.dns_addresses), ["10.96.0.10", "169.254.20.10"]);
    assert_eq!(texts(&plan.ends.addresses), ["10.244.1.0/32"]);
}

#[test]
fn blocks_of_a_peer_are_its_ranges_and_what_is_no_block_is_told() {
    let (plan, findings) = plan_of(&[(NODE1, ""), (NODE2, "10.244.200.16/28,10.96.0.0/28")]);
    assert_eq!(texts(&plan.peers["node2"].pod_ranges), ["10.244.2.0/24", "10.244.200.16/28"]);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.about, "Node node2");
    assert!(finding.message.contains("10.96.0.0/28"), "services are not drawn into the overlay");
}

#[test]
fn a_block_of_two_nodes_stays_with_this_one() {
    let (plan, findings) = plan_of(&[(NODE1, "10.244.200.0/28"), (NODE2, "10.244.200.0/28")]);
    assert_eq!(texts(&plan.peers["node2"].pod_ranges), ["10.244.2.0/24"]);
    assert!(findings[0].message.contains("pod range overlaps"), "{findings:?}");
}
