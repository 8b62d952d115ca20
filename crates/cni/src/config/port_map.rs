//! Keys of the reference plugin portmap that speak of iptables, as far as they can be said without.
//!
//! | key | what is done |
//! |---|---|
//! | `conditionsV4`, `conditionsV6` | `-s RANGE` and `-d RANGE`, each with or without `!` before it; other matches are refused |
//! | `markMasqBit` | 14 is the bit that we set, 13 the reference's choice where nobody has a wish; another one is refused |
//! | `externalSetMarkChain` | `KUBE-MARK-MASQ` sets that very bit; another chain is refused |

use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;
use model::attachment::{HostPortCondition, Side};
use serde_json::Value;

use super::{invalid, unsupported};
use crate::fault::Fault;

/// Words of conditions of one family that are read at most.
const CONDITION_WORDS_MAX: usize = 256;
/// Bits of a packet's mark.
const MARK_BITS: std::ops::Range<u64> = 0..32;
/// The reference's bit, where the configuration names none.
const REFERENCE_BIT: u64 = 13;
/// kube-proxy's bit, and ours (`render::owned::MARK_MASQUERADE`).
const OWN_BIT: u64 = 14;
/// kube-proxy's chain that sets its bit.
const OWN_CHAIN: &str = "KUBE-MARK-MASQ";

/// Reads the conditions of both families.
///
/// # Errors
/// Code 2 for a match that cannot be said, code 7 for what is none.
pub(super) fn conditions(config: &Value) -> Result<Vec<HostPortCondition>, Fault> {
    let mut conditions = Vec::new();
    for (key, family) in [("conditionsV4", Family::V4), ("conditionsV6", Family::V6)] {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let words: Option<Vec<&str>> =
            value.as_array().and_then(|words| words.iter().map(Value::as_str).collect());
        let Some(words) = words.filter(|words| words.len() <= CONDITION_WORDS_MAX) else {
            let details = format!("it is a list of at most {CONDITION_WORDS_MAX} texts");
            return Err(invalid(&format!("invalid {key}: {value}"), details));
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let outside = word == "!";
            let side = match if outside { words.next().unwrap_or_default() } else { word } {
                "-s" | "--source" | "--src" => Some(Side::Source),
                "-d" | "--destination" | "--dst" => Some(Side::Destination),
                _ => None,
            };
            let range = words.next().and_then(range).filter(|it| Family::of(&it.addr()) == family);
            let (Some(side), Some(range)) = (side, range) else {
                let remedy = "only -s RANGE and -d RANGE of its family, with or without !, can be \
                              done with nftables: remove the rest";
                return Err(unsupported(key, value, remedy));
            };
            conditions.push(HostPortCondition { side, range, outside });
        }
    }
    Ok(conditions)
}

/// Refuses marks that we do not set.
///
/// # Errors
/// Code 2, or code 7 for what is no mark, or two of them.
pub(super) fn check_marks(config: &Value) -> Result<(), Fault> {
    let given = |key: &str| config.get(key).filter(|value| !value.is_null() && **value != "");
    let (bit, chain) = (given("markMasqBit"), given("externalSetMarkChain"));
    if bit.is_some() && chain.is_some() {
        let message = "invalid externalSetMarkChain: markMasqBit is given too";
        return Err(invalid(message, "name one of them"));
    }
    match bit.map(|value| (value, value.as_u64().filter(|bit| MARK_BITS.contains(bit)))) {
        None | Some((_, Some(REFERENCE_BIT | OWN_BIT))) => {}
        Some((value, None)) => {
            let details = "it is a number from 0 to 31";
            return Err(invalid(&format!("invalid markMasqBit: {value}"), details));
        }
        Some((value, Some(_))) => {
            let remedy = format!("packets are marked with bit {OWN_BIT}: remove it");
            return Err(unsupported("markMasqBit", value, &remedy));
        }
    }
    match chain.filter(|chain| **chain != OWN_CHAIN) {
        None => Ok(()),
        Some(chain) => {
            let remedy = format!(
                "no chain of iptables is called; the bit that {OWN_CHAIN} sets is set: remove it"
            );
            Err(unsupported("externalSetMarkChain", chain, &remedy))
        }
    }
}

fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
