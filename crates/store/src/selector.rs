//! Label and field selectors of list, watch and deletecollection requests: parsed from the query
//! with the real server's complaints.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;

use crate::names::{label_value_faults, qualified_name_faults};
use crate::{Object, Resource, Status, json};

/// Longest selector text, in bytes.
pub const MAX_SELECTOR_LENGTH: usize = 64 * 1024;

/// A parsed `labelSelector`. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// A parsed `fieldSelector`. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    DoesNotExist,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    pointer: String,
    value: String,
    equal: bool,
}

impl LabelSelector {
    /// Reads the text form: `app=web,tier in (a, b),!old,n>3`.
    ///
    /// # Errors
    /// 400 with the real server's complaint.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > MAX_SELECTOR_LENGTH {
            return Err(Status::bad_request("unable to parse requirement: selector is too long"));
        }
        let requirements =
            Parser { tokens: lex(text), position: 0 }.requirements().map_err(|complaint| {
                Status::bad_request(format!("unable to parse requirement: {complaint}"))
            })?;
        Ok(Self { requirements })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object is selected.
    pub fn matches(&self, value: &Value) -> bool {
        self.matches_labels(json::at(value, "/metadata/labels"))
    }

    fn matches_labels(&self, labels: Option<&Value>) -> bool {
        self.requirements.iter().all(|requirement| {
            let label = labels.and_then(|labels| labels.get(&requirement.key)?.as_str());
            requirement.test.holds(label)
        })
    }
}

impl Test {
    fn holds(&self, label: Option<&str>) -> bool {
        let number = || label.and_then(|label| label.parse::<i64>().ok());
        match self {
            Self::Exists => label.is_some(),
            Self::DoesNotExist => label.is_none(),
            Self::In(values) => label.is_some_and(|label| values.contains(label)),
            Self::NotIn(values) => label.is_none_or(|label| !values.contains(label)),
            Self::GreaterThan(limit) => number().is_some_and(|number| number > *limit),
            Self::LessThan(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

impl FieldSelector {
    /// Reads the text form: `status.phase!=Failed,spec.nodeName=node1`.
    ///
    /// # Errors
    /// 400 for a field that the row does not offer, in the real server's words.
    pub fn parse(resource: &Resource, text: &str) -> Result<Self, Status> {
        if text.len() > MAX_SELECTOR_LENGTH {
            return Err(Status::bad_request("invalid field selector: selector is too long"));
        }
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = part.split_once("==") {
                (path, true, value)
            } else if let Some((path, value)) = part.split_once('=') {
                (path, true, value)
            } else {
                let complaint = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(complaint));
            };
            let pointer = format!("/{}", path.replace('.', "/"));
            if !is_selectable(resource, &pointer) {
                return Err(Status::bad_request(unknown_field(resource, path)));
            }
            terms.push(FieldTerm { pointer, value: value.to_owned(), equal });
        }
        Ok(Self { terms })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, if one must.
    pub fn exact(&self, pointer: &str) -> Option<&str> {
        let term = self.terms.iter().find(|term| term.equal && term.pointer == pointer)?;
        Some(&term.value)
    }

    /// Whether an object is selected. An absent field reads as empty text, `false` for flags.
    pub fn matches(&self, value: &Value) -> bool {
        self.matches_fields(|pointer| json::at(value, pointer).map(Cow::Borrowed))
    }

    fn matches_fields<'a>(&self, field: impl Fn(&str) -> Option<Cow<'a, Value>>) -> bool {
        let text = |pointer: &str| field_text(pointer, field(pointer).as_deref());
        self.terms.iter().all(|term| (text(&term.pointer) == term.value) == term.equal)
    }
}

/// Whether an object passes both selectors. No tree is made for it.
pub(crate) fn selects(labels: &LabelSelector, fields: &FieldSelector, object: &Object) -> bool {
    let of_object = || object.value.peek("/metadata/labels");
    fields.matches_fields(|pointer| object.value.peek(pointer))
        && (labels.is_empty() || labels.matches_labels(of_object().as_deref()))
}

fn is_selectable(resource: &Resource, pointer: &str) -> bool {
    pointer == "/metadata/name"
        || (pointer == "/metadata/namespace" && resource.namespaced)
        || resource.selectable_fields.contains(&pointer)
}

fn unknown_field(resource: &Resource, path: &str) -> String {
    let builtin_message = format!("{path:?} is not a known field selector");
    if !resource.selectable_fields.is_empty() {
        return format!("field label not supported: {path}");
    }
    if resource.namespaced {
        format!("{builtin_message}: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("{builtin_message}: only \"metadata.name\"")
    }
}

fn field_text(pointer: &str, value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let texts: Vec<String> =
                items.iter().map(|item| json::text(item, "/ip").to_owned()).collect();
            texts.join(",")
        }
        Some(other) => other.to_string(),
        None if FLAGS.contains(&pointer) => "false".to_owned(),
        None => String::new(),
    }
}

/// Selectable fields that are flags: absent means `false`.
const FLAGS: &[&str] = &["/spec/hostNetwork", "/spec/unschedulable"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

/// The two-character symbols stand first: the longest match wins.
const SYMBOLS: &[&str] = &["==", "!=", "=", "!", ",", "(", ")", ">", "<"];

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = rest.get(symbol.len()..).unwrap_or_default();
        } else {
            let is_end = |c: char| c.is_whitespace() || "=!,()><".contains(c);
            let end = rest.find(is_end).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            tokens.push(Token::Word(word.to_owned()));
            rest = after;
        }
        rest = rest.trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        if self.peek() == &Token::End {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => {
                    if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                        return Err(complain(self.peek(), "identifier after ','"));
                    }
                }
                other => return Err(complain(&other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == &Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(complain(&other, "identifier")),
        };
        if let Some(fault) = qualified_name_faults(&key).into_iter().next() {
            return Err(format!("key: Invalid value: {key:?}: {fault}"));
        }
        if negated {
            return Ok(Requirement { key, test: Test::DoesNotExist });
        }
        let test = match self.peek().clone() {
            Token::End | Token::Symbol(",") => Test::Exists,
            Token::Symbol("=" | "==") => Test::In(BTreeSet::from([self.single_value(&key)?])),
            Token::Symbol("!=") => Test::NotIn(BTreeSet::from([self.single_value(&key)?])),
            Token::Symbol(">") => Test::GreaterThan(self.number(&key)?),
            Token::Symbol("<") => Test::LessThan(self.number(&key)?),
            Token::Word(word) if word == "in" => Test::In(self.values(&key)?),
            Token::Word(word) if word == "notin" => Test::NotIn(self.values(&key)?),
            other => {
                return Err(complain(&other, "in, notin, =, ==, !=, gt, lt"));
            }
        };
        Ok(Requirement { key, test })
    }

    fn single_value(&mut self, key: &str) -> Result<String, String> {
        self.next();
        match self.peek().clone() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(value) => {
                self.next();
                checked_value(key, value)
            }
            other => Err(complain(&other, "identifier")),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let value = self.single_value(key)?;
        value.parse().map_err(|_| {
            format!("values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn values(&mut self, key: &str) -> Result<BTreeSet<String>, String> {
        self.next();
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(complain(&other, "'('")),
        }
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.insert(checked_value(key, value)?);
                    match self.next() {
                        Token::Symbol(",") => {}
                        Token::Symbol(")") => return Ok(values),
                        other => return Err(complain(&other, "',' or ')'")),
                    }
                }
                // `(a,)` and `()` hold the empty value.
                Token::Symbol(",") => {
                    values.insert(String::new());
                }
                Token::Symbol(")") => {
                    values.insert(String::new());
                    return Ok(values);
                }
                other => return Err(complain(&other, "',', ')' or identifier")),
            }
        }
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.position).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.position += 1;
        token
    }
}

fn checked_value(key: &str, value: String) -> Result<String, String> {
    match label_value_faults(&value).into_iter().next() {
        Some(fault) => Err(format!("values[0][{key}]: Invalid value: {value:?}: {fault}")),
        None => Ok(value),
    }
}

fn complain(found: &Token, expected: &str) -> String {
    let found = match found {
        Token::Word(word) => word,
        Token::Symbol(symbol) => *symbol,
        Token::End => "",
    };
    format!("found '{found}', expected: {expected}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_grammar_of_label_selectors() {
        let object = json!({"metadata": {"labels": {"app": "web", "n": "5", "empty": ""}}});
        for (text, selected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=web", true),
            ("app==web,n", true),
            ("app != web", false),
            ("other!=x", true),
            ("app in (api, web)", true),
            ("app notin (api,web)", false),
            ("other notin (x)", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("empty=", true),
            ("empty in ()", true),
            ("app in (web),n notin (6)", true),
        ] {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(&object), selected, "{text}");
        }
    }

    #[test]
    fn complaints_name_what_was_found() {
        for (text, message) in [
            ("a===b", "unable to parse requirement: found '=', expected: identifier"),
            ("a in b", "unable to parse requirement: found 'b', expected: '('"),
            ("a,", "unable to parse requirement: found '', expected: identifier after ','"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
        ] {
            assert_eq!(LabelSelector::parse(text).expect_err(text).message, message);
        }
    }
}
