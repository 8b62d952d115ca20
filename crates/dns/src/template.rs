//! Answers made from the question: what `template` and `hosts` of the configuration write.

use std::net::{Ipv4Addr, Ipv6Addr};

use regex_lite::Captures;

use crate::Name;
use crate::config::{RecordLine, Template};
use crate::message::{Query, kind, kind_name};

/// Record types that can be written as text.
pub(crate) const WRITTEN_KINDS: &[u16] =
    &[kind::A, kind::AAAA, kind::CNAME, kind::PTR, kind::TXT, kind::MX, kind::SRV];

/// A record to write: owner, type, seconds, data.
pub(crate) type Made = (Name, u16, u32, Vec<u8>);

/// The records that a template makes for a name. `None` when it is not for it; a record that
/// comes out as none that DNS can carry is a failure.
pub(crate) fn make(
    template: &Template,
    query: &Query,
    name: &Name,
) -> Option<Result<Vec<Made>, ()>> {
    let is_kind = template.kind.0 == kind::ANY || template.kind.0 == query.kind;
    let zone = template.zones.iter().find(|zone| zone.holds(name))?;
    if !is_kind {
        return None;
    }
    let text = name.to_lower().to_string();
    let captures = match &template.pattern {
        Some(pattern) => Some(pattern.regex().captures(&text)?),
        None => None,
    };
    let zone = zone.name().to_string();
    let places = Places { name: &text, zone: &zone, kind: query.kind, captures: captures.as_ref() };
    Some(template.answer.iter().map(|line| record(line, &places).ok_or(())).collect())
}

/// Checks the places of a text while the configuration is read.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let places = Places { name: ".", zone: ".", kind: kind::A, captures: None };
    places.fill(text).map(|_| ())
}

fn record(line: &RecordLine, places: &Places<'_>) -> Option<Made> {
    let owner: Name = places.fill(&line.owner).ok()?.parse().ok()?;
    let data = data(line.kind, &places.fill(&line.data).ok()?)?;
    Some((owner, line.kind, line.ttl_s, data))
}

fn data(kind: u16, text: &str) -> Option<Vec<u8>> {
    let wire = |text: &str| text.parse::<Name>().ok().map(|name| name.wire().to_vec());
    let words: Vec<&str> = text.split_whitespace().collect();
    match (kind, words.as_slice()) {
        (kind::A, [address]) => Some(address.parse::<Ipv4Addr>().ok()?.octets().to_vec()),
        (kind::AAAA, [address]) => Some(address.parse::<Ipv6Addr>().ok()?.octets().to_vec()),
        (kind::CNAME | kind::PTR, [name]) => wire(name),
        (kind::MX, [preference, name]) => {
            let preference: u16 = preference.parse().ok()?;
            Some([preference.to_be_bytes().as_slice(), &wire(name)?].concat())
        }
        (kind::SRV, [priority, weight, port, name]) => {
            let mut data = Vec::new();
            for number in [priority, weight, port] {
                data.extend_from_slice(&number.parse::<u16>().ok()?.to_be_bytes());
            }
            data.extend(wire(name)?);
            Some(data)
        }
        (kind::TXT, _) => {
            let text = text.trim().trim_matches('"');
            let length = u8::try_from(text.len()).ok()?;
            Some([&[length], text.as_bytes()].concat())
        }
        _ => None,
    }
}

/// What stands for the places of a text.
struct Places<'a> {
    name: &'a str,
    zone: &'a str,
    kind: u16,
    captures: Option<&'a Captures<'a>>,
}

impl Places<'_> {
    fn fill(&self, text: &str) -> Result<String, String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (place, after) = behind
                .split_once("}}")
                .ok_or_else(|| format!("{text:?}: `{{{{` without `}}}}`"))?;
            filled.push_str(before);
            filled.push_str(&self.value(place.trim())?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn value(&self, place: &str) -> Result<String, String> {
        let group = |found: Option<regex_lite::Match<'_>>| {
            found.map(|found| found.as_str().to_owned()).unwrap_or_default()
        };
        let words: Vec<&str> = place.split_whitespace().collect();
        match words.as_slice() {
            [".Name"] => Ok(self.name.to_owned()),
            [".Zone"] => Ok(self.zone.to_owned()),
            [".Class"] => Ok("IN".into()),
            [".Type"] => Ok(kind_name(self.kind)),
            ["index", ".Match", number] if number.parse::<usize>().is_ok() => {
                let number = number.parse().unwrap_or_default();
                Ok(group(self.captures.and_then(|captures| captures.get(number))))
            }
            [word] if word.starts_with(".Group.") => {
                let name = word.trim_start_matches(".Group.");
                Ok(group(self.captures.and_then(|captures| captures.name(name))))
            }
            _ => Err(format!(
                "`{{{{ {place} }}}}` is not known: there are .Name, .Zone, .Type, .Class, \
                 .Group.NAME and index .Match NUMBER"
            )),
        }
    }
}
