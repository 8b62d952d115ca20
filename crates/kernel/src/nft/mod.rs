//! [`NftDriver`]: our nftables tables, by netlink messages of our own over one kept socket. The
//! `nft` program is for people: closing its socket after each change waits tens of milliseconds.

mod conntrack;
mod decode;
mod encode;
mod expression;
mod uapi;

use std::collections::BTreeMap;

use model::Family;
use netlink::Error;
use netlink::socket::Socket;
use render::OpError;
use render::nft::language::{Set, Table};
use render::nft::{NftObserved, NftOp, Transaction};
use render::owned::NFT_TABLE;

use encode::request;
use uapi::*;

/// Bytes of `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;
/// How often a reading starts again because somebody changed rules meanwhile.
const OBSERVE_ATTEMPTS: usize = 8;

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

    /// Reads back our tables. Rules are known by their fingerprints only.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or others change rules faster than they can be read.
    pub fn observe(&mut self) -> Result<NftObserved, OpError> {
        self.read().map_err(refused)
    }

    /// Carries out one op, wholly or not at all.
    ///
    /// # Errors
    /// The kernel's errno and words for the first command that it refused.
    pub fn apply(&mut self, op: &NftOp) -> Result<(), OpError> {
        match op {
            NftOp::Transaction(transaction) => self.commit(transaction),
            NftOp::ForgetFlows(stale) => {
                conntrack::forget(&mut self.socket, stale).map_err(refused)
            }
        }
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<(), OpError> {
        let (indexes, requests): (Vec<usize>, Vec<_>) =
            encode::requests(transaction).into_iter().unzip();
        let family = transaction.family;
        let action = |request: Option<usize>| {
            let command = request
                .and_then(|request| indexes.get(request))
                .and_then(|&index| transaction.commands.get(index));
            match command {
                Some(command) => format!("{command} in nftables table {NFT_TABLE} ({family})"),
                None => format!("commit to nftables table {NFT_TABLE} ({family})"),
            }
        };
        self.socket.batch(NFNL_SUBSYS_NFTABLES, &requests, action).map_err(refused)
    }

    /// Several dumps make one picture only when no generation began between them.
    fn read(&mut self) -> Result<NftObserved, Error> {
        for _ in 0..OBSERVE_ATTEMPTS {
            let before = self.generation()?;
            let mut observed = NftObserved::default();
            for family in [Family::V4, Family::V6] {
                match self.read_table(family) {
                    Ok(Some(table)) => {
                        observed.tables.insert(family, table);
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
        let action = format!("read nftables table {NFT_TABLE}");
        Err(Error { reason: Some(reason), ..Error::new(libc::EINTR, action) })
    }

    fn generation(&mut self) -> Result<Option<u32>, Error> {
        let request = request(Family::V4, NFT_MSG_GETGEN, 0);
        let answer = self.socket.call(&request, || "ask for nftables' generation".into())?;
        Ok(answer.first().and_then(|message| {
            decode::number(message.attributes(FAMILY_HEADER_BYTES), NFTA_GEN_ID)
        }))
    }

    fn read_table(&mut self, family: Family) -> Result<Option<Table>, Error> {
        let ask = |object: &str| format!("read {object} of nftables table {NFT_TABLE} ({family})");
        let tables = self.socket.dump(&request(family, NFT_MSG_GETTABLE, 0), || ask("the name"))?;
        let ours = |attribute: u16| {
            move |message: &netlink::socket::Message| {
                let name = message.attributes(FAMILY_HEADER_BYTES).text(attribute);
                name.as_deref() == Some(NFT_TABLE)
            }
        };
        if !tables.iter().any(ours(NFTA_TABLE_NAME)) {
            return Ok(None);
        }
        let mut table = Table::default();
        let chains =
            self.socket.dump(&request(family, NFT_MSG_GETCHAIN, 0), || ask("the chains"))?;
        for message in chains.iter().filter(|message| ours(NFTA_CHAIN_TABLE)(message)) {
            table.chains.extend(decode::chain(message.attributes(FAMILY_HEADER_BYTES)));
        }
        let mut get_rules = request(family, NFT_MSG_GETRULE, 0);
        get_rules.text(NFTA_RULE_TABLE, NFT_TABLE);
        let rules = self.socket.dump(&get_rules, || ask("the rules"))?;
        for message in rules.iter().filter(|message| ours(NFTA_RULE_TABLE)(message)) {
            if let Some((chain, rule)) = decode::rule(message.attributes(FAMILY_HEADER_BYTES)) {
                table.chains.entry(chain).or_default().rules.push(rule);
            }
        }
        let mut get_sets = request(family, NFT_MSG_GETSET, 0);
        get_sets.text(NFTA_SET_TABLE, NFT_TABLE);
        let sets = self.socket.dump(&get_sets, || ask("the sets"))?;
        for message in sets.iter().filter(|message| ours(NFTA_SET_TABLE)(message)) {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            if let Some((name, spec)) = decode::set(family, attributes) {
                table.sets.insert(name, Set { spec, elements: BTreeMap::new() });
            }
        }
        for (name, set) in &mut table.sets {
            // What packets fill in is not ours to compare.
            if set.spec.filled_by_packets_max.is_none() && !set.spec.key.is_empty() {
                self.read_elements(family, name, set)?;
            }
        }
        Ok(Some(table))
    }

    fn read_elements(&mut self, family: Family, name: &str, set: &mut Set) -> Result<(), Error> {
        let mut get = request(family, NFT_MSG_GETSETELEM, 0);
        get.text(NFTA_SET_ELEM_LIST_TABLE, NFT_TABLE).text(NFTA_SET_ELEM_LIST_SET, name);
        let action = || format!("read set {name} of nftables table {NFT_TABLE} ({family})");
        for message in self.socket.dump(&get, action)? {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            let list = attributes.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            for (_, element) in list.into_iter().flatten() {
                let element = netlink::message::Attributes::new(element);
                match decode::element(family, &set.spec, element) {
                    Some((key, datum)) => {
                        set.elements.insert(key, datum);
                    }
                    // Not of our making: the set shall be made anew.
                    None => {
                        set.spec.key.clear();
                        set.elements.clear();
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

fn refused(error: Error) -> OpError {
    let hint = match error.errno {
        libc::EPERM | libc::EACCES => "; this takes root, or CAP_NET_ADMIN in the namespace",
        libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
            "; the kernel lacks nftables: load nf_tables, or use one with CONFIG_NF_TABLES"
        }
        libc::EOPNOTSUPP => "; the kernel lacks a part of nftables (nft_nat, nft_reject, nft_ct)",
        libc::ENOMEM | libc::ENOBUFS => "; memory is short; it is tried again",
        _ => "",
    };
    OpError { errno: error.errno, message: format!("{error}{hint}") }
}
