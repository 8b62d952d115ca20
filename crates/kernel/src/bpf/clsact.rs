//! Programs as filters of the queueing discipline `clsact` (`include/uapi/linux/pkt_cls.h`), for
//! kernels without tcx.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::TcAttachType;
use netlink::message::Request;
use netlink::socket::{Message, Socket};
use netlink::{Error, Link};

use super::attach::Attached;
use super::objects::Program;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's answer is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const ETH_P_ALL: u16 = 3;
/// Bytes of `struct tcmsg`.
const HEADER_BYTES: usize = 20;
/// Our only filter of its priority. Others that come first number theirs from 1.
const HANDLE: u32 = u32::from_be_bytes(*b"flat");
/// Before the names of our filters.
const NAME_PREFIX: &str = "flatnet:";

/// The writer of our filters.
pub(super) struct Clsact {
    socket: Socket,
}

impl Clsact {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_ROUTE)? })
    }

    pub(super) fn attached(&mut self, ids: &BTreeMap<Program, u32>) -> Result<Attached, Error> {
        let mut attached = Attached::new();
        for index in self.links()? {
            for side in [INGRESS, EGRESS] {
                for (program, id) in self.filters(index, side)?.into_iter().flatten() {
                    if let Some(own) = ids.get(&program) {
                        attached.insert((index, program), *own == id);
                    }
                }
            }
        }
        Ok(attached)
    }

    pub(super) fn attach(
        &mut self,
        program: Program,
        loaded: &impl AsFd,
        link: &Link,
    ) -> Result<(), Error> {
        let action = || format!("attach the program {} to {}", program.name(), link.name);
        let exclusive = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut discipline =
            Request::new(RTM_NEWQDISC, exclusive, &header(link.index, TC_H_CLSACT, 0, 0));
        discipline.text(TCA_KIND, "clsact");
        match self.socket.call(&discipline, action) {
            Err(error) if !error.is_present() => return Err(error),
            _ => {}
        }
        let fd = u32::try_from(loaded.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        let place = header(link.index, side(program), HANDLE, info(program));
        // Without EXCL an older filter is replaced in one step.
        let mut filter = Request::new(RTM_NEWTFILTER, libc::NLM_F_CREATE, &place);
        filter.text(TCA_KIND, "bpf").nested(TCA_OPTIONS, &[], |options| {
            options
                .u32(TCA_BPF_FD, fd)
                .text(TCA_BPF_NAME, &format!("{NAME_PREFIX}{}", program.name()))
                .u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        self.socket.call(&filter, action).map(drop)
    }

    /// Takes the filter away, and the queueing discipline where nobody uses it any more.
    pub(super) fn detach(&mut self, program: Program, link_index: u32) -> Result<(), Error> {
        let action = || format!("detach the program {} from link {link_index}", program.name());
        let place = header(link_index, side(program), HANDLE, info(program));
        let mut filter = Request::new(RTM_DELTFILTER, 0, &place);
        filter.text(TCA_KIND, "bpf");
        self.socket.call(&filter, action)?;
        for hook in [INGRESS, EGRESS] {
            if !self.filters(link_index, hook)?.is_empty() {
                return Ok(());
            }
        }
        let mut discipline = Request::new(RTM_DELQDISC, 0, &header(link_index, TC_H_CLSACT, 0, 0));
        discipline.text(TCA_KIND, "clsact");
        self.socket.call(&discipline, action).map(drop)
    }

    /// The links that may have filters.
    fn links(&mut self) -> Result<BTreeSet<u32>, Error> {
        let request = Request::new(RTM_GETQDISC, 0, &header(0, 0, 0, 0));
        let messages = self.socket.dump(&request, || "list queueing disciplines".into())?;
        let parse = |message: &Message| {
            let header: [u8; HEADER_BYTES] = message.header()?;
            let kind = message.attributes(HEADER_BYTES).text(TCA_KIND)?;
            let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            (kind == "clsact" || kind == "ingress").then_some(index)
        };
        Ok(messages.iter().filter_map(parse).collect())
    }

    /// The filters of a link: ours as program and number of what is loaded, others as `None`.
    fn filters(
        &mut self,
        link_index: u32,
        hook: u32,
    ) -> Result<Vec<Option<(Program, u32)>>, Error> {
        let request = Request::new(RTM_GETTFILTER, 0, &header(link_index, hook, 0, 0));
        let messages =
            self.socket.dump(&request, || format!("list the filters of link {link_index}"))?;
        // Each priority has a message without a handle before those of its filters.
        let is_filter = |message: &&Message| {
            message.kind == RTM_NEWTFILTER
                && message.header::<HEADER_BYTES>().is_some_and(|header| header[8..12] != [0; 4])
        };
        Ok(messages.iter().filter(is_filter).map(parse_filter).collect())
    }
}

fn parse_filter(message: &Message) -> Option<(Program, u32)> {
    let options = message.attributes(HEADER_BYTES).nested(TCA_OPTIONS)?;
    let name = options.text(TCA_BPF_NAME)?;
    let name = name.strip_prefix(NAME_PREFIX)?;
    let program = Program::by_name(name)?;
    let options = message.attributes(HEADER_BYTES).nested(TCA_OPTIONS)?;
    Some((program, options.u32(TCA_BPF_ID)?))
}

/// The side of the link that a program's filter is on.
fn side(program: Program) -> u32 {
    match program.side() {
        TcAttachType::Egress => EGRESS,
        _ => INGRESS,
    }
}

/// `tcm_info` of a filter of ours: priority, and protocol in network byte order. First, so that
/// nobody's "accept" goes before our checks; Services before forwarding, names last.
fn info(program: Program) -> u32 {
    let priority = match program {
        Program::ServiceEnter | Program::ServiceLeave => 1,
        Program::FromPod | Program::FromTunnel | Program::FromUplink => 2,
        Program::AnswerName => 3,
    };
    priority << 16 | u32::from(ETH_P_ALL.to_be())
}

/// `struct tcmsg`.
fn header(link_index: u32, parent: u32, handle: u32, info: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&link_index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    bytes
}
