//! Why a question gets its answer, told by the very code that answers (invariant 12).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::answer::answer_traced;
use crate::config::AclAction;
use crate::index::{Found, Node};
use crate::message::{Query, kind, kind_name, rcode, rcode_name};
use crate::records::Label;
use crate::rules::{access, rewritten};
use crate::template::make;
use crate::{Action, Client, Index, Name, Record, Rules, Server, parse_response, query};

/// One step on the way to an answer.
pub(crate) enum Step<'a> {
    /// The query is refused whatever its name is, or there is no zone yet.
    Refused,
    /// A name was looked up in the zone.
    Looked { name: &'a [u8], found: &'a Found<'a> },
    /// A name of the client's search path was looked up.
    Searched { name: &'a [u8], found: &'a Found<'a> },
}

/// Hears of each step.
pub(crate) trait Trace {
    /// Is told a step.
    fn step(&mut self, step: Step<'_>);
}

/// Hears nothing, and costs nothing.
impl Trace for () {
    fn step(&mut self, _: Step<'_>) {}
}

/// What was decided for a question, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The namespace of the pod that asks; `None`: no pod with an address of its own.
    pub namespace: Option<String>,
    /// Each name that was looked at, and what it is.
    pub steps: Vec<String>,
    /// Names that upstream servers are asked for, in order; the next where one does not exist.
    pub upstream: Vec<String>,
    /// The response code of the zone's own answer, where there is one; with `upstream`, it is given
    /// when no upstream server has a better one.
    pub code: Option<String>,
    /// The records of that answer, as people write them.
    pub records: Vec<String>,
}

impl Trace for Vec<String> {
    fn step(&mut self, step: Step<'_>) {
        let name_of = |wire: &[u8]| Name::of_wire(wire).to_string();
        self.push(match step {
            Step::Refused => "refused: no such class, version or transfer, or no zone yet".into(),
            Step::Looked { name, found } => format!("{}: {}", name_of(name), Description(found)),
            Step::Searched { name, found } => {
                format!("search path: {}: {}", name_of(name), Description(found))
            }
        });
    }
}

/// Answers a question for a client, and tells how.
pub fn explain(
    name: &Name,
    kind: u16,
    index: Option<&Index>,
    rules: &Rules,
    client: Client,
) -> Explanation {
    let message = query(0, name, kind, true);
    let mut reply = Vec::new();
    let mut steps = Vec::new();
    let action = answer_traced(&message, index, rules, client, &mut reply, &mut steps);
    let namespace = index.and_then(|index| index.namespace_of_pod(client.address));
    let mut explanation =
        Explanation { namespace: namespace.map(str::to_owned), steps, ..Explanation::default() };
    if let Action::Forward(forward) = action {
        let names = std::iter::once(&forward.name).chain(&forward.more);
        explanation.upstream = names.map(Name::to_string).collect();
        reply = forward.otherwise.unwrap_or_default();
    }
    explanation.with_reply(&reply)
}

/// The same for one server: with its rules before the zone, and what it keeps and asks of others
/// behind it. Nothing is counted, and nobody is asked.
pub fn explain_by<C: Clone>(
    server: &Server<C>,
    now_us: u64,
    index: Option<&Index>,
    client: Client,
    (name, kind): (&Name, u16),
) -> Explanation {
    let config = server.config();
    let namespace = index.and_then(|index| index.namespace_of_pod(client.address));
    let mut told =
        Explanation { namespace: namespace.map(str::to_owned), ..Explanation::default() };
    if !server.answers(client, index) {
        told.steps.push(format!(
            "clients: {} is refused: it is neither of the cluster nor among those that the option \
             `clients` adds",
            client.address
        ));
        return Explanation { code: Some(rcode_name(rcode::REFUSED)), ..told };
    }
    let new = rewritten(&config.rewrite, name);
    if let Some(new) = &new {
        told.steps.push(format!("rewrite: {name} stands for {new}"));
    }
    let target = new.as_ref().unwrap_or(name);
    for asked in std::iter::once(name).chain(&new) {
        let (what, code) = match access(&config.acl, client.address, asked, kind) {
            AclAction::Allow => continue,
            AclAction::Block => ("refused", Some(rcode::REFUSED)),
            AclAction::Filter => ("answered as if there were no records", Some(rcode::NO_ERROR)),
            AclAction::Drop => ("not answered", None),
        };
        told.steps.push(format!("acl: {asked} is {what}"));
        return Explanation { code: code.map(rcode_name), ..told };
    }
    let Ok(asked) = Query::parse(&query(0, target, kind, true)) else { return told };
    let mut reply = Vec::new();
    if server.answer_from_hosts(&asked, target, client, &mut reply) {
        told.steps.push(format!("hosts: has {target}"));
        return told.with_reply(&reply);
    }
    if let Some(template) = config.template.iter().find(|it| make(it, &asked, target).is_some()) {
        told.steps.push(format!("template: one is for {target}"));
        return Explanation { code: Some(rcode_name(template.rcode.0)), ..told };
    }
    let zone = explain(target, kind, index, server.rules(), client);
    told.steps.extend(zone.steps.iter().cloned());
    let falls_through = zone.upstream.is_empty()
        && zone.code.as_deref() == Some("NXDOMAIN")
        && config.kubernetes.fallthrough.iter().any(|zone| zone.holds(target));
    let upstream = if falls_through {
        told.steps.push("fallthrough: others are asked".into());
        vec![target.clone()]
    } else {
        zone.upstream.iter().filter_map(|name| name.parse().ok()).collect()
    };
    for name in &upstream {
        told.steps.extend(server.forwarder().explain(name, kind, now_us / 1000));
    }
    if !upstream.is_empty() && kind == kind::AAAA && config.dns64.is_some() {
        told.steps.push("dns64: where there is none, addresses of IPv4 are asked for".into());
    }
    let upstream = upstream.iter().map(Name::to_string).collect();
    let (code, records) = if falls_through { (None, vec![]) } else { (zone.code, zone.records) };
    Explanation { upstream, code, records, ..told }
}

impl Explanation {
    fn with_reply(mut self, reply: &[u8]) -> Self {
        if let Some(response) = parse_response(reply) {
            self.code = Some(rcode_name(response.rcode));
            self.records = response.answers.iter().map(record_text).collect();
        }
        self
    }
}

/// A record as people write it.
fn record_text(record: &Record) -> String {
    format!("{} {} {} {}", record.owner, record.ttl_s, kind_name(record.kind), record.data_text())
}

/// What stands at a name, in words.
struct Description<'a>(&'a Found<'a>);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found::Inside { node, .. } = self.0 else {
            return f.write_str("not of the cluster");
        };
        match node {
            Node::Missing => f.write_str("does not exist"),
            Node::Empty => f.write_str("exists without records"),
            Node::Apex => f.write_str("the top of a zone of the cluster"),
            Node::Version => f.write_str("the version of the specification"),
            Node::Addresses(addresses) => {
                write!(f, "{} addresses", addresses.iter().count())
            }
            Node::Ports(_, ports) => {
                write!(f, "{} ports:", ports.len())?;
                for record in ports.iter() {
                    let label = match record.label {
                        None => "the Service".into(),
                        Some(Label::Hostname(hostname)) => hostname.to_owned(),
                        Some(Label::Address(address)) => address.to_string(),
                    };
                    write!(f, " {} of {label}", record.port)?;
                }
                Ok(())
            }
            Node::Alias(target) => write!(f, "an ExternalName for {target}"),
            Node::Pointers(_) => f.write_str("an address of the cluster with names"),
        }
    }
}
