//! The DNS worker's configuration: one YAML document with the options of CoreDNS, under CoreDNS's
//! names, applied in a fixed order that `docs/dns.md` gives.
//!
//! Every field checks itself while it is read, so that each error names the field and its line.

mod values;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use model::selector::LabelSelector;
use plan::zone::{Exposure, Namespaces, PodRecords};
use serde::Deserialize;

use crate::TTL_S;

pub use values::{
    Carrier, Domain, Duration, Pattern, RecordLine, RecordType, ResponseCode, Server, Target, Tls,
    TlsFiles,
};

/// The largest document, in octets.
pub const MAX_CONFIG_OCTETS: usize = 1 << 20;
/// Rules of one kind: more belong into a server of their own.
const MAX_RULES: usize = 1000;

/// Why a document is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too many octets.
    #[error("the configuration takes {octets} octets, more than the {MAX_CONFIG_OCTETS} allowed")]
    TooLarge {
        /// The size.
        octets: usize,
    },
    /// A field is unknown or its value wrong.
    #[error("line {line}: {problem}")]
    Field {
        /// Where, counted from 1.
        line: usize,
        /// Names the field and says what is wrong.
        problem: String,
    },
    /// More rules than are looked through for a question.
    #[error("{field}: {count} are too many, at most {MAX_RULES} are taken")]
    TooMany {
        /// Which rules.
        field: &'static str,
        /// How many there are.
        count: usize,
    },
}

/// The whole configuration. What is left out has the value of [`Config::default`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The cluster's own zone.
    pub kubernetes: Kubernetes,
    /// Whether the search path of pods is followed by the server.
    pub autopath: bool,
    /// Who answers for other names; the rule of the longest zone counts.
    #[serde(deserialize_with = "values::forward_rules")]
    pub forward: Vec<ForwardRule>,
    /// What is kept of others' answers.
    pub cache: CacheOptions,
    /// Names with addresses written here.
    pub hosts: Hosts,
    /// Names that stand for others; the first that fits is applied.
    pub rewrite: Vec<Rewrite>,
    /// Answers made from the question; the first that fits is given.
    pub template: Vec<Template>,
    /// IPv6 addresses for names that have IPv4 addresses only (RFC 6147).
    pub dns64: Option<Dns64>,
    /// Who is answered at all.
    #[serde(deserialize_with = "values::clients")]
    pub clients: Clients,
    /// Who may ask what; the first rule that fits counts.
    pub acl: Vec<AclRule>,
    /// Which questions are logged.
    pub log: LogClass,
    /// Whether failures to answer are logged.
    pub errors: bool,
    /// Whether questions of this server that come back to it are recognised.
    #[serde(rename = "loop")]
    pub detect_loops: bool,
    /// What one client may ask.
    pub rate_limit: RateLimit,
    /// Where metrics are served; read at the start only.
    pub prometheus: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kubernetes: Kubernetes::default(),
            autopath: true,
            forward: vec![],
            cache: CacheOptions::default(),
            hosts: Hosts::default(),
            rewrite: vec![],
            template: vec![],
            dns64: None,
            clients: Clients::default(),
            acl: vec![],
            log: LogClass::None,
            errors: true,
            detect_loops: true,
            rate_limit: RateLimit::default(),
            prometheus: SocketAddr::from(([127, 0, 0, 1], 9153)),
        }
    }
}

/// Options of the cluster's zone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Which pod records there are; left out, what the cluster's configuration says.
    pub pods: Option<PodRecords>,
    /// How long clients may keep a record of the cluster.
    #[serde(deserialize_with = "values::cluster_ttl")]
    pub ttl: Duration,
    /// Zones of the cluster whose missing names are asked of others.
    pub fallthrough: Vec<Domain>,
    /// The namespaces that have names; none are all.
    pub namespaces: BTreeSet<String>,
    /// The labels of namespaces that have names.
    #[serde(deserialize_with = "values::labels")]
    pub namespace_labels: Option<LabelSelector>,
    /// The labels of Services that have names.
    #[serde(deserialize_with = "values::labels")]
    pub labels: Option<LabelSelector>,
    /// Whether endpoints have no names, nor headless Services.
    pub noendpoints: bool,
    /// Whether an endpoint without a hostname is called by its pod.
    pub endpoint_pod_names: bool,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            pods: None,
            ttl: Duration::from_ms(u64::from(TTL_S) * 1000),
            fallthrough: vec![],
            namespaces: BTreeSet::new(),
            namespace_labels: None,
            labels: None,
            noendpoints: false,
            endpoint_pod_names: false,
        }
    }
}

/// Why options of CoreDNS's plugin are no options here.
pub(crate) const NO_KUBERNETES_OPTIONS: [(&str, &str); 5] = [
    ("multicluster", "names of other clusters (ServiceImport, KEP-1645) are not served"),
    ("endpoint", WATCHED_BY_AGENT),
    ("kubeconfig", WATCHED_BY_AGENT),
    ("tls", WATCHED_BY_AGENT),
    ("startup_timeout", "nobody waits: before the first zone the answer is SERVFAIL"),
];
const WATCHED_BY_AGENT: &str = "the agent watches the API server, with credentials of its own";

impl Kubernetes {
    /// What of the cluster has names.
    pub fn exposure(&self) -> Exposure {
        let namespaces = match &self.namespace_labels {
            Some(labels) => Namespaces::Labelled(labels.clone()),
            None if self.namespaces.is_empty() => Namespaces::All,
            None => Namespaces::Named(self.namespaces.clone()),
        };
        Exposure {
            namespaces,
            labels: self.labels.clone().unwrap_or_default(),
            without_endpoints: self.noendpoints,
            endpoint_pod_names: self.endpoint_pod_names,
        }
    }
}

/// Servers for the names below some zones.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardRule {
    /// The zones; the root is all that no other rule has.
    pub zones: Vec<Domain>,
    /// The servers; at least one.
    #[serde(deserialize_with = "values::servers")]
    pub to: Vec<Target>,
    /// Zones below that are not asked for here.
    pub except: Vec<Domain>,
    /// Which server is asked first.
    pub policy: Policy,
    /// Failed health checks after which a server is down; 0 is never.
    pub max_fails: u32,
    /// The time between health checks of a server that did not answer.
    pub health_check: Duration,
    /// Questions that may wait for these servers at one time; 0 leaves the general limit alone.
    pub max_concurrent: usize,
    /// Whether TCP is used from the start.
    pub force_tcp: bool,
    /// The name in the certificate of servers that are asked over TLS; else their address.
    pub tls_servername: Option<String>,
    /// Certificates for servers that are asked over TLS, where they are not the host's.
    pub tls: TlsFiles,
}

impl Default for ForwardRule {
    fn default() -> Self {
        Self {
            zones: vec![Domain::root()],
            to: vec![Target::Host],
            except: vec![],
            policy: Policy::Random,
            max_fails: 2,
            health_check: Duration::from_ms(500),
            max_concurrent: 0,
            force_tcp: false,
            tls_servername: None,
            tls: TlsFiles::default(),
        }
    }
}

/// Which server is asked first; the others follow in the order of the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Any.
    #[default]
    Random,
    /// Each in its turn.
    RoundRobin,
    /// The first that is not down.
    Sequential,
}

/// What is kept of others' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheOptions {
    /// Answers with records.
    pub success: CacheLimits,
    /// Absence of a name or of records.
    pub denial: CacheLimits,
    /// Asking again before an answer that is in use expires.
    pub prefetch: Prefetch,
    /// Giving answers that expired when nobody answers.
    pub serve_stale: ServeStale,
}

impl Default for CacheOptions {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_ms(count * 60_000);
        Self {
            success: CacheLimits {
                capacity: 2048,
                ttl: minutes(60),
                min_ttl: Duration::from_ms(0),
            },
            denial: CacheLimits {
                capacity: 2048,
                ttl: Duration::from_ms(30_000),
                min_ttl: Duration::from_ms(0),
            },
            prefetch: Prefetch::default(),
            serve_stale: ServeStale::default(),
        }
    }
}

/// The bounds of one kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheLimits {
    /// Answers kept at most.
    #[serde(default = "default_capacity", deserialize_with = "values::capacity")]
    pub capacity: usize,
    /// How long they are kept at most.
    pub ttl: Duration,
    /// How long they are kept at least, whatever their server says.
    #[serde(default)]
    pub min_ttl: Duration,
}

/// Asking again before an answer expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prefetch {
    /// Questions for a name that make it worth the while; 0 never asks ahead.
    pub amount: u32,
    /// Questions further apart than this do not count together.
    pub duration: Duration,
    /// The share of its life that an answer has left when it is asked for again, in percent.
    #[serde(deserialize_with = "values::percentage")]
    pub percentage: u32,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { amount: 2, duration: Duration::from_ms(60_000), percentage: 10 }
    }
}

/// Giving answers that expired (RFC 8767).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeStale {
    /// How long after they expired; 0 never.
    pub duration: Duration,
    /// Whether servers are asked first.
    pub refresh_mode: RefreshMode,
}

impl Default for ServeStale {
    fn default() -> Self {
        Self { duration: Duration::from_ms(3_600_000), refresh_mode: RefreshMode::Verify }
    }
}

/// When an answer that expired is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshMode {
    /// When no server answered in time.
    Verify,
    /// At once; servers are asked for the next time.
    Immediate,
}

/// Names with addresses written here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// The addresses by name.
    pub entries: BTreeMap<Domain, Vec<IpAddr>>,
    /// How long clients may keep them.
    pub ttl: Duration,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), ttl: Duration::from_ms(3_600_000) }
    }
}

/// A name that stands for another.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "values::WrittenRewrite")]
pub struct Rewrite {
    /// What to look for in the question's name.
    pub from: Matcher,
    /// What to put in its place; behind a regular expression, `{1}` is what its first group
    /// matched.
    pub to: String,
}

/// What a rewrite looks for. Texts are in lower case, without the final dot.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// The whole name.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Any part.
    Substring(String),
    /// A regular expression.
    Regex(Pattern),
}

/// An answer made from the question.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The zones that it is for.
    #[serde(default = "all_names")]
    pub zones: Vec<Domain>,
    /// The record type asked for.
    #[serde(rename = "type")]
    pub kind: RecordType,
    /// What the name must look like; groups may be named.
    #[serde(rename = "match", default)]
    pub pattern: Option<Pattern>,
    /// Records to answer with, such as `{{ .Name }} 60 IN A 192.0.2.{{ .Group.last }}`.
    #[serde(default)]
    pub answer: Vec<RecordLine>,
    /// The response code.
    #[serde(default)]
    pub rcode: ResponseCode,
}

/// IPv6 addresses made of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns64 {
    /// The prefix that the gateway serves.
    #[serde(deserialize_with = "values::dns64_prefix")]
    pub prefix: Ipv6Net,
    /// Whether names that have IPv6 addresses are answered so too.
    pub translate_all: bool,
}

impl Default for Dns64 {
    fn default() -> Self {
        Self { prefix: values::WELL_KNOWN_DNS64, translate_all: false }
    }
}

/// Who may ask what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AclRule {
    /// What happens.
    pub action: AclAction,
    /// The zones that it is for.
    #[serde(default = "all_names")]
    pub zones: Vec<Domain>,
    /// The record types that it is for; none are all.
    #[serde(default)]
    pub types: Vec<RecordType>,
    /// The clients that it is for; none are all.
    #[serde(default)]
    pub networks: Vec<IpNet>,
}

/// What happens to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AclAction {
    /// It is answered.
    Allow,
    /// It is refused.
    Block,
    /// It is answered as if there were no records.
    Filter,
    /// It is not answered.
    Drop,
}

/// Which questions are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogClass {
    /// None.
    None,
    /// Those that failed.
    Error,
    /// Those about what does not exist.
    Denial,
    /// All.
    All,
}

/// Who is answered; nodes route the Service's address for whoever sends to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Pods and machines of the cluster, and these ranges.
    Cluster(Vec<IpNet>),
    /// Everybody.
    Any,
}

impl Default for Clients {
    fn default() -> Self {
        Self::Cluster(vec![])
    }
}

impl Clients {
    fn ranges(&self) -> usize {
        match self {
            Self::Cluster(ranges) => ranges.len(),
            Self::Any => 0,
        }
    }
}

/// What one client may ask; a bucket that fills at this speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Questions a second; 0 is any number.
    pub queries_per_second: u32,
    /// Questions at once.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { queries_per_second: 1000, burst: 1000 }
    }
}

impl Config {
    /// Reads a document; an empty one is [`Config::default`].
    ///
    /// # Errors
    /// Naming the field and, where the document's text is at fault, its line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_OCTETS {
            return Err(ConfigError::TooLarge { octets: text.len() });
        }
        let text = &with_line_feeds(text);
        let read: Result<Option<Self>, _> = serde_yaml_ng::from_str(text);
        let config = read.map_err(|error| field_error(&error, text))?;
        let config = config.unwrap_or_default();
        config.bound()?;
        if !config.kubernetes.namespaces.is_empty() && config.kubernetes.namespace_labels.is_some()
        {
            let line = text.lines().position(|line| line.contains("namespace_labels:"));
            let problem = "kubernetes: `namespaces` and `namespace_labels` exclude one another: \
                           write one of them"
                .into();
            return Err(ConfigError::Field { line: line.unwrap_or(0) + 1, problem });
        }
        Ok(config)
    }

    /// What of CoreDNS's plugins is done, by their names.
    pub(crate) fn plugins(&self) -> BTreeSet<&'static str> {
        let optional = [
            ("acl", !self.acl.is_empty()),
            ("autopath", self.autopath),
            ("dns64", self.dns64.is_some()),
            ("errors", self.errors),
            ("hosts", !self.hosts.entries.is_empty()),
            ("log", self.log != LogClass::None),
            ("loop", self.detect_loops),
            ("rewrite", !self.rewrite.is_empty()),
            ("template", !self.template.is_empty()),
        ];
        let chosen = optional.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name);
        ["cache", "forward", "kubernetes", "prometheus"].into_iter().chain(chosen).collect()
    }

    fn bound(&self) -> Result<(), ConfigError> {
        let counts = [
            ("forward", self.forward.len()),
            ("rewrite", self.rewrite.len()),
            ("template", self.template.len()),
            ("acl", self.acl.len()),
            ("clients", self.clients.ranges()),
            ("hosts.entries", self.hosts.entries.len()),
            ("kubernetes.namespaces", self.kubernetes.namespaces.len()),
        ];
        match counts.into_iter().find(|(_, count)| *count > MAX_RULES) {
            None => Ok(()),
            Some((field, count)) => Err(ConfigError::TooMany { field, count }),
        }
    }
}

/// The text with all that ends a line in YAML written the same way, so that lines have one number.
fn with_line_feeds(text: &str) -> Cow<'_, str> {
    const OTHERS: [char; 4] = ['\r', '\u{85}', '\u{2028}', '\u{2029}'];
    if !text.contains(OTHERS) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(OTHERS, "\n"))
}

/// The reader gives the line where the mapping around an unknown field, or the list around a wrong
/// expression, begins: the line of its own is looked for from there.
fn field_error(error: &serde_yaml_ng::Error, text: &str) -> ConfigError {
    let said = error.to_string();
    let mut problem = said.split(" at line ").next().unwrap_or_default().to_owned();
    let start = error.location().map_or(1, |location| location.line()).max(1);
    let between = |before: &str, behind: char| {
        problem.split_once(before).and_then(|(_, rest)| rest.split_once(behind))
    };
    let mut lines = text.lines().skip(start - 1);
    let own = if let Some((field, _)) = between("unknown field `", '`') {
        let key = format!("{field}:");
        lines.position(|line| line.split([' ', '{', ',']).any(|word| word.starts_with(&key)))
    } else if let Some((expression, _)) = between("the expression \"", '"') {
        lines.position(|line| line.contains(expression))
    } else {
        None
    };
    let is_of_kubernetes = problem.starts_with("kubernetes:");
    let reason = NO_KUBERNETES_OPTIONS.iter().find(|(option, _)| {
        is_of_kubernetes && between("unknown field `", '`').is_some_and(|(it, _)| it == *option)
    });
    let line = start + own.unwrap_or(0);
    if let Some((option, why)) = reason {
        problem = format!("kubernetes: unknown field `{option}`: {why}");
    }
    ConfigError::Field { line, problem }
}

fn all_names() -> Vec<Domain> {
    vec![Domain::root()]
}

fn default_capacity() -> usize {
    2048
}

#[cfg(test)]
mod tests;
