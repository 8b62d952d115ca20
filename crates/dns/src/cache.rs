//! A small cache of what upstream servers said.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::{kind, rcode, u32_at};
use crate::{Name, Record, Response};

/// Answers kept at most.
pub(crate) const MAX_ENTRIES: usize = 2048;
/// Octets of records kept at most.
pub(crate) const MAX_OCTETS: usize = 1 << 20;
/// No answer is kept for longer, in seconds, whatever its server allows.
const MAX_TTL_S: u32 = 3600;
/// Absence is kept no longer, in seconds.
const MAX_NEGATIVE_TTL_S: u32 = 30;
/// Aliases that one answer may lead through.
const MAX_ALIASES: usize = 16;

/// What was asked: name in lower case, and type. The class is always IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) name: Name,
    pub(crate) kind: u16,
}

/// What an upstream server said, reduced to what belongs to the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) rcode: u16,
    pub(crate) answers: Vec<Record>,
    /// The SOA that says how long absence may be kept.
    pub(crate) authority: Option<Record>,
    /// How long all of it may be kept, in seconds; 0 is not kept.
    pub(crate) ttl_s: u32,
}

impl Resolved {
    /// Takes from a response the chain of aliases from the name asked for, and the records at its
    /// end. Whatever else the server sent is not its to say, and is left behind.
    pub(crate) fn from_response(response: Response, question: &Question) -> Self {
        let mut answers: Vec<Record> = Vec::new();
        let mut name = question.name.clone();
        let mut found = false;
        for _ in 0..=MAX_ALIASES {
            let here = || response.answers.iter().filter(|record| record.owner.is(&name));
            let wanted: Vec<&Record> =
                here().filter(|record| record.kind == question.kind).collect();
            if !wanted.is_empty() {
                answers.extend(wanted.into_iter().cloned());
                found = true;
                break;
            }
            let alias = here().find(|record| record.kind == kind::CNAME);
            let Some(alias) = alias else { break };
            let Ok((target, _)) = Name::read(&alias.data, 0) else { break };
            answers.push(alias.clone());
            name = target;
        }
        for record in &mut answers {
            record.ttl_s = record.ttl_s.min(MAX_TTL_S);
        }
        let authority = if found { None } else { negative_authority(response.authority, &name) };
        let kept = answers.iter().map(|record| record.ttl_s).min().unwrap_or(MAX_TTL_S);
        let ttl_s = match (&authority, found) {
            (_, true) => kept,
            (Some(soa), false) => kept.min(soa.ttl_s),
            // Absence without an SOA says nothing of how long (RFC 2308, 5).
            (None, false) => 0,
        };
        Self { rcode: response.rcode, answers, authority, ttl_s }
    }

    fn octets(&self) -> usize {
        let records = self.answers.iter().chain(&self.authority);
        records.map(|record| record.owner.wire().len() + record.data.len() + 32).sum()
    }
}

/// The SOA above a name that is not there, its time to live made the one of the absence.
fn negative_authority(authority: Vec<Record>, name: &Name) -> Option<Record> {
    let above = |owner: &Name| {
        let (owner, name) = (owner.wire(), name.wire());
        name.len() >= owner.len() && name[name.len() - owner.len()..].eq_ignore_ascii_case(owner)
    };
    let is_soa = |record: &Record| record.kind == kind::SOA && above(&record.owner);
    let mut soa = authority.into_iter().find(is_soa)?;
    let minimum_s = u32_at(&soa.data, soa.data.len().checked_sub(4)?)?;
    soa.ttl_s = soa.ttl_s.min(minimum_s).min(MAX_NEGATIVE_TTL_S);
    Some(soa)
}

struct Entry {
    resolved: Resolved,
    stored_ms: u64,
    expires_ms: u64,
}

/// Bounded in entries and octets; what expires first goes first.
#[derive(Default)]
pub(crate) struct Cache {
    entries: BTreeMap<Question, Entry>,
    by_expiry: BTreeSet<(u64, Question)>,
    octets: usize,
}

impl Cache {
    /// What is known, and for how many seconds it has been.
    pub(crate) fn get(&self, question: &Question, now_ms: u64) -> Option<(&Resolved, u32)> {
        let entry = self.entries.get(question).filter(|entry| entry.expires_ms > now_ms)?;
        let age_s = u32::try_from(now_ms.saturating_sub(entry.stored_ms) / 1000).ok()?;
        Some((&entry.resolved, age_s))
    }

    /// Keeps an answer while it lives.
    pub(crate) fn put(&mut self, question: Question, resolved: Resolved, now_ms: u64) {
        self.remove(&question);
        let worth_it = matches!(resolved.rcode, rcode::NO_ERROR | rcode::NAME_ERROR);
        if resolved.ttl_s == 0 || !worth_it || resolved.octets() > MAX_OCTETS / 16 {
            return;
        }
        self.octets += resolved.octets();
        let expires_ms = now_ms + u64::from(resolved.ttl_s) * 1000;
        self.by_expiry.insert((expires_ms, question.clone()));
        self.entries.insert(question, Entry { resolved, stored_ms: now_ms, expires_ms });
        while self.entries.len() > MAX_ENTRIES || self.octets > MAX_OCTETS {
            let Some((_, first)) = self.by_expiry.first().cloned() else { return };
            self.remove(&first);
        }
    }

    fn remove(&mut self, question: &Question) {
        if let Some(old) = self.entries.remove(question) {
            self.by_expiry.remove(&(old.expires_ms, question.clone()));
            self.octets -= old.resolved.octets();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str) -> Question {
        Question { name: name.parse().expect("a name"), kind: kind::A }
    }

    fn record(owner: &str, kind: u16, ttl_s: u32, data: &[u8]) -> Record {
        Record { owner: owner.parse().expect("a name"), kind, ttl_s, data: data.to_vec() }
    }

    fn response(rcode: u16, answers: Vec<Record>, authority: Vec<Record>) -> Response {
        let name = "www.example".parse().expect("a name");
        Response { id: 1, flags: 0x8180, rcode, name, kind: kind::A, class: 1, answers, authority }
    }

    #[test]
    fn only_the_chain_that_was_asked_for_is_believed() {
        let web = b"\x03web\x07example\0";
        let answers = vec![
            record("evil.example", kind::A, 60, &[6, 6, 6, 6]),
            record("web.example", kind::A, 20, &[192, 0, 2, 1]),
            record("WWW.example", kind::CNAME, 60, web),
            record("www.example", kind::TXT, 60, b"\x01x"),
        ];
        let resolved =
            Resolved::from_response(response(0, answers, vec![]), &question("www.example"));
        let kinds: Vec<u16> = resolved.answers.iter().map(|record| record.kind).collect();
        assert_eq!(kinds, [kind::CNAME, kind::A]);
        assert_eq!(resolved.ttl_s, 20);
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let answers = vec![record("www.example", kind::CNAME, 60, b"\x03www\x07example\0")];
        let resolved =
            Resolved::from_response(response(0, answers, vec![]), &question("www.example"));
        assert_eq!(resolved.answers.len(), MAX_ALIASES + 1);
        assert_eq!(resolved.ttl_s, 0);
    }

    #[test]
    fn absence_lives_as_long_as_the_soa_of_its_zone_says() {
        let mut data = b"\x02ns\0\x02me\0".to_vec();
        for value in [1_u32, 2, 3, 4, 10] {
            data.extend_from_slice(&value.to_be_bytes());
        }
        let own = record("example", kind::SOA, 900, &data);
        let foreign = record("elsewhere", kind::SOA, 900, &data);
        let resolved = |authority| {
            Resolved::from_response(response(3, vec![], authority), &question("www.example"))
        };
        assert_eq!(resolved(vec![own.clone()]).ttl_s, 10);
        assert_eq!(resolved(vec![foreign.clone()]).ttl_s, 0);
        assert_eq!(resolved(vec![foreign, own]).authority.map(|soa| soa.ttl_s), Some(10));
    }

    #[test]
    fn entries_expire_and_age() {
        let mut cache = Cache::default();
        let resolved = Resolved { rcode: 0, answers: vec![], authority: None, ttl_s: 10 };
        cache.put(question("a"), resolved, 5_000);
        assert_eq!(cache.get(&question("a"), 8_999).map(|(_, age_s)| age_s), Some(3));
        assert!(cache.get(&question("a"), 15_000).is_none());
    }

    #[test]
    fn the_cache_stays_within_its_limits() {
        let mut cache = Cache::default();
        for number in 0..3 * MAX_ENTRIES {
            let answers = vec![record("x", kind::TXT, 60, &[0; 1000])];
            let ttl_s = 60 + (number % 7) as u32;
            let resolved = Resolved { rcode: 0, answers, authority: None, ttl_s };
            cache.put(question(&format!("n{number}")), resolved, 0);
            assert!(cache.entries.len() <= MAX_ENTRIES && cache.octets <= MAX_OCTETS);
        }
        assert_eq!(cache.entries.len(), cache.by_expiry.len());
        let sum: usize = cache.entries.values().map(|entry| entry.resolved.octets()).sum();
        assert_eq!(sum, cache.octets);
        assert!(cache.entries.len() > 100);
    }
}
