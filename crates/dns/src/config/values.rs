//! Values of the configuration's fields, each checked while it is read.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};
use model::selector::LabelSelector;
use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

use super::{Clients, ForwardRule, Matcher, Rewrite};
use crate::Name;
use crate::message::{kind_number, rcode};

/// Answers that a cache may be told to keep.
const MAX_CAPACITY: usize = 100_000;
/// Servers of one rule, as CoreDNS allows.
const MAX_SERVERS: usize = 15;
/// The longest duration, in milliseconds: a week, as RFC 8767 advises for times to live.
const MAX_DURATION_MS: u64 = 7 * 24 * 3_600_000;
/// What a compiled pattern may take, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// The prefix of RFC 6052, 2.1.
pub(super) const WELL_KNOWN_DNS64: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Reads a text. Only errors that are raised while the text is visited carry its own place in the
/// document.
struct Text<F>(F);

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Reads who is answered.
pub(super) fn clients<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Clients, D::Error> {
    deserializer.deserialize_any(ClientsVisitor)
}

struct ClientsVisitor;

impl<'de> Visitor<'de> for ClientsVisitor {
    type Value = Clients;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`cluster`, `any`, or a list of ranges to answer beside the cluster")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Clients, E> {
        match text {
            "cluster" => Ok(Clients::default()),
            "any" => Ok(Clients::Any),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Clients, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = list.next_element::<IpNet>()? {
            ranges.push(range);
        }
        Ok(Clients::Cluster(ranges))
    }
}

/// A domain name in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain(Name);

impl Domain {
    /// The root, above all names.
    pub fn root() -> Self {
        Self(Name::root())
    }

    /// This one.
    pub(crate) fn new(name: &Name) -> Self {
        Self(name.to_lower())
    }

    /// The name, in lower case.
    pub fn name(&self) -> &Name {
        &self.0
    }

    /// Whether a name, in any letter case, is this one or below it. Whole labels are compared,
    /// never their text: `notexample.com` is not below `example.com`.
    pub fn holds(&self, name: &Name) -> bool {
        let (own, wire) = (self.0.wire(), name.wire());
        let mut rest = wire;
        while rest.len() > own.len() {
            let Some(length) = rest.first() else { return false };
            rest = rest.get(usize::from(*length) + 1..).unwrap_or_default();
        }
        rest.eq_ignore_ascii_case(own)
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|text: &str| {
            let name: Name = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
            Ok(Self(name.to_lower()))
        }))
    }
}

/// A time, written like `30s`, `500ms`, `1h` or `1h30m`; a bare number is seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration {
    ms: u64,
}

impl Duration {
    /// So many milliseconds.
    pub fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// In milliseconds.
    pub fn ms(self) -> u64 {
        self.ms
    }

    /// In seconds, rounded down.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.ms / 1000).unwrap_or(u32::MAX)
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write 30s, 500ms or 1h30m");
        let mut ms: u64 = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, behind) = rest.split_at(digits);
            let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(letters);
            let unit_ms = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "" if digits == text.len() => 1000,
                _ => return Err(wrong()),
            };
            let number: u64 = number.parse().map_err(|_| wrong())?;
            ms = number
                .checked_mul(unit_ms)
                .and_then(|part| ms.checked_add(part))
                .ok_or_else(wrong)?;
            rest = behind;
        }
        if text.is_empty() {
            return Err(wrong());
        }
        if ms > MAX_DURATION_MS {
            return Err(format!("{text:?} is longer than a week"));
        }
        Ok(Self { ms })
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Also a bare number, which YAML takes for no text.
        from.deserialize_any(Text(str::parse))
    }
}

/// A regular expression that is looked for in lower-case names, without their final dot. Matching
/// takes time linear in the name.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Saying where it is wrong.
    pub fn new(text: &str) -> Result<Self, String> {
        let compiled =
            RegexBuilder::new(text).case_insensitive(true).size_limit(MAX_PATTERN_BYTES).build();
        compiled.map(Self).map_err(|error| format!("the expression {text:?}: {error}"))
    }

    pub(crate) fn regex(&self) -> &Regex {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(Self::new))
    }
}

/// One place that a rule of `forward` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The name servers of a `resolv.conf`: those of the host.
    Host,
    /// One server.
    Server(Server),
}

/// A DNS server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// How it is asked.
    pub carrier: Carrier,
}

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// Over UDP, and over TCP for what does not fit.
    Plain,
    /// Over TLS (RFC 7858).
    Tls(Tls),
    /// Over HTTPS (RFC 8484).
    Https {
        /// How TLS begins.
        tls: Tls,
        /// The path of the resource.
        path: String,
    },
}

/// How TLS with a server begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tls {
    /// The name in the server's certificate; `None`: its address.
    pub server_name: Option<String>,
    /// Certificates that are not the host's.
    pub files: TlsFiles,
}

/// Files in PEM with certificates for servers over TLS: what CoreDNS's `tls CERT KEY CA` names.
/// They are read whenever a connection is made, so that renewed ones need nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "WrittenTlsFiles")]
pub struct TlsFiles {
    /// Those who may have issued the server's certificate, and nobody else; `None`: those that the
    /// host trusts.
    pub ca: Option<String>,
    /// What we show to the server: our certificate and its key.
    pub identity: Option<(String, String)>,
}

impl Carrier {
    /// How TLS begins; `None`: the server is asked without.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) | Self::Https { tls, .. } => Some(tls),
        }
    }

    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) | Self::Https { tls, .. } => Some(tls),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Host);
        }
        let (carrier, place, port) = if let Some(rest) = text.strip_prefix("tls://") {
            (Carrier::Tls(Tls::default()), rest, 853)
        } else if let Some(rest) = text.strip_prefix("https://") {
            let (place, path) = rest.split_once('/').unwrap_or((rest, "dns-query"));
            (Carrier::Https { tls: Tls::default(), path: format!("/{path}") }, place, 443)
        } else {
            (Carrier::Plain, text.strip_prefix("dns://").unwrap_or(text), 53)
        };
        let address = address(place, port).ok_or_else(|| {
            format!(
                "{text:?} is no server: write an address such as 192.0.2.1, 192.0.2.1:5353, \
                 [2001:db8::1]:53, tls://192.0.2.1, https://192.0.2.1/dns-query, or \
                 /etc/resolv.conf for the host's servers"
            )
        })?;
        Ok(Self::Server(Server { address, carrier }))
    }
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    text.parse().ok().or_else(with_port)
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(str::parse))
    }
}

/// A record type by its name; `ANY` is every type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordType(pub u16);

impl<'de> Deserialize<'de> for RecordType {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|text: &str| {
            kind_number(text).map(Self).ok_or_else(|| format!("{text:?} is no record type"))
        }))
    }
}

/// A response code by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseCode(pub u16);

impl<'de> Deserialize<'de> for ResponseCode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|text: &str| match text.to_ascii_uppercase().as_str() {
            "NOERROR" => Ok(Self(rcode::NO_ERROR)),
            "NXDOMAIN" => Ok(Self(rcode::NAME_ERROR)),
            "SERVFAIL" => Ok(Self(rcode::SERVER_FAILURE)),
            "REFUSED" => Ok(Self(rcode::REFUSED)),
            _ => Err(format!(
                "{text:?} is no response code to give: NOERROR, NXDOMAIN, SERVFAIL or REFUSED"
            )),
        }))
    }
}

/// A record of a template, in master file form: owner, seconds, class, type, data. `{{ .Name }}`,
/// `{{ .Group.x }}` and `{{ index .Match 1 }}` stand for parts of the question's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLine {
    /// The owner, with places to fill.
    pub owner: String,
    /// How long clients may keep it, in seconds.
    pub ttl_s: u32,
    /// The record type.
    pub kind: u16,
    /// The data, with places to fill.
    pub data: String,
}

impl FromStr for RecordLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{text:?}: {what}; a record is written like `{{{{ .Name }}}} 60 IN A 192.0.2.1`"
            )
        };
        let words = words(text);
        let [owner, ttl, class, kind, data @ ..] = words.as_slice() else {
            return Err(wrong("too few words"));
        };
        if !class.eq_ignore_ascii_case("IN") {
            return Err(wrong("the class is not IN"));
        }
        let kind =
            kind_number(kind)
                .filter(|kind| crate::template::WRITTEN_KINDS.contains(kind))
                .ok_or_else(|| wrong("the type is none of A, AAAA, CNAME, PTR, TXT, MX and SRV"))?;
        let ttl_s = ttl.parse().map_err(|_| wrong("the second word is no number of seconds"))?;
        if data.is_empty() {
            return Err(wrong("there is no data"));
        }
        let data = data.join(" ");
        crate::template::check(owner)?;
        crate::template::check(&data)?;
        Ok(Self { owner: owner.clone(), ttl_s, kind, data })
    }
}

/// Words of a line; what stands in double braces is part of one word.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut depth = 0_u32;
    for letter in text.trim().chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if letter.is_whitespace() && depth == 0 {
            words.push(String::new());
        } else if let Some(last) = words.last_mut() {
            last.push(letter);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl<'de> Deserialize<'de> for RecordLine {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(str::parse))
    }
}

/// A rewrite as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenRewrite {
    #[serde(rename = "type", default)]
    kind: RewriteKind,
    from: String,
    to: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RewriteKind {
    #[default]
    Exact,
    Prefix,
    Suffix,
    Substring,
    Regex,
}

impl TryFrom<WrittenRewrite> for Rewrite {
    type Error = String;

    fn try_from(written: WrittenRewrite) -> Result<Self, String> {
        let text = written.from.to_ascii_lowercase();
        if text.trim_end_matches('.').is_empty() {
            return Err("`from` is empty".into());
        }
        // Names are compared without their final dot; within a name a dot ends a label.
        let end = || text.trim_end_matches('.').to_owned();
        let from = match written.kind {
            RewriteKind::Exact => Matcher::Exact(end()),
            RewriteKind::Prefix => Matcher::Prefix(text),
            RewriteKind::Suffix => Matcher::Suffix(end()),
            RewriteKind::Substring => Matcher::Substring(text),
            RewriteKind::Regex => Matcher::Regex(Pattern::new(&written.from)?),
        };
        let mut to = written.to.to_ascii_lowercase();
        if !matches!(from, Matcher::Prefix(_) | Matcher::Substring(_)) {
            to.truncate(to.trim_end_matches('.').len());
        }
        Ok(Self { from, to })
    }
}

pub(super) fn capacity<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let capacity = usize::deserialize(from)?;
    if capacity > MAX_CAPACITY {
        return Err(D::Error::custom(format!(
            "`capacity`: {capacity} is more than {MAX_CAPACITY} answers"
        )));
    }
    Ok(capacity)
}

/// Reads the text form of a label selector.
pub(super) fn labels<'de, D>(from: D) -> Result<Option<LabelSelector>, D::Error>
where
    D: Deserializer<'de>,
{
    from.deserialize_str(Text(|text: &str| text.parse().map(Some)))
}

/// RFC 2181 allows more; CoreDNS takes an hour at most.
pub(super) fn cluster_ttl<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let ttl = Duration::deserialize(from)?;
    if ttl.ms() > 3_600_000 {
        return Err(D::Error::custom("`ttl`: records of the cluster live for an hour at most"));
    }
    Ok(ttl)
}

pub(super) fn percentage<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let percentage = u32::deserialize(from)?;
    if !(1..=90).contains(&percentage) {
        return Err(D::Error::custom(format!(
            "`percentage`: {percentage} is not between 1 and 90"
        )));
    }
    Ok(percentage)
}

pub(super) fn servers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Target>, D::Error> {
    let servers = Vec::<Target>::deserialize(from)?;
    if !(1..=MAX_SERVERS).contains(&servers.len()) {
        return Err(D::Error::custom(format!("`to` needs one to {MAX_SERVERS} servers")));
    }
    Ok(servers)
}

/// Rules, each checked while the list is read: an error then has the list's line.
pub(super) fn forward_rules<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<ForwardRule>, D::Error> {
    let rules = Vec::<CheckedRule>::deserialize(from)?;
    Ok(rules.into_iter().map(|rule| rule.0).collect())
}

/// Who names certificates means encryption: with servers that are asked without, names would go
/// over the wire for all to read.
struct CheckedRule(ForwardRule);

impl<'de> Deserialize<'de> for CheckedRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let rule = ForwardRule::deserialize(from)?;
        let plain = rule.to.iter().find_map(|target| match target {
            Target::Host => Some("the host's servers".to_owned()),
            Target::Server(server) => {
                (server.carrier == Carrier::Plain).then(|| server.to_string())
            }
        });
        match plain.filter(|_| rule.tls != TlsFiles::default()) {
            None => Ok(Self(rule)),
            Some(plain) => Err(D::Error::custom(format!(
                "`to`: {plain} would be asked without encryption; with `tls`, write all servers \
                 as tls:// or https://"
            ))),
        }
    }
}

/// `tls` of a rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTlsFiles {
    cert: Option<WholePath>,
    key: Option<WholePath>,
    ca: Option<WholePath>,
}

/// The worker has no directory of its own that others could be meant from.
struct WholePath(String);

impl<'de> Deserialize<'de> for WholePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(|text: &str| match text.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(format!("{text:?} is no whole path of a file: write it from / on")),
        }))
    }
}

impl TryFrom<WrittenTlsFiles> for TlsFiles {
    type Error = String;

    fn try_from(written: WrittenTlsFiles) -> Result<Self, String> {
        let ca = written.ca.map(|path| path.0);
        let identity = match (written.cert, written.key) {
            (Some(certificate), Some(key)) => Some((certificate.0, key.0)),
            (None, None) => None,
            _ => return Err("`tls`: `cert` and `key` belong together: write both or none".into()),
        };
        Ok(Self { ca, identity })
    }
}

pub(super) fn dns64_prefix<'de, D: Deserializer<'de>>(from: D) -> Result<Ipv6Net, D::Error> {
    let prefix = Ipv6Net::deserialize(from)?;
    // RFC 6052, 2.2.
    if !matches!(prefix.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96) {
        return Err(D::Error::custom(format!(
            "`prefix`: {prefix} must be 32, 40, 48, 56, 64 or 96 bits long"
        )));
    }
    Ok(prefix.trunc())
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.carrier {
            Carrier::Plain => write!(f, "{}", self.address),
            Carrier::Tls(_) => write!(f, "tls://{}", self.address),
            Carrier::Https { path, .. } => write!(f, "https://{}{path}", self.address),
        }
    }
}
