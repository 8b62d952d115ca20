//! Fixed addresses: which addresses a pod insists on, by its annotations and its name.
//!
//! ```text
//! flatnet.io/pod-addresses: 10.244.1.9,fd00:10::9                the very addresses
//! flatnet.io/pod-address-pool: 10.244.1.100-10.244.1.119         web-0 gets .100, web-1 gets .101
//! ```
//!
//! The pool stands in the pod template of a StatefulSet: each pod gets the address at its
//! ordinal, of each family that the pool names, and the same again after it moved or restarted.
//! Whether the node has the address is for the allocator to say; `onRequest` in its
//! configuration keeps pools from other pods (see [`crate::Withheld`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::withheld::{Span, SpanError};

/// Annotation of a pod: its addresses, at most one of a family.
pub const ADDRESSES_ANNOTATION: &str = "flatnet.io/pod-addresses";
/// Annotation of the pods of a StatefulSet: spans to count its ordinals through.
pub const POOL_ANNOTATION: &str = "flatnet.io/pod-address-pool";
/// Addresses and spans that an annotation may name.
const PARTS_MAX: usize = 64;

/// Annotations that cannot be followed. A pod that insists on an address gets it or none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FixedError {
    /// Not a list of addresses or spans.
    #[error("the annotation {key} cannot be understood: {problem}")]
    Malformed {
        /// The annotation.
        key: &'static str,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// The pod's name does not end in an ordinal.
    #[error(
        "the annotation {POOL_ANNOTATION} is for pods of a StatefulSet: the name {0:?} does not \
         end in -NUMBER; name one address with {ADDRESSES_ANNOTATION} instead"
    )]
    NoOrdinal(String),
    /// The pool is shorter than the StatefulSet.
    #[error(
        "the pool {pool:?} of the annotation {POOL_ANNOTATION} ends before ordinal {ordinal}: \
         make it longer, or the StatefulSet smaller"
    )]
    PoolTooShort {
        /// The annotation's value.
        pool: String,
        /// The pod's ordinal.
        ordinal: u64,
    },
}

/// The addresses that a pod must have; none where it does not mind. The addresses that it names
/// itself come before the pool's.
///
/// # Errors
/// When an annotation is wrong.
pub fn requested(
    pod_name: &str,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<IpAddr>, FixedError> {
    if let Some(text) = annotations.get(ADDRESSES_ANNOTATION) {
        return named(text);
    }
    match annotations.get(POOL_ANNOTATION) {
        Some(text) => of_pool(pod_name, text),
        None => Ok(vec![]),
    }
}

fn named(text: &str) -> Result<Vec<IpAddr>, FixedError> {
    let malformed = |problem: String| FixedError::Malformed { key: ADDRESSES_ANNOTATION, problem };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in parts(text, ADDRESSES_ANNOTATION)? {
        let address: IpAddr =
            part.parse().map_err(|_| malformed(format!("{part:?} is no IP address")))?;
        if let Some(other) = addresses.iter().find(|one| one.is_ipv4() == address.is_ipv4()) {
            return Err(malformed(format!(
                "{other} and {address} are of one family, and a pod has one address of each"
            )));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn of_pool(pod_name: &str, text: &str) -> Result<Vec<IpAddr>, FixedError> {
    let ordinal = ordinal(pod_name).ok_or_else(|| FixedError::NoOrdinal(pod_name.to_owned()))?;
    let malformed = |error: SpanError| FixedError::Malformed {
        key: POOL_ANNOTATION,
        problem: error.to_string(),
    };
    let spans: Vec<Span> = parts(text, POOL_ANNOTATION)?
        .into_iter()
        .map(|part| part.parse().map_err(malformed))
        .collect::<Result<_, _>>()?;
    if let Some((one, other)) = first_overlap(&spans) {
        let problem = format!("{one} and {other} overlap: two pods would want one address");
        return Err(FixedError::Malformed { key: POOL_ANNOTATION, problem });
    }
    let mut addresses = Vec::new();
    for is_ipv4 in [true, false] {
        let of_family: Vec<&Span> =
            spans.iter().filter(|span| span.last().is_ipv4() == is_ipv4).collect();
        if of_family.is_empty() {
            continue;
        }
        let too_short = || FixedError::PoolTooShort { pool: text.to_owned(), ordinal };
        addresses.push(nth(&of_family, ordinal.into()).ok_or_else(too_short)?);
    }
    Ok(addresses)
}

fn first_overlap(spans: &[Span]) -> Option<(Span, Span)> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let pairs = sorted.iter().zip(sorted.iter().skip(1));
    pairs.map(|(one, other)| (*one, *other)).find(|(one, other)| one.contains(other.first()))
}

fn nth(spans: &[&Span], mut index: u128) -> Option<IpAddr> {
    for span in spans {
        match span.nth(index) {
            Some(address) => return Some(address),
            None => index = index.checked_sub(span.count())?,
        }
    }
    None
}

/// The number behind the last dash of a StatefulSet's pod, in the form that its controller
/// writes: no sign, no leading zero.
fn ordinal(pod_name: &str) -> Option<u64> {
    let (set, digits) = pod_name.rsplit_once('-')?;
    let ordinal: u64 = digits.parse().ok()?;
    (!set.is_empty() && ordinal.to_string() == digits).then_some(ordinal)
}

fn parts<'a>(text: &'a str, key: &'static str) -> Result<Vec<&'a str>, FixedError> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    match parts.len() {
        1..=PARTS_MAX => Ok(parts),
        0 => Err(FixedError::Malformed { key, problem: "it is empty: remove it".into() }),
        more => {
            let problem = format!("it has {more} parts, at most {PARTS_MAX}: use FIRST-LAST");
            Err(FixedError::Malformed { key, problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pod: &str, annotations: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let found = requested(pod, &annotations).map_err(|error| error.to_string())?;
        Ok(found.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn addresses_follow_the_annotation_or_the_ordinal() {
        let pool = "10.0.0.100-10.0.0.101, 10.0.0.120/31, fd00::100-fd00::1ff";
        let named = "10.0.0.9, fd00::9";
        type Annotations<'a> = &'a [(&'a str, &'a str)];
        let rows: [(&str, Annotations<'_>, &[&str]); 6] = [
            ("web", &[], &[]),
            ("web", &[("other", "x")], &[]),
            ("web", &[(ADDRESSES_ANNOTATION, named)], &["10.0.0.9", "fd00::9"]),
            ("web-0", &[(POOL_ANNOTATION, pool)], &["10.0.0.100", "fd00::100"]),
            ("a-b-3", &[(POOL_ANNOTATION, pool)], &["10.0.0.121", "fd00::103"]),
            (
                "web-0",
                &[(POOL_ANNOTATION, pool), (ADDRESSES_ANNOTATION, named)],
                &["10.0.0.9", "fd00::9"],
            ),
        ];
        for (pod, annotations, expected) in rows {
            let expected: Vec<String> = expected.iter().map(|&text| text.into()).collect();
            assert_eq!(of(pod, annotations), Ok(expected), "{pod} {annotations:?}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_an_error_that_names_the_remedy() {
        let many = "10.0.0.1,".repeat(PARTS_MAX + 1);
        let rows: [(&str, &str, &str, &str); 10] = [
            ("web-4", POOL_ANNOTATION, "10.0.0.1-10.0.0.4", "ends before ordinal 4"),
            ("web", POOL_ANNOTATION, "10.0.0.1", "does not end in -NUMBER"),
            ("web-01", POOL_ANNOTATION, "10.0.0.1", "does not end in -NUMBER"),
            ("-1", POOL_ANNOTATION, "10.0.0.1", "does not end in -NUMBER"),
            ("web-0", POOL_ANNOTATION, "ten", "neither an address"),
            ("web-0", POOL_ANNOTATION, " , ", "remove it"),
            ("web-0", POOL_ANNOTATION, &many, "use FIRST-LAST"),
            ("web-0", POOL_ANNOTATION, "10.0.0.9,10.0.0.0/28", "overlap"),
            ("web", ADDRESSES_ANNOTATION, "10.0.0.1,10.0.0.2", "one address of each"),
            ("web", ADDRESSES_ANNOTATION, "10.0.0.1/24", "is no IP address"),
        ];
        for (pod, key, value, expected) in rows {
            let error = of(pod, &[(key, value)]).expect_err(expected);
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
    }

    #[test]
    fn pods_of_one_set_never_share_an_address() {
        let pool = "10.0.0.7,10.0.0.16/30,10.0.0.64-10.0.0.99";
        let all: std::collections::BTreeSet<_> = (0..41)
            .map(|ordinal| of(&format!("db-{ordinal}"), &[(POOL_ANNOTATION, pool)]).expect("one"))
            .collect();
        assert_eq!(all.len(), 41);
        assert!(of("db-41", &[(POOL_ANNOTATION, pool)]).is_err());
    }
}
