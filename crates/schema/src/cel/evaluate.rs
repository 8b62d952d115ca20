//! Evaluates expressions (cel-spec, "Evaluation").

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Error;
use super::cost::{self, Meter};
use super::functions::{self, Said};
use super::parser::{Call, Entry, Expr, FieldName, Fold, How, Item, Kind, Literal, OptionalMap};
use super::types::Identity;
use super::value::{Key, List, Map, TYPE_NAMES, Text, Value};

/// Evaluates an expression: its value or why there is none, and what it cost.
pub(super) fn run<'a>(
    expr: &'a Expr,
    variables: &[(&'a str, Value<'a>)],
) -> (Result<Value<'a>, Error>, u64) {
    let mut machine = Machine { scope: variables.to_vec(), meter: Meter::default() };
    let value = machine.value(expr);
    (value, machine.meter.spent())
}

struct Machine<'a> {
    /// Variables, those of the innermost macro last.
    scope: Vec<(&'a str, Value<'a>)>,
    meter: Meter,
}

impl<'a> Machine<'a> {
    fn value(&mut self, expr: &'a Expr) -> Said<'a> {
        match &expr.kind {
            Kind::Literal(literal) => {
                if let Literal::Bytes(octets) = literal {
                    self.meter.charge_text(octets.len())?;
                }
                Ok(literal.value())
            }
            Kind::Name(name) => self.name(name),
            Kind::Select { of, field, is_optional } => self.select(of, field, *is_optional),
            Kind::Has { of, field } => {
                self.meter.charge_name(field.text.len())?;
                let of = match self.value(of)? {
                    Value::Optional(None) => return Ok(Value::Bool(false)),
                    Value::Optional(Some(inner)) => (*inner).clone(),
                    other => other,
                };
                Ok(Value::Bool(member(&of, field)?.is_some()))
            }
            Kind::Call(call) => self.call(call),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::And(terms) => self.first_that_is(terms, false),
            Kind::Or(terms) => self.first_that_is(terms, true),
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = &**parts;
                self.meter.charge(1)?;
                if self.truth(condition)? { self.value(then) } else { self.value(otherwise) }
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::OptionalMap(map) => self.optional_map(map),
        }
    }

    fn name(&mut self, name: &str) -> Said<'a> {
        self.meter.charge_name(name.len())?;
        if let Some((_, value)) = self.scope.iter().rev().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        match TYPE_NAMES.iter().find(|known| **known == name) {
            Some(known) => Ok(Value::Type(known)),
            None => Err(Error::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn truth(&mut self, expr: &'a Expr) -> Result<bool, Error> {
        match self.value(expr)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Error::new("no such overload")),
        }
    }

    /// `&&` looks for a false term, `||` for a true one; finding it, no other term's error counts.
    fn first_that_is(&mut self, terms: &'a [Expr], wanted: bool) -> Said<'a> {
        let mut failed = None;
        for term in terms {
            self.meter.charge(1)?;
            match self.truth(term) {
                Ok(truth) if truth == wanted => return Ok(Value::Bool(wanted)),
                Ok(_) => {}
                Err(Error::CostLimit) => return Err(Error::CostLimit),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Value::Bool(!wanted)), Err)
    }

    fn select(&mut self, of: &'a Expr, field: &FieldName, is_optional: bool) -> Said<'a> {
        self.meter.charge_name(field.text.len())?;
        let known = self.scope.iter().map(|(name, value)| (*name, value));
        if let Some(value) = of.qualified(field, known) {
            return Ok(value.clone());
        }
        let (of, is_optional) = match self.value(of)? {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, is_optional),
        };
        match (member(&of, field)?, is_optional) {
            (Some(value), true) => Ok(Value::some(value)),
            (None, true) => Ok(Value::Optional(None)),
            (Some(value), false) => Ok(value),
            (None, false) => Err(Error::new(format!("no such key: {}", field.text))),
        }
    }

    fn call(&mut self, call: &'a Call) -> Said<'a> {
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            arguments.push(self.value(argument)?);
        }
        self.meter.charge(1)?;
        match (call.name.as_str(), arguments.as_slice()) {
            ("_[_]", [of, index]) => self.index(of, index, false),
            ("_[?_]", [of, index]) => self.index(of, index, true),
            ("_==_", [one, other]) => Ok(Value::Bool(self.equal(one, other)?)),
            ("_!=_", [one, other]) => Ok(Value::Bool(!self.equal(one, other)?)),
            ("_in_", [wanted, of]) => Ok(Value::Bool(self.contains(of, wanted)?)),
            ("_+_", [Value::List(one), Value::List(other)]) => self.concatenate(one, other),
            ("sets.contains", [Value::List(one), Value::List(other)]) => {
                Ok(Value::Bool(self.covers(one, other)?))
            }
            ("sets.equivalent", [Value::List(one), Value::List(other)]) => {
                Ok(Value::Bool(self.covers(one, other)? && self.covers(other, one)?))
            }
            ("sets.intersects", [one @ Value::List(_), Value::List(other)]) => {
                for item in other.iter() {
                    if self.contains(one, &item)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            ("indexOf", [Value::List(list), wanted]) => self.place(list, wanted, false),
            ("lastIndexOf", [Value::List(list), wanted]) => self.place(list, wanted, true),
            (name, _) => functions::call(name, &arguments, call.pattern.as_ref(), &mut self.meter),
        }
    }

    fn index(&mut self, of: &Value<'a>, index: &Value<'a>, is_optional: bool) -> Said<'a> {
        let (of, is_optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (&**inner, true),
            other => (other, is_optional),
        };
        let key = self.key(index)?.ok_or_else(|| Error::new("no such overload"))?;
        let found = match (of, &key) {
            (Value::List(list), Key::Number(place)) => {
                usize::try_from(*place).ok().and_then(|place| list.get(place))
            }
            (Value::Map(map), key) => map.get(key),
            _ => return Err(Error::new("no such overload")),
        };
        match (found, is_optional, of) {
            (found, true, _) => Ok(Value::Optional(found.map(Rc::new))),
            (Some(value), false, _) => Ok(value),
            (None, false, Value::List(_)) => Err(Error::new(format!("index out of bounds: {key}"))),
            (None, false, _) => Err(Error::new(format!("no such key: {key}"))),
        }
    }

    /// A value as a key, which copies its text.
    fn key(&mut self, value: &Value<'a>) -> Result<Option<Key>, Error> {
        if let Value::Text(text) = value {
            self.meter.charge_text(text.len())?;
        }
        Ok(value.key())
    }

    /// The keys of a map, copied.
    fn keys(&mut self, map: &Map<'a>) -> Result<Vec<Key>, Error> {
        let keys = map.keys();
        self.meter.charge_text(keys.iter().map(Key::size).sum())?;
        Ok(keys)
    }

    /// Whether two values are equal. Sets and lists with keys are so in whatever order they stand.
    fn equal(&mut self, one: &Value<'a>, other: &Value<'a>) -> Result<bool, Error> {
        match (one, other) {
            (Value::Null, Value::Null) => Ok(true),
            (Value::Text(text), Value::Text(against)) => {
                self.meter.charge_text(text.len().min(against.len()))?;
                Ok(**text == **against)
            }
            (Value::Bytes(octets), Value::Bytes(against)) => {
                self.meter.charge_text(octets.len().min(against.len()))?;
                Ok(octets == against)
            }
            (Value::List(one), Value::List(other)) => self.equal_lists(one, other),
            (Value::Map(one), Value::Map(other)) => self.equal_maps(one, other),
            (Value::Optional(one), Value::Optional(other)) => match (one, other) {
                (Some(one), Some(other)) => self.equal(one, other),
                (one, other) => Ok(one.is_none() && other.is_none()),
            },
            (Value::Type(one), Value::Type(other)) => Ok(one == other),
            (Value::Quantity(one), Value::Quantity(other)) => Ok(one == other),
            (Value::Ip(one), Value::Ip(other)) => Ok(one == other),
            (Value::Cidr(one), Value::Cidr(other)) => Ok(one == other),
            (Value::Url(one), Value::Url(other)) => Ok(one == other),
            (Value::Semver(one), Value::Semver(other)) => Ok(one == other),
            (Value::Format(one), Value::Format(other)) => Ok(one.name == other.name),
            _ => Ok(one.compare(other).is_some_and(std::cmp::Ordering::is_eq)),
        }
    }

    fn equal_lists(&mut self, one: &List<'a>, other: &List<'a>) -> Result<bool, Error> {
        self.meter.charge(one.len().min(other.len()))?;
        if one.len() != other.len() {
            return Ok(false);
        }
        if *one.identity() != Identity::Place || *other.identity() != Identity::Place {
            return Ok(self.covers(one, other)? && self.covers(other, one)?);
        }
        for (item, against) in one.iter().zip(other.iter()) {
            if !self.equal(&item, &against)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn equal_maps(&mut self, one: &Map<'a>, other: &Map<'a>) -> Result<bool, Error> {
        self.meter.charge(one.len().min(other.len()))?;
        if one.len() != other.len() {
            return Ok(false);
        }
        for key in self.keys(one)? {
            let (Some(item), Some(against)) = (one.get(&key), other.get(&key)) else {
                return Ok(false);
            };
            if !self.equal(&item, &against)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all items of `other` are in `one`.
    fn covers(&mut self, one: &List<'a>, other: &List<'a>) -> Result<bool, Error> {
        let one = Value::List(one.clone());
        for item in other.iter() {
            if !self.contains(&one, &item)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The operator `in`.
    fn contains(&mut self, of: &Value<'a>, wanted: &Value<'a>) -> Result<bool, Error> {
        match of {
            Value::List(list) => {
                for item in list.iter() {
                    self.meter.charge(1)?;
                    if self.equal(&item, wanted)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Value::Map(map) => {
                let key = self.key(wanted)?;
                Ok(key.is_some_and(|key| map.get(&key).is_some()))
            }
            _ => Err(Error::new("no such overload")),
        }
    }

    fn place(&mut self, list: &List<'a>, wanted: &Value<'a>, is_last: bool) -> Said<'a> {
        let mut found = None;
        for (index, item) in list.iter().enumerate() {
            self.meter.charge(1)?;
            if (is_last || found.is_none()) && self.equal(&item, wanted)? {
                found = i64::try_from(index).ok();
            }
        }
        Ok(Value::Int(found.unwrap_or(-1)))
    }

    /// Two lists in one. A set takes what it does not have; a list with keys has an item of the
    /// other in the place of its own with the same keys.
    fn concatenate(&mut self, one: &List<'a>, other: &List<'a>) -> Said<'a> {
        self.meter.charge(one.len() + other.len())?;
        let mut items: Vec<Value<'a>> = one.iter().collect();
        let identity = one.identity();
        for item in other.iter() {
            let mut place = None;
            for (index, known) in items.iter().enumerate().take(one.len()) {
                if *identity == Identity::Place {
                    break;
                }
                self.meter.charge(1)?;
                if self.is_same_item(identity, known, &item)? {
                    place = Some(index);
                }
            }
            match place.and_then(|place| items.get_mut(place)) {
                Some(known) => *known = item,
                None => items.push(item),
            }
        }
        Ok(Value::List(List::Made(Rc::new(items), identity)))
    }

    fn is_same_item(
        &mut self,
        identity: &Identity,
        one: &Value<'a>,
        other: &Value<'a>,
    ) -> Result<bool, Error> {
        match (identity, one, other) {
            (Identity::Keys(keys), Value::Map(one), Value::Map(other)) => {
                for key in keys {
                    let key = Key::Text(key.clone());
                    let same = match (one.get(&key), other.get(&key)) {
                        (Some(one), Some(other)) => self.equal(&one, &other)?,
                        (one, other) => one.is_none() && other.is_none(),
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => self.equal(one, other),
        }
    }

    fn list(&mut self, items: &'a [Item]) -> Said<'a> {
        self.meter.charge(cost::LIST)?;
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match (self.value(&item.value)?, item.is_optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(inner)), true) => values.push((*inner).clone()),
                (_, true) => return Err(Error::new("no such overload")),
                (value, false) => values.push(value),
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &'a [Entry]) -> Said<'a> {
        self.meter.charge(cost::MAP)?;
        let mut made = BTreeMap::new();
        for entry in entries {
            let key = self.value(&entry.key)?;
            let key = self.key(&key)?.ok_or_else(|| Error::new("unsupported key type"))?;
            let value = match (self.value(&entry.value)?, entry.is_optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(inner)), true) => (*inner).clone(),
                (_, true) => return Err(Error::new("no such overload")),
                (value, false) => value,
            };
            insert(&mut made, key, value)?;
        }
        Ok(Value::Map(Map::Made(Rc::new(made))))
    }

    fn optional_map(&mut self, map: &'a OptionalMap) -> Said<'a> {
        self.meter.charge(1)?;
        let inner = match self.value(&map.of)? {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (*inner).clone(),
            _ => return Err(Error::new("no such overload")),
        };
        self.scope.push((&map.name, inner));
        let result = self.value(&map.body);
        self.scope.pop();
        Ok(if map.is_flat { result? } else { Value::some(result?) })
    }

    fn fold(&mut self, fold: &'a Fold) -> Said<'a> {
        let over = self.value(&fold.over)?;
        let before = self.scope.len();
        let result = self.walk(fold, &over);
        self.scope.truncate(before);
        result
    }

    fn walk(&mut self, fold: &'a Fold, over: &Value<'a>) -> Said<'a> {
        let keys = match over {
            Value::Map(map) => self.keys(map)?,
            Value::List(_) => Vec::new(),
            _ => return Err(Error::new("no such overload")),
        };
        let count = over.size().max(keys.len());
        let mut gathered = Gathered::default();
        let before = self.scope.len();
        for index in 0..count {
            // The accumulator, its condition and its step.
            self.meter.charge(3)?;
            self.scope.truncate(before);
            let (key, item) = match (over, keys.get(index)) {
                (Value::Map(map), Some(key)) => (key.value(), map.get(key)),
                (Value::List(list), _) => {
                    (Value::Int(i64::try_from(index).unwrap_or(i64::MAX)), list.get(index))
                }
                _ => break,
            };
            let Some(item) = item else { continue };
            match fold.names.as_slice() {
                [one] if keys.is_empty() => self.scope.push((one, item.clone())),
                [one] => self.scope.push((one, key.clone())),
                [one, other] => {
                    self.scope.push((one, key.clone()));
                    self.scope.push((other, item.clone()));
                }
                _ => {}
            }
            if let Some(filter) = &fold.filter
                && !self.truth(filter)?
            {
                continue;
            }
            let one = if keys.is_empty() { item } else { key.clone() };
            if self.step(fold, key, one, &mut gathered)? {
                break;
            }
        }
        gathered.result(fold.how)
    }

    /// One round of a macro: whether its result is known.
    fn step(
        &mut self,
        fold: &'a Fold,
        key: Value<'a>,
        item: Value<'a>,
        gathered: &mut Gathered<'a>,
    ) -> Result<bool, Error> {
        match fold.how {
            How::All | How::Exists => match self.truth(&fold.body) {
                Ok(truth) => {
                    gathered.is_decided = truth == (fold.how == How::Exists);
                    return Ok(gathered.is_decided);
                }
                Err(Error::CostLimit) => return Err(Error::CostLimit),
                Err(error) => gathered.failed = gathered.failed.take().or(Some(error)),
            },
            How::ExistsOne => gathered.count += usize::from(self.truth(&fold.body)?),
            How::Filter => {
                if self.truth(&fold.body)? {
                    gathered.items.push(item);
                }
            }
            How::Map | How::TransformList => gathered.items.push(self.value(&fold.body)?),
            How::TransformMap => {
                let key = self.key(&key)?.ok_or_else(|| Error::new("unsupported key type"))?;
                let value = self.value(&fold.body)?;
                insert(&mut gathered.entries, key, value)?;
            }
            How::TransformMapEntry => {
                let Value::Map(made) = self.value(&fold.body)? else {
                    return Err(Error::new("no such overload"));
                };
                self.meter.charge(made.len())?;
                for key in self.keys(&made)? {
                    if let Some(value) = made.get(&key) {
                        insert(&mut gathered.entries, key, value)?;
                    }
                }
            }
        }
        Ok(false)
    }
}

/// What a macro has so far.
#[derive(Default)]
struct Gathered<'a> {
    is_decided: bool,
    count: usize,
    items: Vec<Value<'a>>,
    entries: BTreeMap<Key, Value<'a>>,
    failed: Option<Error>,
}

impl<'a> Gathered<'a> {
    fn result(self, how: How) -> Said<'a> {
        match how {
            How::All | How::Exists => {
                let is_exists = how == How::Exists;
                match self.failed {
                    Some(error) if !self.is_decided => Err(error),
                    _ => Ok(Value::Bool(self.is_decided == is_exists)),
                }
            }
            How::ExistsOne => Ok(Value::Bool(self.count == 1)),
            How::Map | How::Filter | How::TransformList => Ok(Value::list(self.items)),
            How::TransformMap | How::TransformMapEntry => {
                Ok(Value::Map(Map::Made(Rc::new(self.entries))))
            }
        }
    }
}

impl Literal {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::Double(number) => Value::Double(*number),
            Self::Text(text) => Value::Text(Text::Given(text)),
            Self::Bytes(octets) => Value::Bytes(octets.as_slice().into()),
        }
    }
}

/// A field of an object or a key of a map.
fn member<'a>(of: &Value<'a>, field: &FieldName) -> Result<Option<Value<'a>>, Error> {
    match of {
        Value::Map(map @ Map::Object(..)) => {
            Ok(map.get(&Key::Text(field.of_object().into_owned())))
        }
        Value::Map(map) => Ok(map.get(&Key::Text(field.text.clone()))),
        _ => Err(Error::new("no such overload")),
    }
}

fn insert<'a>(
    entries: &mut BTreeMap<Key, Value<'a>>,
    key: Key,
    value: Value<'a>,
) -> Result<(), Error> {
    let message = format!("insert failed: key {key} already exists");
    match entries.insert(key, value) {
        None => Ok(()),
        Some(_) => Err(Error::new(message)),
    }
}
