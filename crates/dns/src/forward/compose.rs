//! Messages to servers, and to clients from what servers said.

use super::{Output, Random, Source};
use crate::answer::{Forward, TTL_S, failure};
use crate::cache::{Question, Resolved};
use crate::message::{HEADER_OCTETS, flag, kind};
use crate::writer::{Section, Writer};
use crate::{Name, Record};

/// How long clients may keep what expired, in seconds (RFC 8767, 4).
const STALE_TTL_S: u32 = 30;

/// The reply when nobody answered: the cluster's own, with which a client goes on along its search
/// path, or a failure.
pub(super) fn failed<C>(client: C, forward: Forward, rcode: u16) -> Output<C> {
    let message = match forward.otherwise {
        Some(otherwise) => otherwise,
        None => failure(&forward.query, forward.transport, rcode),
    };
    Output::Reply { client, message, source: Source::Nobody }
}

/// Each letter's case is one more bit that a forger must guess.
pub(super) fn with_random_case(name: &Name, random: Random) -> Name {
    let mut bits = 0;
    let mut left = 0;
    let mut flip = |octet: &u8| {
        if left == 0 {
            (bits, left) = (random(), u64::BITS);
        }
        left -= 1;
        bits >>= 1;
        if bits & 1 == 1 { octet.to_ascii_uppercase() } else { *octet }
    };
    let labels: Vec<Vec<u8>> =
        name.labels().map(|label| label.iter().map(&mut flip).collect()).collect();
    // As long as the name that it was made from, so it fits.
    Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap_or_else(|_| name.clone())
}

/// Passes on what the client wants of DNSSEC.
pub(super) fn ask_for_dnssec(message: &mut [u8], question: &Question, with_edns: bool) {
    if question.checking_disabled
        && let Some(low_flags) = message.get_mut(3)
    {
        *low_flags |= flag::CHECKING_DISABLED as u8;
    }
    // The OPT record comes last; before its length stand its flags, DO the first.
    let at = message.len().checked_sub(4).filter(|_| question.dnssec_ok && with_edns);
    if let Some(high_flags) = at.and_then(|at| message.get_mut(at)) {
        *high_flags |= 0x80;
    }
}

/// The client's answer: the cluster's aliases, then what the server said. An age of `u32::MAX` is
/// what expired. Without aliases, what is said of the name that was asked for in the client's
/// place is said of the client's name.
pub(super) fn compose(forward: &Forward, resolved: &Resolved, age_s: u32) -> Vec<u8> {
    let query = &forward.query;
    let mut writer = Writer::response(query, forward.transport);
    writer.set_rcode(resolved.rcode);
    let wants_proof =
        query.flags & flag::AUTHENTIC_DATA != 0 || query.edns.is_some_and(|edns| edns.dnssec_ok);
    if resolved.is_authentic && wants_proof && forward.aliases.is_empty() {
        writer.set_flag(flag::AUTHENTIC_DATA);
    }
    let mut known = vec![(query.name.clone(), HEADER_OCTETS)];
    if forward.aliases.is_empty() {
        known.push((forward.name.clone(), HEADER_OCTETS));
    }
    let mut owner_at = HEADER_OCTETS;
    let targets = forward.aliases.iter().skip(1).chain([&forward.name]);
    for target in targets.take(forward.aliases.len()) {
        let data: [&[u8]; 1] = [target.wire()];
        let written = writer.record(Section::Answer, owner_at, kind::CNAME, TTL_S, &data);
        let Some(at) = written else { return writer.finish() };
        known.push((target.clone(), at));
        owner_at = at;
    }
    let aged = |record| aged(record, age_s);
    writer.records(Section::Answer, resolved.answers.iter().map(aged), &mut known);
    writer.records(Section::Authority, resolved.authority.iter().map(aged), &mut known);
    writer.finish()
}

fn aged(record: &Record, age_s: u32) -> (&Record, u32) {
    let ttl_s = if age_s == u32::MAX {
        record.ttl_s.min(STALE_TTL_S)
    } else {
        record.ttl_s.saturating_sub(age_s)
    };
    (record, ttl_s)
}
