//! What an expression can cost at most, before it has seen any value: cel-go's `checker.Cost` with
//! the libraries of the API server. Sizes come from the schema: where it names no limit, from what
//! fits into one request.
//!
//! Where cel-go knows nothing of a size it takes the largest number; we do so for what it would be
//! told of, and are more lenient where our tree knows more than its own (items of a filtered list).

use std::collections::BTreeMap;

use super::parser::{Call, Expr, Fold, How, Kind, Literal, OptionalMap};
use super::types::escape;
use super::{Program, cost};

/// Bytes of the largest request that the API server takes (`DefaultMaxRequestSizeBytes`).
pub const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;
/// Characters of a text that cost as much as one step.
const TEXT_A_STEP: u64 = 10;
/// Characters of a pattern that count as one part of it.
const PATTERN_A_PART: u64 = 4;

/// Places of a schema that one value is looked for at: an expression that takes it from more is
/// estimated by the first ones and the largest size of all.
const MAX_PLACES: usize = 32;

/// How large a value of a schema can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Most bytes, items or members.
    pub most: u64,
    /// Fewest bytes of it in JSON.
    pub least_bytes: u64,
    inner: Option<Box<Self>>,
    is_map: bool,
    fields: BTreeMap<String, Self>,
}

impl Extent {
    /// A scalar.
    pub fn scalar(most: u64, least_bytes: u64) -> Self {
        Self { most, least_bytes, ..Self::default() }
    }

    /// A list. Without a limit, as many items as fit into one request.
    pub fn list(limit: Option<u64>, item: Self) -> Self {
        let most = limit.unwrap_or_else(|| (MAX_REQUEST_BYTES - 2) / (item.least_bytes + 1));
        Self { most, least_bytes: 2, inner: Some(Box::new(item)), ..Self::default() }
    }

    /// A map. A member without its value takes six bytes.
    pub fn map(limit: Option<u64>, value: Self) -> Self {
        let most = limit.unwrap_or_else(|| (MAX_REQUEST_BYTES - 2) / (value.least_bytes + 6));
        Self { most, least_bytes: 2, inner: Some(Box::new(value)), is_map: true, ..Self::default() }
    }

    /// An object with fields by their names in JSON. `must_have` says which ones are always there.
    pub fn object<'a>(
        fields: impl IntoIterator<Item = (&'a str, Self)>,
        must_have: impl Fn(&str) -> bool,
    ) -> Self {
        let mut made = Self { least_bytes: 2, ..Self::default() };
        for (name, field) in fields {
            if must_have(name) {
                made.least_bytes += name.len() as u64 + field.least_bytes + 4;
            }
            made.fields.extend(escape(name).map(|name| (name, field)));
        }
        made
    }

    /// How often such a value can stand in one request.
    pub fn most_times(&self) -> u64 {
        MAX_REQUEST_BYTES / (self.least_bytes + 1)
    }
}

impl Program {
    /// The most that one evaluation costs.
    pub fn estimate(&self, variables: &[(&str, &Extent)]) -> u64 {
        let scope = variables.iter().map(|(name, extent)| {
            (*name, Known { places: vec![extent], ..Known::sized(0, extent.most) })
        });
        Estimator { scope: scope.collect() }.of(&self.expr).cost
    }
}

/// What is known of an expression's value, and its cost.
#[derive(Clone, Debug, Default)]
struct Known<'a> {
    cost: u64,
    least: u64,
    most: u64,
    /// Where the value can come from.
    places: Vec<&'a Extent>,
    /// An item of a list that the expression makes, or a value of its map.
    item: Option<Box<Self>>,
}

impl<'a> Known<'a> {
    fn sized(cost: u64, most: u64) -> Self {
        Self { cost, most, ..Self::default() }
    }

    /// A number, a truth, a time.
    fn scalar(cost: u64) -> Self {
        Self { cost, least: 1, most: 1, ..Self::default() }
    }

    fn unknown(cost: u64) -> Self {
        Self::sized(cost, u64::MAX)
    }

    fn at(cost: u64, places: Vec<&'a Extent>) -> Self {
        match places.iter().map(|extent| extent.most).max() {
            Some(most) => Self { cost, most, places, ..Self::default() },
            None => Self::unknown(cost),
        }
    }

    fn with_cost(self, cost: u64) -> Self {
        Self { cost, ..self }
    }

    /// One or the other.
    fn or(mut self, other: Self) -> Self {
        // Each once, so that what is written out many times does not grow with every level.
        let is_new = |place: &&Extent| !self.places.iter().any(|one| std::ptr::eq(*one, *place));
        let room = MAX_PLACES.saturating_sub(self.places.len());
        let new = other.places.into_iter().filter(is_new).take(room);
        let new: Vec<&'a Extent> = new.collect();
        self.places.extend(new);
        self.item = match (self.item, other.item) {
            (Some(one), Some(other)) => Some(Box::new(one.or(*other))),
            (one, other) => one.or(other),
        };
        Self {
            cost: self.cost.max(other.cost),
            least: self.least.min(other.least),
            most: self.most.max(other.most),
            ..self
        }
    }

    /// What the list has, or the map under any key.
    fn inner(&self) -> Self {
        match &self.item {
            Some(item) => (**item).clone().with_cost(0),
            None => {
                Self::at(0, self.places.iter().filter_map(|one| one.inner.as_deref()).collect())
            }
        }
    }

    fn field(&self, name: &str, cost: u64) -> Self {
        let fields = self.places.iter().filter_map(|one| one.fields.get(name));
        let found: Vec<&'a Extent> = fields.collect();
        if found.is_empty() { self.inner().with_cost(cost) } else { Self::at(cost, found) }
    }

    /// Steps of walking it as a text.
    fn walk(&self) -> u64 {
        self.most.div_ceil(TEXT_A_STEP)
    }
}

struct Estimator<'a> {
    /// Variables, those of the innermost macro last.
    scope: Vec<(&'a str, Known<'a>)>,
}

impl<'a> Estimator<'a> {
    fn of(&mut self, expr: &'a Expr) -> Known<'a> {
        match &expr.kind {
            Kind::Literal(literal) => literal_extent(literal),
            Kind::Name(name) => {
                let known = self.scope.iter().rev().find(|(known, _)| known == name);
                known.map_or(Known::scalar(1), |(_, known)| known.clone().with_cost(1))
            }
            Kind::Select { of, field, .. } => {
                let of = self.of(of);
                of.field(&field.of_object(), of.cost.saturating_add(1))
            }
            Kind::Has { of, .. } => Known::scalar(self.of(of).cost),
            Kind::Call(call) => self.call(call),
            Kind::List(items) => {
                let values = items.iter().map(|item| self.of(&item.value)).collect();
                made(cost::LIST, items.len(), values, 0)
            }
            Kind::Map(entries) => {
                let keys = entries
                    .iter()
                    .fold(0u64, |sum, entry| sum.saturating_add(self.of(&entry.key).cost));
                let values = entries.iter().map(|entry| self.of(&entry.value)).collect();
                made(cost::MAP, entries.len(), values, keys)
            }
            Kind::And(terms) | Kind::Or(terms) => {
                let sum = |sum: u64, term| sum.saturating_add(self.of(term).cost);
                Known::scalar(terms.iter().fold(0, sum))
            }
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = &**parts;
                let first = self.of(condition).cost;
                let either = self.of(then).or(self.of(otherwise));
                let cost = either.cost.saturating_add(first);
                either.with_cost(cost)
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::OptionalMap(map) => self.optional_map(map),
        }
    }

    fn call(&mut self, call: &'a Call) -> Known<'a> {
        let arguments: Vec<Known<'a>> = call.arguments.iter().map(|one| self.of(one)).collect();
        let sum = arguments.iter().fold(0u64, |sum, one| sum.saturating_add(one.cost));
        let own = own_cost(&call.name, &arguments);
        result(&call.name, arguments).with_cost(sum.saturating_add(own))
    }

    /// A macro: its range, and its body as often as that is large.
    fn fold(&mut self, fold: &'a Fold) -> Known<'a> {
        let over = self.of(&fold.over);
        let item = over.inner();
        let before = self.scope.len();
        // Keys of maps and places of lists count for nothing, as in cel-go.
        let names = match fold.names.len() {
            1 if over.places.iter().any(|one| one.is_map) => vec![Known::sized(0, 0)],
            1 => vec![item.clone()],
            _ => vec![Known::sized(0, 0), item.clone()],
        };
        for (name, known) in fold.names.iter().zip(names) {
            self.scope.push((name, known));
        }
        let filter = fold.filter.as_ref().map_or(0, |filter| self.of(filter).cost);
        let body = self.of(&fold.body);
        self.scope.truncate(before);
        // What the macro's own steps cost, and what it costs beside them.
        let (step, once) = match fold.how {
            How::All => (3, 1),
            How::Exists => (4, 1),
            How::ExistsOne => (2, 3),
            How::Filter => (13, cost::LIST as u64 + 1),
            How::Map | How::TransformList => (12, cost::LIST as u64 + 1),
            How::TransformMap | How::TransformMapEntry => (3, cost::MAP as u64 + 1),
        };
        let round = body.cost.saturating_add(filter).saturating_add(step);
        let cost = over.most.saturating_mul(round).saturating_add(over.cost).saturating_add(once);
        let most = over.most;
        match fold.how {
            How::All | How::Exists | How::ExistsOne => Known::scalar(cost),
            How::Filter => Known { item: Some(Box::new(item)), ..Known::sized(cost, most) },
            How::Map | How::TransformList | How::TransformMap | How::TransformMapEntry => {
                Known { item: Some(Box::new(body)), ..Known::sized(cost, most) }
            }
        }
    }

    fn optional_map(&mut self, map: &'a OptionalMap) -> Known<'a> {
        let of = self.of(&map.of);
        self.scope.push((&map.name, of.clone()));
        let body = self.of(&map.body);
        self.scope.pop();
        // Whether it has a value, that value, and the optional around the result.
        let cost = of.cost.saturating_add(body.cost).saturating_add(3);
        body.with_cost(cost)
    }
}

/// A list or a map that is written out.
fn made<'a>(base: usize, count: usize, values: Vec<Known<'a>>, keys: u64) -> Known<'a> {
    let sum = values.iter().fold(keys, |sum, one| sum.saturating_add(one.cost));
    let item = values.into_iter().reduce(Known::or);
    let count = count as u64;
    Known {
        cost: sum.saturating_add(base as u64),
        least: count,
        most: count,
        item: Some(Box::new(item.unwrap_or_else(|| Known::scalar(0)))),
        ..Known::default()
    }
}

fn literal_extent<'a>(literal: &Literal) -> Known<'a> {
    let length = match literal {
        Literal::Text(text) => text.len() as u64,
        Literal::Bytes(octets) => octets.len() as u64,
        _ => 1,
    };
    Known { least: length, most: length, ..Known::default() }
}

/// What a call costs beside its arguments.
fn own_cost(name: &str, arguments: &[Known<'_>]) -> u64 {
    let first_walk = || arguments.first().map_or(1, Known::walk);
    match (name, arguments) {
        ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_", [one, other]) => {
            one.most.min(other.most).div_ceil(TEXT_A_STEP)
        }
        ("_+_", [one, other]) if is_list(one) || is_list(other) => 1,
        ("_+_", [one, other]) => one.most.saturating_add(other.most).div_ceil(TEXT_A_STEP).max(1),
        ("_in_", [_, of]) => of.most,
        ("startsWith" | "endsWith", [_, wanted]) => wanted.walk(),
        ("contains", [text, wanted]) => text.walk().saturating_mul(wanted.walk()),
        ("matches" | "find" | "findAll", [text, pattern, ..]) => {
            let text = text.most.saturating_add(1).div_ceil(TEXT_A_STEP);
            text.saturating_mul(pattern.most.div_ceil(PATTERN_A_PART))
        }
        ("replace" | "split", [text, ..]) => text.most.saturating_mul(2).div_ceil(TEXT_A_STEP),
        ("join", [list, rest @ ..]) => joined(list, rest.first()).div_ceil(TEXT_A_STEP),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", [of, ..]) => {
            match is_list(of) {
                true => of.most.saturating_mul(1 + compared(&of.inner())),
                false => of.walk(),
            }
        }
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [one, other]) => {
            let pairs = one.most.saturating_mul(other.most);
            if name == "sets.equivalent" { pairs.saturating_mul(2) } else { pairs }
        }
        (
            "lowerAscii" | "upperAscii" | "substring" | "trim" | "format" | "strings.quote" | "url"
            | "isURL" | "ip" | "isIP" | "ip.isCanonical" | "cidr" | "isCIDR" | "quantity"
            | "isQuantity" | "semver" | "isSemver" | "bytes" | "charAt",
            _,
        ) => first_walk(),
        ("validate", [_, text]) => text.walk(),
        ("string", [one]) => one.walk(),
        ("check", [_, _]) => cost::CHECK as u64 + 1,
        _ => 1,
    }
}

/// What comparing an item costs beside one step: the walk of a text.
fn compared(item: &Known<'_>) -> u64 {
    if item.most > 1 { item.walk() } else { 0 }
}

/// Whether it is known to be a list or a map.
fn is_list(known: &Known<'_>) -> bool {
    known.item.is_some() || known.places.iter().any(|one| one.inner.is_some())
}

/// Most characters of the texts of a list with a separator between them.
fn joined(list: &Known<'_>, separator: Option<&Known<'_>>) -> u64 {
    let texts = list.most.saturating_mul(list.inner().most);
    let between = separator.map_or(0, |one| list.most.saturating_sub(1).saturating_mul(one.most));
    texts.saturating_add(between)
}

/// What is known of a call's value.
fn result<'a>(name: &str, mut arguments: Vec<Known<'a>>) -> Known<'a> {
    let first = arguments.first().cloned().unwrap_or_default();
    let sized = |most: u64| Known::sized(0, most);
    match (name, arguments.len()) {
        ("_[_]" | "_[?_]", _) => first.inner(),
        ("_+_", 2) => {
            let other = arguments.pop().unwrap_or_default();
            let (least, most) =
                (first.least.saturating_add(other.least), first.most.saturating_add(other.most));
            Known { least, most, ..first.or(other) }
        }
        ("orValue" | "or", 2) => first.or(arguments.pop().unwrap_or_default()),
        (
            "dyn"
            | "value"
            | "optional.of"
            | "optional.ofNonZeroValue"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim"
            | "find"
            | "url"
            | "string",
            _,
        ) => Known { least: 0, ..first },
        ("max" | "min" | "sum", _) => first.inner(),
        ("bytes", _) => sized(first.most.saturating_mul(4)),
        ("strings.quote", _) => sized(first.most.saturating_mul(2)),
        ("charAt", _) => sized(4),
        ("join", _) => sized(joined(&first, arguments.get(1))),
        ("split" | "findAll", _) => {
            let item = Some(Box::new(sized(first.most)));
            Known { item, ..sized(first.most) }
        }
        ("replace", _) => sized(replaced(&arguments)),
        ("format", _) => Known::unknown(0),
        ("getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath", _) => {
            sized(first.most)
        }
        _ => Known::scalar(0),
    }
}

/// Most characters that a text has after replacements.
fn replaced(arguments: &[Known<'_>]) -> u64 {
    let [text, old, new, ..] = arguments else { return u64::MAX };
    match old.least {
        0 => text.most.saturating_add(1).saturating_mul(new.most).saturating_add(text.most),
        least if new.most <= least => text.most,
        least => text.most.div_ceil(least).saturating_mul(new.most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::Type;

    fn text(limit: u64) -> Extent {
        Extent::scalar(limit, 2)
    }

    fn estimate(rule: &str, kind: Type, extent: &Extent) -> u64 {
        let program = Program::compile(rule, &[("self", kind)]).expect(rule);
        program.estimate(&[("self", extent)])
    }

    /// What the real server's own tests (`TestCelCostEstimation`) expect of `self.all(x, true)`.
    #[test]
    fn lists_and_maps_without_a_limit_are_as_large_as_a_request() {
        let number = || Extent::scalar(0, 1);
        for (extent, expected) in [
            (Extent::list(None, number()), 4_718_591),
            (Extent::list(Some(10), number()), 32),
            (Extent::list(None, text(0)), 3_145_727),
            (Extent::list(None, Extent::scalar(0, 4)), 1_887_437),
        ] {
            let kind = Type::list(Type::Dyn);
            assert_eq!(estimate("self.all(x, true)", kind, &extent), expected);
        }
        let extent = Extent::map(None, number());
        let kind = Type::map(Type::String, Type::Int);
        assert_eq!(estimate("self.all(x, true)", kind, &extent), 1_348_169);
    }

    #[test]
    fn costs_follow_the_limits_of_the_schema() {
        let kind = || {
            let port = Type::object([("name", Type::String), ("port", Type::Int)]);
            Type::object([("name", Type::String), ("ports", Type::list(port))])
        };
        let extent = |most_items: u64, most_length: u64| {
            let fields = [("name", text(most_length)), ("port", Extent::scalar(0, 1))];
            let item = Extent::object(fields, |_| true);
            let list = Extent::list(Some(most_items), item);
            Extent::object([("name", text(most_length)), ("ports", list)], |_| true)
        };
        for rule in [
            "self.ports.all(p, p.name == self.name)",
            "self.ports.all(p, self.ports.exists_one(q, p.name == q.name))",
            "self.ports.filter(p, p.port > 1).map(p, p.name).join(',').size() < 9",
            "self.name.matches('^a+$')",
            "self.name.contains(self.name)",
            "self.name.split(',').all(x, x.startsWith(self.name))",
            "self.name.replace('', 'xyz').size() > 1",
            "self.name in self.ports.map(p, p.name)",
            "self.ports.map(p, p.name).isSorted()",
            "has(self.name) && self.name + self.name != 'x'",
        ] {
            let small = estimate(rule, kind(), &extent(8, 40));
            let large = estimate(rule, kind(), &extent(80, 4_000));
            assert!(small < 20_000 && large > 4 * small, "{rule}: {small} {large}");
        }
        let constant = estimate("self.ports.size() < 3", kind(), &extent(9, 9));
        assert_eq!(constant, estimate("self.ports.size() < 3", kind(), &extent(9_000, 9)));
    }

    /// What is written ten times at each of many levels is looked at level by level.
    #[test]
    fn many_levels_take_no_longer_than_few() {
        let levels = ".map(x, [x, x, x, x, x, x, x, x, x, x])".repeat(50);
        let rule = format!("[self, self, self]{levels}.size() == 3");
        let cost = estimate(&rule, Type::String, &text(9));
        assert!(cost < 20_000, "{cost}");
    }

    #[test]
    fn estimates_never_overflow() {
        let kind = Type::list(Type::list(Type::String));
        let huge = Extent::scalar(u64::MAX, 2);
        let extent = Extent::list(Some(u64::MAX), Extent::list(Some(u64::MAX), huge));
        let rule = "self.all(x, x.all(y, y.replace('', y).matches(y)))";
        assert_eq!(estimate(rule, kind, &extent), u64::MAX);
    }
}
