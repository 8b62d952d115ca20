//! What is in a node's kernel and on its disk, and what its agent uses: taken before and after.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

/// Everything of a node that must be the same when pods have come and gone. Neighbours that were
/// learned, link-local addresses and counters are left out: they change by themselves; the slots of
/// endpoints, since a table that is made anew has others (invariant 1).
const EVERYTHING: &str = "\
ip -o link | sed -E 's/^[0-9]+: //; s/state [A-Z]+//; s/<[^>]*>//'
ip -o address | sed -E 's/^[0-9]+: //; s/valid_lft.*//' | grep -v 'inet6 fe80'
ip route show table all | sed -E 's/ (expires|linkdown).*//' | grep -v 'fe80\\|^multicast\\|^ff00'
ip rule; ip -6 rule
ip neigh show nud permanent
bridge fdb show dev flatnet.1 2>/dev/null | grep dst
tc qdisc show
nft -s list ruleset | sed -E 's/ \\. 0x[0-9a-f]{8} : / : /; s/elements = \\{ //; s/ ?[,}]+ *$//'
ip netns list
find /var/lib/cni -type f ! -name '.released-*' ! -name 'last_reserved_ip*' | sort
true";

/// Everything that is not ours, or in a thing that is: the tables, links and routes of others.
const FOREIGN: &str = "\
for t in $(nft list tables | grep -v flatnet | tr ' ' '/'); do
  nft -s list table $(echo ${t#table/} | tr '/' ' ')
done
ip -o link show foreign0 | sed -E 's/^[0-9]+: //'
ip -o address show foreign0 | sed -E 's/^[0-9]+: //'
ip route show table all | grep foreign0
ip rule show | grep '^7777:'
ip neigh show dev foreign0 nud permanent
sysctl net.ipv4.conf.foreign0.forwarding
true";

/// Lines about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState(BTreeSet<String>);

impl NodeState {
    /// All of it.
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub fn take(cluster: &Cluster, node: &str) -> Result<Self> {
        Self::by(cluster, node, EVERYTHING)
    }

    /// What belongs to others; [`add_foreign`] puts some there.
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub fn foreign(cluster: &Cluster, node: &str) -> Result<Self> {
        Self::by(cluster, node, FOREIGN)
    }

    fn by(cluster: &Cluster, node: &str, script: &str) -> Result<Self> {
        let text = cluster.on_node(node, &["sh", "-c", script])?;
        let lines: BTreeSet<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        ensure!(lines.len() > 10, "the node said too little: {text}");
        Ok(Self(lines))
    }

    /// Fails naming what was added or lost since `before`.
    ///
    /// # Errors
    /// When anything differs.
    pub fn ensure_same_as(&self, before: &Self) -> Result<()> {
        let added: Vec<&String> = self.0.difference(&before.0).collect();
        let lost: Vec<&String> = before.0.difference(&self.0).collect();
        ensure!(added.is_empty() && lost.is_empty(), "added {added:#?}, lost {lost:#?}");
        Ok(())
    }
}

/// Puts onto a node what other programs could have there: tables of three families with chains at
/// our hooks and a set, rules in the chains of iptables as Docker and firewalls have them (iptables
/// itself leaves its chains behind, empty, when the last rule goes), a link, an address, a neighbour, routes in two tables, and a rule.
///
/// # Errors
/// What the programs say.
pub fn add_foreign(cluster: &Cluster, node: &str) -> Result<()> {
    let script = "set -e
nft -f - <<'END'
table inet foreign {
  set friends { type ipv4_addr; elements = { 198.18.0.5, 198.18.0.6 }; }
  chain forward { type filter hook forward priority filter; policy accept; ip saddr @friends accept; }
}
table ip foreign-nat {
  chain prerouting { type nat hook prerouting priority dstnat; policy accept; ip daddr 198.18.0.9 tcp dport 1 dnat to 198.18.0.10; }
}
table bridge foreign { chain forward { type filter hook forward priority filter; policy accept; ether type arp accept; }; }
END
iptables -t nat -N FOREIGN
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j FOREIGN
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j FOREIGN
iptables -t nat -A POSTROUTING -s 198.18.0.0/24 ! -o foreign0 -j MASQUERADE
iptables -N FOREIGN
iptables -A FORWARD -o foreign0 -j FOREIGN
iptables -A INPUT -s 198.18.0.66/32 -j DROP
iptables -A OUTPUT -d 198.18.0.66/32 -j DROP
iptables -A FOREIGN -d 198.18.0.2/32 -j ACCEPT
ip link add foreign0 type bridge
ip link set foreign0 addrgenmode none alias 'of another program'
ip link set foreign0 up
ip address add 198.18.0.1/24 dev foreign0
ip neigh add 198.18.0.2 lladdr 02:00:00:00:00:02 dev foreign0 nud permanent
ip route add 198.18.5.0/24 via 198.18.0.2 dev foreign0 proto static
ip route add 198.18.6.0/24 dev foreign0 table 777
ip rule add pref 7777 to 198.18.6.0/24 lookup 777";
    cluster.on_node(node, &["sh", "-c", script]).map(drop)
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// Resident memory.
    pub resident_kilobytes: u64,
    /// The part of it that is not mapped of files: pages of its program, which a process lets go of
    /// whenever it has done much, say nothing of what it keeps.
    pub anonymous_kilobytes: u64,
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i64) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words = line.with_context(|| format!("no {name}"))?;
            Ok(words.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads:")?,
            resident_kilobytes: number("VmRSS:")?,
            anonymous_kilobytes: number("RssAnon:")?,
        })
    }
}
