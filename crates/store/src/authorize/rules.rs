//! Rules of roles: what they allow, and which of the rights of some rules others do not give.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Request;
use crate::json;

/// Most single rights that the rules of one role may mean when somebody writes it who does not have
/// all rights: their number is the product of the lists in a rule, and each is looked for.
const MAX_RIGHTS: usize = 20_000;

/// Whether a rule allows a request.
pub(super) fn allows(rule: &Value, request: &Request<'_>) -> bool {
    let lists = |field: &str, wanted: &str| {
        json::items(rule, &format!("/{field}"))
            .iter()
            .filter_map(Value::as_str)
            .any(|listed| listed == "*" || listed == wanted)
    };
    match *request {
        Request::Path { verb, path } => {
            lists("verbs", verb)
                && json::items(rule, "/nonResourceURLs").iter().filter_map(Value::as_str).any(
                    |listed| match listed.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => listed == path,
                    },
                )
        }
        Request::Resource { verb, group, plural, subresource, name, .. } => {
            let resources = json::items(rule, "/resources");
            let names_it = resources.iter().filter_map(Value::as_str).any(|listed| {
                match listed.split_once('/') {
                    None => listed == "*" || (listed == plural && subresource.is_empty()),
                    Some((parent, part)) => {
                        (parent == "*" || parent == plural)
                            && part == subresource
                            && !subresource.is_empty()
                    }
                }
            });
            let names = json::items(rule, "/resourceNames");
            lists("verbs", verb)
                && lists("apiGroups", group)
                && names_it
                && (names.is_empty() || names.iter().any(|listed| listed == name))
        }
    }
}

/// One thing that rules allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right<'a> {
    Resource { group: &'a str, resource: &'a str, name: Option<&'a str>, verb: &'a str },
    Path { path: &'a str, verb: &'a str },
}

/// Rights that are more than [`MAX_RIGHTS`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl std::fmt::Display for TooMany {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the rules mean more than {MAX_RIGHTS} single rights, too many to compare with one's \
             own: split the role"
        )
    }
}

/// What of `wanted` is not in `held`, as the real server prints it: one line a rule.
pub(super) fn missing<'a>(
    wanted: &[Value],
    held: impl Iterator<Item = &'a Value>,
) -> Result<BTreeSet<String>, TooMany> {
    let mut missing = Vec::new();
    let held: Vec<&Value> = held.collect();
    for right in rights(wanted)? {
        if !held.iter().any(|rule| covers(rule, &right)) {
            missing.push(right);
        }
    }
    Ok(describe(&missing))
}

/// The single rights of rules, in their order, each once.
fn rights(rules: &[Value]) -> Result<Vec<Right<'_>>, TooMany> {
    let mut seen = BTreeSet::new();
    let mut rights = Vec::new();
    let mut add = |right| {
        if seen.insert(right) {
            rights.push(right);
        }
        if seen.len() > MAX_RIGHTS { Err(TooMany) } else { Ok(()) }
    };
    for rule in rules {
        let texts = |field: &str| json::texts(rule, field);
        let (verbs, names) = (texts("/verbs"), texts("/resourceNames"));
        let names: Vec<Option<&str>> = match names.is_empty() {
            true => vec![None],
            false => names.into_iter().map(Some).collect(),
        };
        for group in texts("/apiGroups") {
            for resource in texts("/resources") {
                for verb in &verbs {
                    for name in &names {
                        add(Right::Resource { group, resource, name: *name, verb })?;
                    }
                }
            }
        }
        for path in texts("/nonResourceURLs") {
            for verb in &verbs {
                add(Right::Path { path, verb })?;
            }
        }
    }
    Ok(rights)
}

/// Whether a rule gives all of a right.
fn covers(rule: &Value, right: &Right<'_>) -> bool {
    let lists = |field: &str, wanted: &str| {
        json::items(rule, field)
            .iter()
            .filter_map(Value::as_str)
            .any(|listed| listed == "*" || listed == wanted)
    };
    match *right {
        Right::Resource { group, resource, name, verb } => {
            let names = json::items(rule, "/resourceNames");
            let in_all_kinds = resource.split_once('/').is_some_and(|(_, part)| {
                json::items(rule, "/resources")
                    .iter()
                    .any(|listed| listed.as_str().and_then(|l| l.strip_prefix("*/")) == Some(part))
            });
            lists("/verbs", verb)
                && lists("/apiGroups", group)
                && (lists("/resources", resource) || in_all_kinds)
                && (names.is_empty()
                    || name.is_some_and(|name| names.iter().any(|listed| listed == name)))
        }
        Right::Path { path, verb } => {
            let urls = json::items(rule, "/nonResourceURLs");
            lists("/verbs", verb)
                && urls.iter().filter_map(Value::as_str).any(|listed| {
                    listed == path
                        || listed.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
                })
        }
    }
}

/// Rights as rules, the verbs of one thing together.
fn describe(rights: &[Right<'_>]) -> BTreeSet<String> {
    let mut things: Vec<(Right<'_>, Vec<&str>)> = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for right in rights {
        let (thing, verb) = match *right {
            Right::Resource { verb, group, resource, name } => {
                (Right::Resource { group, resource, name, verb: "" }, verb)
            }
            // Paths stay apart, as the real server prints them.
            Right::Path { verb, .. } => (*right, verb),
        };
        let place = *places.entry(thing).or_insert_with(|| {
            things.push((thing, Vec::new()));
            things.len() - 1
        });
        if let Some((_, verbs)) = things.get_mut(place) {
            verbs.push(verb);
        }
    }
    things.iter().map(|(thing, verbs)| line(thing, verbs)).collect()
}

fn line(thing: &Right<'_>, verbs: &[&str]) -> String {
    let verbs: Vec<String> = verbs.iter().map(|verb| format!("{verb:?}")).collect();
    let verbs = verbs.join(" ");
    match thing {
        Right::Resource { group, resource, name, .. } => {
            let names = name.map(|name| format!(", ResourceNames:[{name:?}]")).unwrap_or_default();
            format!("{{APIGroups:[{group:?}], Resources:[{resource:?}]{names}, Verbs:[{verbs}]}}")
        }
        Right::Path { path, .. } => format!("{{NonResourceURLs:[{path:?}], Verbs:[{verbs}]}}"),
    }
}
