//! Traffic limits: token buckets, and the way from a link's ingress to one
//! (`include/uapi/linux/pkt_sched.h`, `pkt_cls.h`).
//!
//! The kernel shapes only what leaves a link. What enters one is led through an `ifb` link and
//! shaped as that leaves.

use crate::link::{IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, creation};
use crate::message::{Request, u32_of};
use crate::socket::Message;
use crate::{Error, Netlink};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// Also the parent of an `ingress` queueing discipline.
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// Where filters of a link's ingress hang, under `clsact` and under `ingress`.
const INGRESS_FILTERS: u32 = 0xffff_fff2;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
/// Our filter's place among others of a link's ingress: after programs that judge packets.
const REDIRECT_PRIORITY: u32 = 0xc000;
const ETH_P_ALL: u16 = 3;
/// Bytes of `struct tcmsg`.
const HEADER_BYTES: usize = 20;
/// Bytes of `struct tc_tbf_qopt`.
const TBF_BYTES: usize = 36;
/// Bytes of `struct tc_mirred`.
const MIRRED_BYTES: usize = 28;
/// The kernel tells times of queueing disciplines in units of 64 ns (`PSCHED_SHIFT`).
const TICK_NS: u128 = 64;

/// A token bucket: the `tbf` queueing discipline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate_bytes_per_s: u64,
    /// Bytes that may pass at once after a pause. As the kernel tells it, rounded to what it
    /// counts in.
    pub burst_bytes: u32,
    /// Bytes that may wait; what comes then is dropped.
    pub limit_bytes: u32,
}

impl Netlink {
    /// Makes an `ifb` link, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no `ifb`.
    pub fn create_ifb(&mut self, name: &str, mtu: u32) -> Result<(), Error> {
        let mut request = creation(name)?;
        request.u32(IFLA_MTU, mtu).nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "ifb");
        });
        self.socket.call(&request, || format!("create the ifb link {name}")).map(drop)
    }

    /// Shapes what leaves a link, in place of what shaped it before.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone, `ENOENT` when the kernel has no `tbf`.
    pub fn set_token_bucket(&mut self, link: u32, bucket: &TokenBucket) -> Result<(), Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = Request::new(RTM_NEWQDISC, flags, &header(link, TC_H_ROOT, 0));
        request.text(TCA_KIND, "tbf").nested(TCA_OPTIONS, &[], |options| {
            options
                .attribute(TCA_TBF_PARMS, &tbf_parameters(bucket))
                .attribute(TCA_TBF_RATE64, &bucket.rate_bytes_per_s.to_ne_bytes())
                .u32(TCA_TBF_BURST, bucket.burst_bytes);
        });
        self.socket.call(&request, || format!("limit the rate of the link number {link}")).map(drop)
    }

    /// The token bucket that shapes what leaves a link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn token_bucket(&mut self, link: u32) -> Result<Option<TokenBucket>, Error> {
        let request = Request::new(RTM_GETQDISC, 0, &header(link, 0, 0));
        let messages = self.socket.dump(&request, || "list queueing disciplines".into())?;
        Ok(messages.iter().filter_map(|message| parse_bucket(message, link)).next())
    }

    /// Takes the shaping of what leaves a link away.
    ///
    /// # Errors
    /// `ENOENT` or `EINVAL` when nothing shapes it.
    pub fn delete_token_bucket(&mut self, link: u32) -> Result<(), Error> {
        let request = Request::new(RTM_DELQDISC, 0, &header(link, TC_H_ROOT, 0));
        let action = || format!("lift the limit of the link number {link}");
        self.socket.call(&request, action).map(drop)
    }

    /// Leads all that enters a link to another link, and back from there, in place of an earlier
    /// redirection.
    ///
    /// # Errors
    /// `ENOENT` when the kernel lacks `clsact`, `u32` or `mirred`.
    pub fn redirect_ingress(&mut self, link: u32, to: u32) -> Result<(), Error> {
        let action = || format!("lead the ingress of the link number {link} elsewhere");
        let create = libc::NLM_F_CREATE;
        let mut discipline =
            Request::new(RTM_NEWQDISC, create | libc::NLM_F_EXCL, &header(link, TC_H_CLSACT, 0));
        discipline.text(TCA_KIND, "clsact");
        match self.socket.call(&discipline, action) {
            // Somebody else's, of either kind, holds our filter as well.
            Err(error) if !error.is_present() => return Err(error),
            _ => {}
        }
        // A second filter of the same place would stand beside the first.
        match self.delete_ingress_redirect(link) {
            Err(error) if !matches!(error.errno, libc::ENOENT | libc::EINVAL) => return Err(error),
            _ => {}
        }
        let mut filter = filter_message(RTM_NEWTFILTER, create | libc::NLM_F_EXCL, link);
        filter.text(TCA_KIND, "u32").nested(TCA_OPTIONS, &[], |options| {
            options.attribute(TCA_U32_SEL, &match_all()).nested(TCA_U32_ACT, &[], |actions| {
                actions.nested(1, &[], |first| {
                    first.text(TCA_ACT_KIND, "mirred").nested(TCA_ACT_OPTIONS, &[], |mirred| {
                        mirred.attribute(TCA_MIRRED_PARMS, &mirred_parameters(to));
                    });
                });
            });
        });
        self.socket.call(&filter, action).map(drop)
    }

    /// Where [`Netlink::redirect_ingress`] leads what enters a link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn ingress_redirect(&mut self, link: u32) -> Result<Option<u32>, Error> {
        let request = filter_message(RTM_GETTFILTER, 0, link);
        match self.socket.dump(&request, || "list filters".into()) {
            Ok(messages) => Ok(messages.iter().find_map(parse_redirect)),
            // No discipline that filters could hang on.
            Err(error) if matches!(error.errno, libc::EINVAL | libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the redirection away again.
    ///
    /// # Errors
    /// `ENOENT` or `EINVAL` when there is none.
    pub fn delete_ingress_redirect(&mut self, link: u32) -> Result<(), Error> {
        let request = filter_message(RTM_DELTFILTER, 0, link);
        let action = || format!("lead the ingress of the link number {link} back");
        self.socket.call(&request, action).map(drop)
    }
}

/// `struct tcmsg`.
fn header(link: u32, parent: u32, info: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&link.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    bytes
}

fn filter_message(kind: u16, flags: i32, link: u32) -> Request {
    let info = REDIRECT_PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    Request::new(kind, flags, &header(link, INGRESS_FILTERS, info))
}

/// `struct tc_tbf_qopt`: rate, (no) peak rate, limit; the burst follows as its own attribute.
fn tbf_parameters(bucket: &TokenBucket) -> [u8; TBF_BYTES] {
    let mut bytes = [0; TBF_BYTES];
    // struct tc_ratespec. With the link layer named, the kernel asks for no rate table.
    bytes[1] = TC_LINKLAYER_ETHERNET;
    let rate = u32::try_from(bucket.rate_bytes_per_s).unwrap_or(u32::MAX);
    bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
    bytes[24..28].copy_from_slice(&bucket.limit_bytes.to_ne_bytes());
    bytes
}

fn parse_bucket(message: &Message, link: u32) -> Option<TokenBucket> {
    let header: [u8; HEADER_BYTES] = message.header()?;
    let attributes = message.attributes(HEADER_BYTES);
    let wanted = message.kind == RTM_NEWQDISC
        && u32_of(&header[4..])? == link
        && u32_of(&header[12..])? == TC_H_ROOT
        && attributes.text(TCA_KIND).as_deref() == Some("tbf");
    if !wanted {
        return None;
    }
    let options = attributes.nested(TCA_OPTIONS)?;
    let parameters = options.find(TCA_TBF_PARMS)?;
    let large = options.find(TCA_TBF_RATE64).and_then(|value| value.try_into().ok());
    let rate_bytes_per_s = match large.map(u64::from_ne_bytes) {
        Some(rate) => rate,
        None => u64::from(u32_of(parameters.get(8..)?)?),
    };
    let ticks = u128::from(u32_of(parameters.get(28..)?)?);
    let burst = u128::from(rate_bytes_per_s) * ticks * TICK_NS / 1_000_000_000;
    Some(TokenBucket {
        rate_bytes_per_s,
        burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX),
        limit_bytes: u32_of(parameters.get(24..)?)?,
    })
}

/// `struct tc_u32_sel` with one key that every packet matches.
fn match_all() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = 1;
    bytes
}

/// `struct tc_mirred`: the packet is taken away and leaves by another link.
fn mirred_parameters(to: u32) -> [u8; MIRRED_BYTES] {
    let mut bytes = [0; MIRRED_BYTES];
    for (offset, value) in [(8, TC_ACT_STOLEN), (20, TCA_EGRESS_REDIR), (24, to)] {
        bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

fn parse_redirect(message: &Message) -> Option<u32> {
    let header: [u8; HEADER_BYTES] = message.header()?;
    if message.kind != RTM_NEWTFILTER || u32_of(&header[16..])? >> 16 != REDIRECT_PRIORITY {
        return None;
    }
    let options = message.attributes(HEADER_BYTES).nested(TCA_OPTIONS)?;
    let first = options.nested(TCA_U32_ACT)?.nested(1)?;
    let parameters = first.nested(TCA_ACT_OPTIONS)?.find(TCA_MIRRED_PARMS)?;
    u32_of(parameters.get(24..)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_cut_short_are_no_buckets_and_no_redirections() {
        let mut request = Request::new(RTM_NEWQDISC, 0, &header(7, TC_H_ROOT, 0));
        request.text(TCA_KIND, "tbf").nested(TCA_OPTIONS, &[], |options| {
            options.attribute(TCA_TBF_PARMS, &[0; 8]);
        });
        let payload = request.finish(1, 0).split_off(crate::message::HEADER_BYTES);
        let message = Message { kind: RTM_NEWQDISC, payload };
        assert_eq!(parse_bucket(&message, 7), None);
        assert_eq!(parse_bucket(&Message { kind: RTM_NEWQDISC, payload: vec![0; 3] }, 7), None);
        assert_eq!(parse_redirect(&message), None);
    }
}
