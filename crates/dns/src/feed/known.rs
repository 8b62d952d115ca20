//! Reads what an agent may be too new for: of kinds that nobody here knows, nothing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Change, Frame};

/// A value whose kind stands before it, as in `{"Pod": {…}}`.
pub(super) trait Kinds: for<'de> Deserialize<'de> {
    /// All kinds.
    const KINDS: &'static [&'static str];
}

impl Kinds for Change {
    const KINDS: &'static [&'static str] = &["Service", "Pod", "Client"];
}

impl Kinds for Frame {
    const KINDS: &'static [&'static str] = &["Begin", "Part", "End", "Delta"];
}

/// One value; `None` where its kind is not known.
pub(super) struct Known<T>(pub(super) Option<T>);

/// Reads the changes of known kinds.
pub(super) fn changes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Change>, D::Error> {
    let all = Vec::<Known<Change>>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|Known(change)| change).collect())
}

impl<'de, T: Kinds> Deserialize<'de> for Known<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Reader(PhantomData))
    }
}

struct Reader<T>(PhantomData<T>);

impl<'de, T: Kinds> Visitor<'de> for Reader<T> {
    type Value = Known<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a kind with its value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Known<T>, A::Error> {
        let Some(kind) = map.next_key::<String>()? else { return Ok(Known(None)) };
        if !T::KINDS.contains(&kind.as_str()) {
            map.next_value::<IgnoredAny>()?;
            return Ok(Known(None));
        }
        let again = Again { kind: Some(kind), map };
        T::deserialize(MapAccessDeserializer::new(again)).map(|value| Known(Some(value)))
    }
}

/// A map whose first key was read, from its beginning.
struct Again<A> {
    kind: Option<String>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Again<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        match self.kind.take() {
            Some(kind) => seed.deserialize(kind.into_deserializer()).map(Some),
            None => self.map.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}
