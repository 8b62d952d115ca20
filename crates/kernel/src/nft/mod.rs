//! [`NftDriver`]: our nftables tables, by netlink messages of our own over one kept socket. The
//! `nft` program is for people: closing its socket after each change waits tens of milliseconds.

mod conntrack;
mod decode;
mod encode;
mod expression;
pub mod flows;
pub mod handshakes;
mod uapi;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use model::packed::Unsorted;
use model::{Family, Protocol};
use netlink::Error;
use netlink::message::Attributes;
use netlink::socket::{Message, Socket};
use render::OpError;
use render::nft::language::{Datum, Rule, Set, SetSpec, Table, TableFamily, TableId, Tuple};
use render::nft::packed::Elements;
use render::nft::{NftObserved, NftOp, Transaction};

pub(crate) use conntrack::forget as forget_flows;
use encode::{request, request_of};
use uapi::*;

/// Bytes of `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;
/// How often a reading starts again because somebody changed rules meanwhile.
const OBSERVE_ATTEMPTS: usize = 8;

/// A chain of another program that drops by policy whatever is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDrop {
    /// The family's word in `nft`.
    pub family: &'static str,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
}

impl ForeignDrop {
    /// The table, once for each family of addresses that its packets may have.
    pub fn tables(&self) -> Vec<TableId> {
        let families = match self.family {
            "ip" => vec![TableFamily::Ip(Family::V4)],
            "ip6" => vec![TableFamily::Ip(Family::V6)],
            _ => [Family::V4, Family::V6].map(TableFamily::Inet).to_vec(),
        };
        families.into_iter().map(|family| TableId::new(family, &self.table)).collect()
    }
}

impl std::fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

/// The writer of our nftables tables.
pub struct NftDriver {
    socket: Socket,
}

impl NftDriver {
    /// Opens the driver in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, OpError> {
        Ok(Self { socket: Socket::open(libc::NETLINK_NETFILTER).map_err(refused)? })
    }

    /// The address of the kept socket ([`netlink::socket::Socket::port_id`]).
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Reads back the tables of Services. Rules are known by their fingerprints only.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or others change rules faster than they can be read.
    pub fn observe(&mut self) -> Result<NftObserved, OpError> {
        self.observe_tables(&[Family::V4, Family::V6].map(TableId::services))
    }

    /// Reads back these tables, as [`NftDriver::observe`] does.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or others change rules faster than they can be read.
    pub fn observe_tables(&mut self, tables: &[TableId]) -> Result<NftObserved, OpError> {
        self.read(tables).map_err(refused)
    }

    /// Carries out one op, wholly or not at all.
    ///
    /// # Errors
    /// The kernel's errno and words for the first command that it refused.
    pub fn apply(&mut self, op: &NftOp) -> Result<(), OpError> {
        match op {
            NftOp::Transaction(transaction) => self.commit(std::slice::from_ref(transaction)),
            NftOp::ForgetFlows(stale) => {
                conntrack::forget(&mut self.socket, stale).map_err(refused)
            }
        }
    }

    /// Carries out transactions on several tables, all of them or none.
    ///
    /// # Errors
    /// The kernel's errno and words for the first command that it refused.
    pub fn commit(&mut self, transactions: &[Transaction]) -> Result<(), OpError> {
        let mut requests = Vec::new();
        let mut origins = Vec::new();
        for transaction in transactions {
            for (index, request) in encode::requests(transaction) {
                requests.push(request);
                origins.push((transaction, index));
            }
        }
        let action = |request: Option<usize>| {
            let origin = request.and_then(|request| origins.get(request));
            let command = origin.and_then(|&(of, index)| Some((of, of.commands.get(index)?)));
            match (command, transactions) {
                (Some((of, command)), _) => format!("{command} in nftables table {}", of.table),
                (None, [one]) => format!("commit to nftables table {}", one.table),
                (None, _) => "commit to nftables".into(),
            }
        };
        self.socket.batch(NFNL_SUBSYS_NFTABLES, &requests, action).map_err(refused)
    }

    /// Forgets all tracked flows from or to an address: who has it next must not get the answers
    /// of its former holder, nor be taken for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_flows_of(&mut self, address: IpAddr) -> Result<(), OpError> {
        conntrack::forget_address(&mut self.socket, address).map_err(refused)
    }

    /// Forgets the tracked flows of a protocol to a port, wherever they lead.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_flows_to_port(
        &mut self,
        family: Family,
        protocol: Protocol,
        port: u16,
    ) -> Result<(), OpError> {
        conntrack::forget_port(&mut self.socket, family, protocol, port).map_err(refused)
    }

    /// What a map holds for one key.
    ///
    /// # Errors
    /// When the kernel cannot be asked. A table, map or key that is not there is no error.
    pub fn element(
        &mut self,
        id: &TableId,
        map: &str,
        spec: &SetSpec,
        key: &Tuple,
    ) -> Result<Option<Datum>, OpError> {
        let get = encode::get_element(id, map, key);
        let action = || format!("read map {map} of nftables table {id}");
        let answer = match self.socket.call(&get, action) {
            Err(error) if error.is_absent() => return Ok(None),
            answer => answer.map_err(refused)?,
        };
        let found = answer.iter().find_map(|message| {
            let list = message.attributes(FAMILY_HEADER_BYTES).nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            let (_, element) = list?.next()?;
            decode::element(spec, Attributes::new(element))
        });
        Ok(found.map(|(_, datum)| datum))
    }

    /// Base chains of others in the forward hook whose policy is to drop.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn foreign_drops(&mut self) -> Result<Vec<ForeignDrop>, OpError> {
        let get = request_of(libc::AF_UNSPEC.unsigned_abs() as u8, NFT_MSG_GETCHAIN, 0);
        let action = || "read the chains of nftables".into();
        let chains = self.socket.dump(&get, action).map_err(refused)?;
        Ok(chains.iter().filter_map(decode::foreign_drop).collect())
    }

    /// Our own rules in another program's chain, each by the kernel's number for it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn own_rules_in(&mut self, chain: &ForeignDrop) -> Result<BTreeMap<u64, Rule>, OpError> {
        let Some(id) = chain.tables().pop() else { return Ok(BTreeMap::new()) };
        let mut get = request(id.family, NFT_MSG_GETRULE, 0);
        get.text(NFTA_RULE_TABLE, &id.name).text(NFTA_RULE_CHAIN, &chain.chain);
        let rules = self.socket.dump(&get, || format!("read {chain}")).map_err(refused)?;
        let own = |message: &Message| decode::own_rule(message.attributes(FAMILY_HEADER_BYTES));
        Ok(rules.iter().filter_map(own).collect())
    }

    /// Appends rules of ours, each with its table in the family that it is about, to another
    /// program's chain, behind all of its own, and deletes some by number.
    ///
    /// # Errors
    /// The kernel's errno and words for the first that it refused.
    pub fn change_rules_in(
        &mut self,
        chain: &ForeignDrop,
        added: &[(TableId, Rule)],
        deleted: &[u64],
    ) -> Result<(), OpError> {
        let Some(id) = chain.tables().pop() else { return Ok(()) };
        let deleted = deleted.iter().map(|&handle| encode::delete_rule(&id, &chain.chain, handle));
        let added = added.iter().map(|(id, rule)| encode::add_rule(id, &chain.chain, rule));
        let requests: Vec<_> = deleted.chain(added).collect();
        let action = |_| format!("change our rules in {chain}");
        self.socket.batch(NFNL_SUBSYS_NFTABLES, &requests, action).map_err(refused)
    }

    /// Several dumps make one picture only when no generation began between them.
    fn read(&mut self, ids: &[TableId]) -> Result<NftObserved, Error> {
        for _ in 0..OBSERVE_ATTEMPTS {
            let before = self.generation()?;
            let mut observed = NftObserved::default();
            for id in ids {
                match self.read_table(id) {
                    Ok(Some(table)) => {
                        observed.tables.insert(id.clone(), table);
                    }
                    Ok(None) => {}
                    // A set or table went between two dumps.
                    Err(error) if error.is_absent() => {}
                    Err(error) => return Err(error),
                }
            }
            if self.generation()? == before {
                return Ok(observed);
            }
        }
        let reason = "others kept changing nftables rules meanwhile; try again".to_owned();
        Err(Error { reason: Some(reason), ..Error::new(libc::EINTR, "read nftables tables") })
    }

    fn generation(&mut self) -> Result<Option<u32>, Error> {
        let request = request(Family::V4.into(), NFT_MSG_GETGEN, 0);
        let answer = self.socket.call(&request, || "ask for nftables' generation".into())?;
        Ok(answer.first().and_then(|message| {
            decode::number(message.attributes(FAMILY_HEADER_BYTES), NFTA_GEN_ID)
        }))
    }

    fn read_table(&mut self, id: &TableId) -> Result<Option<Table>, Error> {
        let family = id.family;
        let ask = |object: &str| format!("read {object} of nftables table {id}");
        // By name: whatever else others have costs nothing.
        let mut get_table = request(family, NFT_MSG_GETTABLE, 0);
        get_table.text(NFTA_TABLE_NAME, &id.name);
        match self.socket.call(&get_table, || ask("the name")) {
            Ok(_) => {}
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        }
        let ours = |attribute: u16| {
            move |message: &&Message| {
                let name = message.attributes(FAMILY_HEADER_BYTES).text(attribute);
                name.as_deref() == Some(id.name.as_str())
            }
        };
        let mut table = Table::default();
        let chains =
            self.socket.dump(&request(family, NFT_MSG_GETCHAIN, 0), || ask("the chains"))?;
        for message in chains.iter().filter(ours(NFTA_CHAIN_TABLE)) {
            table.chains.extend(decode::chain(family, message.attributes(FAMILY_HEADER_BYTES)));
        }
        let mut get_rules = request(family, NFT_MSG_GETRULE, 0);
        get_rules.text(NFTA_RULE_TABLE, &id.name);
        let rules = self.socket.dump(&get_rules, || ask("the rules"))?;
        for message in rules.iter().filter(ours(NFTA_RULE_TABLE)) {
            if let Some((chain, rule)) = decode::rule(message.attributes(FAMILY_HEADER_BYTES)) {
                table.chains.entry(chain).or_default().rules.push(rule);
            }
        }
        let mut get_sets = request(family, NFT_MSG_GETSET, 0);
        get_sets.text(NFTA_SET_TABLE, &id.name);
        let sets = self.socket.dump(&get_sets, || ask("the sets"))?;
        for message in sets.iter().filter(ours(NFTA_SET_TABLE)) {
            if let Some((name, spec)) = decode::set(message.attributes(FAMILY_HEADER_BYTES)) {
                table.sets.insert(name, Set { spec, elements: Elements::new() });
            }
        }
        for (name, set) in &mut table.sets {
            // What packets fill in is not ours to compare.
            if set.spec.filled_by_packets_max.is_none() && !set.spec.key.is_empty() {
                self.read_elements(id, name, set)?;
            }
        }
        Ok(Some(table))
    }

    fn read_elements(&mut self, id: &TableId, name: &str, set: &mut Set) -> Result<(), Error> {
        let mut get = request(id.family, NFT_MSG_GETSETELEM, 0);
        get.text(NFTA_SET_ELEM_LIST_TABLE, &id.name).text(NFTA_SET_ELEM_LIST_SET, name);
        let action = || format!("read set {name} of nftables table {id}");
        let mut elements = Unsorted::default();
        for message in self.socket.dump(&get, action)? {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            let list = attributes.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            for (_, element) in list.into_iter().flatten() {
                match decode::element(&set.spec, Attributes::new(element)) {
                    Some((key, datum)) => elements.push(&key, &datum),
                    // Not of our making: the set shall be made anew.
                    None => {
                        set.spec.key.clear();
                        return Ok(());
                    }
                }
            }
        }
        set.elements = elements.into_map();
        Ok(())
    }
}

impl AsFd for NftDriver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn refused(error: Error) -> OpError {
    let hint = match error.errno {
        libc::EPERM | libc::EACCES => "; this takes root, or CAP_NET_ADMIN in the namespace",
        libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
            "; the kernel lacks nftables: load nf_tables, or use one with CONFIG_NF_TABLES"
        }
        libc::EOPNOTSUPP => {
            "; the kernel lacks a part of nftables (nft_nat, nft_reject, nft_ct, nft_fib, or a family: bridge, arp)"
        }
        libc::ENOMEM | libc::ENOBUFS => "; memory is short; it is tried again",
        _ => "",
    };
    OpError { errno: error.errno, message: format!("{error}{hint}") }
}
