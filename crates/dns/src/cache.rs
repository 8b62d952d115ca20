//! A small cache of what upstream servers said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::CacheOptions;
use crate::message::{flag, kind, rcode, u32_at};
use crate::{Name, Record, Response};

/// Octets of records kept at most, of one kind of answers.
const MAX_OCTETS: usize = 1 << 20;
/// Aliases that one answer may lead through.
const MAX_ALIASES: usize = 16;
/// Records that one answer may have; a name with more is of no use to anybody.
const MAX_RECORDS: usize = 512;

/// What was asked: name in lower case, type, and what of DNSSEC is wanted with it. The class is
/// always IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    /// With signatures (RFC 3225).
    pub(crate) dnssec_ok: bool,
    /// Also what the server found to be forged (RFC 4035, 3.2.2).
    pub(crate) checking_disabled: bool,
}

/// What an upstream server said, reduced to what belongs to the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) rcode: u16,
    /// Whether the server says that it checked the signatures.
    pub(crate) is_authentic: bool,
    pub(crate) answers: Vec<Record>,
    /// The SOA that says how long absence may be kept, and with DNSSEC the proof of absence.
    pub(crate) authority: Vec<Record>,
    /// How long all of it may be kept, in seconds; 0 is not kept.
    pub(crate) ttl_s: u32,
    /// Whether the records asked for are there.
    pub(crate) is_found: bool,
}

impl Resolved {
    /// Takes from a response the chain of aliases from the name asked for, and the records at its
    /// end. Whatever else the server sent is not its to say, and is left behind.
    pub(crate) fn from_response(
        response: Response,
        question: &Question,
        options: &CacheOptions,
    ) -> Self {
        let is_authentic = response.flags & flag::AUTHENTIC_DATA != 0;
        let mut answers: Vec<Record> = Vec::new();
        let mut name = question.name.clone();
        let mut is_found = false;
        for _ in 0..=MAX_ALIASES {
            let here =
                |kind: u16| response.answers.iter().filter(move |record| record.kind == kind);
            let start = answers.len();
            answers.extend(here(question.kind).filter(|record| record.owner.is(&name)).cloned());
            is_found = answers.len() > start;
            let alias = here(kind::CNAME).find(|record| record.owner.is(&name));
            let target = alias.and_then(|alias| Name::read(&alias.data, 0).ok());
            if !is_found {
                answers.extend(target.is_some().then_some(alias).flatten().cloned());
            }
            if question.dnssec_ok {
                let signatures = here(kind::RRSIG).filter(|record| record.owner.is(&name));
                answers.extend(signatures.cloned());
            }
            match target {
                Some((target, _)) if !is_found => name = target,
                _ => break,
            }
        }
        answers.truncate(MAX_RECORDS);
        let authority = if is_found {
            vec![]
        } else {
            negative_authority(response.authority, &name, question.dnssec_ok, options)
        };
        let limits = if is_found { options.success } else { options.denial };
        let (least_s, most_s) = (limits.min_ttl.seconds(), limits.ttl.seconds());
        for record in &mut answers {
            record.ttl_s = record.ttl_s.max(least_s).min(most_s);
        }
        let kept_s = answers.iter().chain(&authority).map(|record| record.ttl_s).min();
        let ttl_s = match kept_s {
            Some(kept_s) if is_found || !authority.is_empty() => kept_s,
            // Absence without an SOA says nothing of how long (RFC 2308, 5).
            _ => 0,
        };
        Self { rcode: response.rcode, is_authentic, answers, authority, ttl_s, is_found }
    }

    fn octets(&self) -> usize {
        let records = self.answers.iter().chain(&self.authority);
        records.map(|record| record.owner.wire().len() + record.data.len() + 64).sum::<usize>() + 64
    }
}

/// The SOA above a name that is not there, its time to live made the one of the absence; and the
/// proof of absence, of that SOA's zone only.
fn negative_authority(
    authority: Vec<Record>,
    name: &Name,
    dnssec_ok: bool,
    options: &CacheOptions,
) -> Vec<Record> {
    let above = |owner: &Name, name: &Name| {
        let (owner, mut rest) = (owner.wire(), name.wire());
        // Label by label: the octets of a zone's name may stand within a longer label.
        while rest.len() > owner.len() {
            let length = rest.first().map_or(0, |length| usize::from(*length));
            rest = rest.get(length + 1..).unwrap_or_default();
        }
        rest.eq_ignore_ascii_case(owner)
    };
    let is_soa = |record: &&Record| record.kind == kind::SOA && above(&record.owner, name);
    let Some(soa) = authority.iter().find(is_soa).cloned() else { return vec![] };
    let minimum_s = soa.data.len().checked_sub(4).and_then(|at| u32_at(&soa.data, at));
    let Some(minimum_s) = minimum_s else { return vec![] };
    let (least_s, most_s) = (options.denial.min_ttl.seconds(), options.denial.ttl.seconds());
    let ttl_s = soa.ttl_s.min(minimum_s).max(least_s).min(most_s);
    let zone = soa.owner.clone();
    let proofs = authority.into_iter().filter(|record| {
        dnssec_ok
            && matches!(record.kind, kind::NSEC | kind::NSEC3 | kind::RRSIG)
            && above(&zone, &record.owner)
    });
    let mut records: Vec<Record> = std::iter::once(soa).chain(proofs).take(MAX_RECORDS).collect();
    for record in &mut records {
        record.ttl_s = record.ttl_s.min(ttl_s);
    }
    records
}

/// What the cache knows of a question.
pub(crate) enum Lookup {
    /// An answer that lives.
    Fresh {
        resolved: Arc<Resolved>,
        age_s: u32,
        /// Whether it is in use and ends soon: it shall be asked for again.
        is_worth_asking: bool,
    },
    /// An answer that expired, and may be given when nobody has a newer one.
    Stale(Arc<Resolved>),
    /// Nothing.
    Nothing,
}

struct Entry {
    resolved: Arc<Resolved>,
    stored_ms: u64,
    expires_ms: u64,
    last_used_ms: u64,
    uses: u32,
    /// When nobody had a newer answer, the last time.
    failed_ms: Option<u64>,
}

/// Answers of one kind, bounded in entries and octets; what expires first goes first.
#[derive(Default)]
struct Shelf {
    entries: BTreeMap<Question, Entry>,
    by_expiry: BTreeSet<(u64, Question)>,
    octets: usize,
    evictions: u64,
}

/// Answers with records, and absences: a flood of names that do not exist displaces no answer.
pub(crate) struct Cache {
    options: CacheOptions,
    success: Shelf,
    denial: Shelf,
}

impl Cache {
    pub(crate) fn new(options: CacheOptions) -> Self {
        Self { options, success: Shelf::default(), denial: Shelf::default() }
    }

    pub(crate) fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Entries with records, and absences.
    pub(crate) fn entries(&self) -> (usize, usize) {
        (self.success.entries.len(), self.denial.entries.len())
    }

    /// Entries that went for others: with records, and absences.
    pub(crate) fn evictions(&self) -> (u64, u64) {
        (self.success.evictions, self.denial.evictions)
    }

    /// What is known.
    pub(crate) fn get(&mut self, question: &Question, now_ms: u64) -> Lookup {
        let Self { options, success, denial } = self;
        let found = match success.entries.get_mut(question) {
            None => denial.entries.get_mut(question),
            found => found,
        };
        let Some(entry) = found else { return Lookup::Nothing };
        if entry.expires_ms <= now_ms {
            let is_usable = now_ms < entry.expires_ms + options.serve_stale.duration.ms();
            return if is_usable { Lookup::Stale(entry.resolved.clone()) } else { Lookup::Nothing };
        }
        let prefetch = &options.prefetch;
        if now_ms.saturating_sub(entry.last_used_ms) > prefetch.duration.ms() {
            entry.uses = 0;
        }
        entry.uses = entry.uses.saturating_add(1);
        entry.last_used_ms = now_ms;
        let (life_ms, left_ms) = (entry.expires_ms - entry.stored_ms, entry.expires_ms - now_ms);
        let ends_soon = left_ms * 100 <= life_ms * u64::from(prefetch.percentage);
        let age_s = now_ms.saturating_sub(entry.stored_ms) / 1000;
        Lookup::Fresh {
            resolved: entry.resolved.clone(),
            age_s: u32::try_from(age_s).unwrap_or(u32::MAX),
            is_worth_asking: ends_soon && prefetch.amount > 0 && entry.uses >= prefetch.amount,
        }
    }

    /// How long an answer still lives, in seconds, without using it: 0 is one that expired and may
    /// be given when nobody has a newer one.
    pub(crate) fn peek(&self, question: &Question, now_ms: u64) -> Option<u64> {
        let entries = [&self.success, &self.denial].map(|shelf| shelf.entries.get(question));
        let entry = entries.into_iter().flatten().next()?;
        let is_usable = now_ms < entry.expires_ms + self.options.serve_stale.duration.ms();
        is_usable.then(|| entry.expires_ms.saturating_sub(now_ms).div_ceil(1000))
    }

    /// Nobody had a newer answer.
    pub(crate) fn failed(&mut self, question: &Question, now_ms: u64) {
        for shelf in [&mut self.success, &mut self.denial] {
            if let Some(entry) = shelf.entries.get_mut(question) {
                entry.failed_ms = Some(now_ms);
            }
        }
    }

    /// Whether nobody had a newer answer within this time.
    pub(crate) fn has_failed(&self, question: &Question, now_ms: u64, within_ms: u64) -> bool {
        let entries = [&self.success, &self.denial].map(|shelf| shelf.entries.get(question));
        let failed = entries.into_iter().flatten().find_map(|entry| entry.failed_ms);
        failed.is_some_and(|failed_ms| now_ms < failed_ms + within_ms)
    }

    /// Keeps an answer while it lives.
    pub(crate) fn put(&mut self, question: Question, resolved: Arc<Resolved>, now_ms: u64) {
        self.success.remove(&question);
        self.denial.remove(&question);
        let worth_it = matches!(resolved.rcode, rcode::NO_ERROR | rcode::NAME_ERROR);
        if resolved.ttl_s == 0 || !worth_it || resolved.octets() > MAX_OCTETS / 16 {
            return;
        }
        if resolved.is_found {
            self.success.put(question, resolved, now_ms, self.options.success.capacity);
        } else {
            self.denial.put(question, resolved, now_ms, self.options.denial.capacity);
        }
    }
}

impl Shelf {
    fn put(&mut self, question: Question, resolved: Arc<Resolved>, now_ms: u64, capacity: usize) {
        self.octets += resolved.octets();
        let expires_ms = now_ms + u64::from(resolved.ttl_s) * 1000;
        self.by_expiry.insert((expires_ms, question.clone()));
        let entry = Entry {
            resolved,
            stored_ms: now_ms,
            expires_ms,
            last_used_ms: now_ms,
            uses: 0,
            failed_ms: None,
        };
        self.entries.insert(question, entry);
        while self.entries.len() > capacity || self.octets > MAX_OCTETS {
            let Some((_, first)) = self.by_expiry.first().cloned() else { return };
            self.remove(&first);
            self.evictions += 1;
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
    use crate::config::Duration;

    fn question(name: &str) -> Question {
        let name = name.parse().expect("a name");
        Question { name, kind: kind::A, dnssec_ok: false, checking_disabled: false }
    }

    fn record(owner: &str, kind: u16, ttl_s: u32, data: &[u8]) -> Record {
        Record { owner: owner.parse().expect("a name"), kind, ttl_s, data: data.to_vec() }
    }

    fn response(rcode: u16, answers: Vec<Record>, authority: Vec<Record>) -> Response {
        let name = "www.example".parse().expect("a name");
        Response { id: 1, flags: 0x8180, rcode, name, kind: kind::A, class: 1, answers, authority }
    }

    fn resolved(response: Response, question: &Question) -> Resolved {
        Resolved::from_response(response, question, &CacheOptions::default())
    }

    fn absence(ttl_s: u32) -> Arc<Resolved> {
        let mut resolved = resolved(response(3, vec![], vec![]), &question("a"));
        resolved.ttl_s = ttl_s;
        Arc::new(resolved)
    }

    fn soa() -> Vec<u8> {
        let mut data = b"\x02ns\0\x02me\0".to_vec();
        for value in [1_u32, 2, 3, 4, 10] {
            data.extend_from_slice(&value.to_be_bytes());
        }
        data
    }

    /// records of other names, and whatever stands beside the question, are not believed.
    #[test]
    fn only_the_chain_that_was_asked_for_is_believed() {
        let web = b"\x03web\x07example\0";
        let answers = vec![
            record("evil.example", kind::A, 60, &[6, 6, 6, 6]),
            record("web.example", kind::A, 20, &[192, 0, 2, 1]),
            record("WWW.example", kind::CNAME, 60, web),
            record("www.example", kind::TXT, 60, b"\x01x"),
        ];
        let resolved = resolved(response(0, answers, vec![]), &question("www.example"));
        let kinds: Vec<u16> = resolved.answers.iter().map(|record| record.kind).collect();
        assert_eq!(kinds, [kind::CNAME, kind::A]);
        assert_eq!(resolved.ttl_s, 20);
    }

    #[test]
    fn signatures_of_the_chain_come_along_for_who_wants_them() {
        let answers = || {
            vec![
                record("www.example", kind::A, 60, &[192, 0, 2, 1]),
                record("www.example", kind::RRSIG, 60, b"s"),
                record("other.example", kind::RRSIG, 60, b"s"),
            ]
        };
        let plain = question("www.example");
        let wanting = Question { dnssec_ok: true, ..plain.clone() };
        for (question, count) in [(plain, 1), (wanting, 2)] {
            let resolved = resolved(response(0, answers(), vec![]), &question);
            assert_eq!(resolved.answers.len(), count);
        }
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let answers = vec![record("www.example", kind::CNAME, 60, b"\x03www\x07example\0")];
        let resolved = resolved(response(0, answers, vec![]), &question("www.example"));
        assert_eq!(resolved.answers.len(), MAX_ALIASES + 1);
        assert_eq!(resolved.ttl_s, 0);
    }

    #[test]
    fn absence_lives_as_long_as_the_soa_of_its_zone_says() {
        let own = record("example", kind::SOA, 900, &soa());
        let foreign = record("elsewhere", kind::SOA, 900, &soa());
        // Its octets end the name that was asked for, its labels do not.
        let within = record("xample", kind::SOA, 900, &soa());
        let resolved =
            |authority| resolved(response(3, vec![], authority), &question("www.example"));
        assert_eq!(resolved(vec![own.clone()]).ttl_s, 10);
        assert_eq!(resolved(vec![foreign.clone()]).ttl_s, 0);
        assert_eq!(resolved(vec![within]).ttl_s, 0);
        let proof = record("a.example", kind::NSEC, 900, b"n");
        let both = resolved(vec![foreign, proof, own]).authority;
        assert_eq!(both.iter().map(|record| record.ttl_s).collect::<Vec<_>>(), [10]);
    }

    /// times to live are capped, whatever a server says.
    #[test]
    fn times_to_live_stay_within_the_limits() {
        let mut options = CacheOptions::default();
        options.success.min_ttl = Duration::from_ms(5000);
        for (said_s, kept_s) in [(0, 5), (60, 60), (1_000_000, 3600)] {
            let answers = vec![record("www.example", kind::A, said_s, &[192, 0, 2, 1])];
            let response = response(0, answers, vec![]);
            let resolved = Resolved::from_response(response, &question("www.example"), &options);
            assert_eq!((resolved.ttl_s, resolved.answers[0].ttl_s), (kept_s, kept_s));
        }
    }

    #[test]
    fn entries_age_expire_and_are_kept_as_stale_for_a_while() {
        let mut cache = Cache::new(CacheOptions::default());
        cache.put(question("a"), absence(10), 5_000);
        let mut at = |now_ms| match cache.get(&question("a"), now_ms) {
            Lookup::Fresh { age_s, .. } => format!("fresh, {age_s}"),
            Lookup::Stale(_) => "stale".into(),
            Lookup::Nothing => "nothing".into(),
        };
        assert_eq!(at(8_999), "fresh, 3");
        assert_eq!(at(15_000), "stale");
        assert_eq!(at(15_000 + 3_599_999), "stale");
        assert_eq!(at(15_000 + 3_600_000), "nothing");
    }

    #[test]
    fn what_is_in_use_is_asked_for_again_before_it_ends() {
        let mut cache = Cache::new(CacheOptions::default());
        cache.put(question("a"), absence(100), 0);
        let mut worth = |now_ms| match cache.get(&question("a"), now_ms) {
            Lookup::Fresh { is_worth_asking, .. } => is_worth_asking,
            _ => panic!("it lives"),
        };
        assert!(!worth(0) && !worth(1) && !worth(29_000), "not before its end");
        assert!(!worth(90_000), "the question before was long ago");
        assert!(worth(90_001) && worth(95_000));
    }

    /// the cache stays within its limits, and absences displace no answers.
    #[test]
    fn the_cache_stays_within_its_limits() {
        let mut cache = Cache::new(CacheOptions::default());
        let answer = |ttl_s: u32| {
            let answers = vec![record("www.example", kind::A, ttl_s, &[0; 900])];
            Arc::new(resolved(response(0, answers, vec![]), &question("www.example")))
        };
        for number in 0..3000 {
            cache.put(question(&format!("n{number}")), answer(60 + number % 7), 0);
        }
        let kept = cache.success.entries.len();
        for number in 0..7000 {
            cache.put(question(&format!("missing{number}")), absence(20), 0);
        }
        assert_eq!((cache.entries(), kept > 100), ((kept, 2048), true));
        for shelf in [&cache.success, &cache.denial] {
            assert!(shelf.octets <= MAX_OCTETS);
            assert_eq!(shelf.entries.len(), shelf.by_expiry.len());
            let sum: usize = shelf.entries.values().map(|entry| entry.resolved.octets()).sum();
            assert_eq!(sum, shelf.octets);
        }
    }
}
