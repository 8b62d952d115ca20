use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use controlplane::pki::{self, PkiRequest};
use controlplane::{ControlPlane, Options};
use ipam::{Ask, Withheld};
use model::ClusterConfig;

use super::*;

const POD: &str = "10.244.9.5";

/// Rounds after which nodes that race must have come to rest: one refused claim for every block.
const ROUNDS: usize = 8;

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn pool(cidr: &str) -> Pool {
    let anything = LabelSelector::default();
    let shop = LabelSelector {
        match_labels: [("team".to_owned(), "shop".to_owned())].into(),
        ..anything.clone()
    };
    Pool {
        name: "shop".into(),
        cidr: net(cidr),
        block_size: 28,
        namespace_selector: shop,
        node_selector: anything,
    }
}

async fn with_api(name: &str, test: impl AsyncFnOnce(&Client, &Path)) {
    let directory = std::env::temp_dir().join(format!("flatnet-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let _removed = Removed(directory.clone());
    let config = ClusterConfig::default();
    let request = PkiRequest {
        config: config.clone(),
        server_addresses: vec![Ipv4Addr::LOCALHOST.into()],
        nodes: Default::default(),
    };
    let now = Timestamp::from_seconds(unix_seconds() as i64);
    pki::ensure(&directory.join(controlplane::PKI_DIRECTORY), &request, now).expect("certificates");
    let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let advertised = "172.30.0.1:6443".parse().expect("an address");
    let options = Options::new(directory.clone(), config, listen, advertised);
    let running = ControlPlane::start(options).await.expect("the API server starts");
    test(&running.client(), &directory).await;
    running.stop().await;
}

/// A node's keeper, with the loop's part: what was published is planned for.
struct Node {
    keeper: Keeper,
    view: watch::Sender<View>,
    orphans: BTreeMap<String, Instant>,
}

impl Node {
    fn new(name: &str, pool: &Pool, client: &Client, directory: &Path) -> Self {
        let view = View {
            nodes: ["one", "two"].map(str::to_owned).into(),
            node_ranges: vec![net("10.244.1.0/28")],
            ..View::default()
        };
        let (view, viewed) = watch::channel(view);
        let keeper = Keeper {
            client: client.clone(),
            node: name.into(),
            pools: vec![pool.clone()],
            ipam: directory.join(name),
            view: viewed,
            claimed: watch::channel(Claimed::default()).0,
        };
        Self { keeper, view, orphans: BTreeMap::new() }
    }

    async fn round(&mut self) {
        let view = self.view.borrow().clone();
        self.keeper.keep(&view, &mut self.orphans).await.expect("the API server answers");
        let blocks = self.blocks();
        self.view.send_modify(|view| view.blocks = blocks);
    }

    fn blocks(&self) -> BTreeSet<IpNet> {
        self.keeper.claimed.borrow().blocks.clone().expect("claims were read")
    }

    fn problems(&self) -> Vec<String> {
        self.keeper.claimed.borrow().problems.values().cloned().collect()
    }

    fn directory(&self) -> Directory {
        Directory::open(&self.keeper.ipam, layout::CNI_NETWORK).expect("a directory")
    }

    /// Gives a number of pods an address each of a range.
    fn fill(&self, range: IpNet, pods: usize) {
        for pod in 0..pods {
            let ask = Ask {
                sets: &[vec![Range::whole(range)]],
                withheld: &Withheld::default(),
                container_id: &format!("{}-{pod}", range.network()),
                interface: "eth0",
                requested: &[],
            };
            self.directory().reserve(&ask).expect("room");
        }
    }
}

#[tokio::test]
async fn of_two_nodes_that_race_for_one_block_one_gets_it_and_the_other_hears_why_not() {
    with_api("race", async |client, directory| {
        let pool = pool("10.244.9.0/28");
        let mut one = Node::new("one", &pool, client, directory);
        let mut two = Node::new("two", &pool, client, directory);
        for _ in 0..ROUNDS {
            tokio::join!(one.round(), two.round());
            let both: Vec<_> = one.blocks().intersection(&two.blocks()).copied().collect();
            assert_eq!(both, [], "a block of two nodes");
        }
        assert_eq!(one.blocks().len() + two.blocks().len(), 1);
        let loser = if one.blocks().is_empty() { &one } else { &two };
        assert!(loser.problems()[0].contains("enlarge the pool"), "{:?}", loser.problems());
    })
    .await;
}

#[tokio::test]
async fn a_full_node_takes_another_block_and_gives_it_back_when_it_is_empty() {
    with_api("borrow", async |client, directory| {
        let pool = pool("10.244.9.0/24");
        let mut node = Node::new("one", &pool, client, directory);
        node.round().await;
        let first: Vec<IpNet> = node.blocks().into_iter().collect();
        assert_eq!(first.len(), 1);
        node.fill(first[0], 12);
        node.round().await;
        assert_eq!(node.blocks().len(), 2, "less than a quarter of a block is free");
        // The pods go, so long ago that their addresses have rested.
        let long_ago = Timestamp::from_seconds(1);
        node.directory().release_where(long_ago, |_| true).expect("released");
        node.round().await;
        let closed: Vec<IpNet> = node.keeper.claimed.borrow().closed.keys().copied().collect();
        assert_eq!(closed.len(), 1);
        node.round().await;
        assert_eq!(node.blocks().len(), 2, "an ADD may still be at work with an old answer");
        let before = Instant::now().checked_sub(CLOSED_FOR).expect("a machine that runs for long");
        node.keeper.claimed.send_modify(|claimed| {
            claimed.closed.insert(closed[0], before);
        });
        node.round().await;
        assert_eq!(node.blocks().len(), 1, "the way to it goes first");
        assert_eq!(node.keeper.claims().await.expect("claims").len(), 2);
        node.round().await;
        assert_eq!(node.keeper.claims().await.expect("claims").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn blocks_for_all_are_borrowed_only_when_the_own_range_runs_out() {
    with_api("general", async |client, directory| {
        let general =
            Pool { namespace_selector: LabelSelector::default(), ..pool("10.244.9.0/24") };
        let mut node = Node::new("one", &general, client, directory);
        node.round().await;
        assert!(node.blocks().is_empty(), "the own range has room");
        node.fill(net("10.244.1.0/28"), 12);
        node.round().await;
        assert_eq!(node.blocks().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn blocks_of_nodes_that_are_gone_are_freed_in_time() {
    with_api("gone", async |client, directory| {
        let pool = pool("10.244.9.0/28");
        let mut gone = Node::new("gone", &pool, client, directory);
        gone.view.send_modify(|view| view.nodes.extend(["gone".to_owned()]));
        gone.round().await;
        assert!(
            gone.blocks().iter().any(|block| block.contains(&POD.parse::<IpAddr>().expect("it")))
        );
        let mut one = Node::new("one", &pool, client, directory);
        one.round().await;
        assert!(one.blocks().is_empty(), "its Node may be news that comes late");
        let before =
            Instant::now().checked_sub(ORPHAN_DELAY).expect("a machine that runs for long");
        one.orphans.values_mut().for_each(|since| *since = before);
        one.round().await;
        assert_eq!(one.blocks().len(), 1);
    })
    .await;
}
