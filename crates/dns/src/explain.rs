//! Why a question gets its answer, told by the very code that answers (invariant 12).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::answer::answer_traced;
use crate::index::{Found, Node};
use crate::message::{kind_name, rcode_name};
use crate::records::Label;
use crate::{Action, Client, Index, Name, Record, Rules, parse_response, query};

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
    if let Some(response) = parse_response(&reply) {
        explanation.code = Some(rcode_name(response.rcode));
        explanation.records = response.answers.iter().map(record_text).collect();
    }
    explanation
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
