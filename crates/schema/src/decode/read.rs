//! Reading a text while it still shows what a tree cannot: which fields stand twice, and in which
//! order the faults come.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{Message, Table, Type, table};

/// Most faults that are told of one body, as in the real server.
pub const MAX_FAULTS: usize = 100;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    /// The tree; of fields that stand twice it has the last.
    pub value: Value,
    /// `unknown field "spec.portz"` and `duplicate field "spec.ports"`, in the order of the text.
    pub faults: Vec<String>,
}

/// Reads a tree from any format. Without a message, what stands twice is the only fault.
///
/// # Errors
/// Those of the format.
pub fn read<'de, D: Deserializer<'de>>(
    format: D,
    message: Option<&Message>,
) -> Result<Read, D::Error> {
    let faults = RefCell::new(Vec::new());
    let place = message.map_or(Place::Any, Place::Message);
    let path = Path { parent: None, step: Step::Root };
    let reader = Reader { table: table(), place, path: &path, faults: &faults };
    let value = reader.deserialize(format)?;
    Ok(Read { value, faults: faults.into_inner() })
}

/// What may stand at a place.
#[derive(Clone, Copy)]
enum Place<'a> {
    Message(&'a Message),
    Map(&'a Type),
    List(&'a Type),
    Any,
}

impl<'a> Place<'a> {
    fn of(table: &'a Table, kind: &'a Type) -> Self {
        match kind {
            Type::Map(item) => Self::Map(item),
            Type::List(item) => Self::List(item),
            kind => table.message(kind).map_or(Self::Any, Self::Message),
        }
    }
}

/// Where the reader is, from the leaf to the root: written out only when there is a fault.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Name(&'a str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        write!(f, "{parent}")?;
        match self.step {
            Step::Root => Ok(()),
            Step::Name(name) if parent.parent.is_none() => f.write_str(name),
            Step::Name(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    table: &'a Table,
    place: Place<'a>,
    path: &'a Path<'a>,
    faults: &'a RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    fn tell(&self, fault: &str, name: &str) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < MAX_FAULTS {
            let path = Path { parent: Some(self.path), step: Step::Name(name) }.to_string();
            faults.push(format!("{fault} field {path:?}"));
        }
    }

    /// What a member may be. Tells when there is no such member.
    fn member(&self, name: &str) -> Place<'a> {
        match self.place {
            Place::Message(message) => match message.field(name) {
                Some(field) => Place::of(self.table, &field.kind),
                None => {
                    if !message.open && !super::is_type_meta(message, name) {
                        self.tell("unknown", name);
                    }
                    Place::Any
                }
            },
            Place::Map(item) => Place::of(self.table, item),
            Place::List(_) | Place::Any => Place::Any,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let place = match self.place {
            Place::List(item) => Place::of(self.table, item),
            _ => Place::Any,
        };
        let mut items = Vec::new();
        loop {
            let path = Path { parent: Some(self.path), step: Step::Index(items.len()) };
            match access.next_element_seed(Reader { place, path: &path, ..self })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            if members.contains_key(&name) {
                self.tell("duplicate", &name);
            }
            let place = self.member(&name);
            let path = Path { parent: Some(self.path), step: Step::Name(&name) };
            let value = access.next_value_seed(Reader { place, path: &path, ..self })?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}
