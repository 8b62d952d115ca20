//! One event of a watch, its text read once: the version of an object is noted as the object goes by
//! on its way into the caller's type.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::CowStrDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny,
    MapAccess, Visitor,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Status;

/// What a line of a watch says, with the version that it brings the watch to.
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>
#[derive(Debug)]
pub(crate) enum Told<T> {
    /// The object is there.
    Applied(T, String),
    /// The object is gone.
    Deleted(T, String),
    /// Nothing happened up to here.
    Bookmark(String),
    /// The server ends the watch.
    Error(Status),
}

/// Reads an event whose object is a struct or a map.
pub(crate) fn read<T: DeserializeOwned>(line: &[u8]) -> Result<Told<T>, serde_json::Error> {
    serde_json::from_slice(line)
}

/// The name of a member; seldom one that has to be copied.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Clone, Copy)]
enum Type {
    Applied,
    Deleted,
    Bookmark,
    Error,
}

impl Type {
    fn of(name: &str) -> Self {
        match name {
            "ERROR" => Self::Error,
            "BOOKMARK" => Self::Bookmark,
            "DELETED" => Self::Deleted,
            _ => Self::Applied,
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Told<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Envelope(PhantomData))
    }
}

struct Envelope<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for Envelope<T> {
    type Value = Told<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Told<T>, A::Error> {
        let mut kind = None;
        let mut told = None;
        let mut untyped = None;
        while let Some(Name(name)) = members.next_key()? {
            match (&*name, kind) {
                ("type", _) => {
                    let Name(name) = members.next_value()?;
                    kind = Some(Type::of(&name));
                }
                ("object", Some(kind)) => {
                    told = Some(members.next_value_seed(Subject(kind, PhantomData))?);
                }
                // Servers write the type first; that it may come last costs a second reading.
                ("object", None) => untyped = Some(members.next_value::<&RawValue>()?),
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
        match (told, untyped) {
            (Some(told), _) => Ok(told),
            (None, Some(text)) => {
                let mut text = serde_json::Deserializer::from_slice(text.get().as_bytes());
                Subject(kind, PhantomData).deserialize(&mut text).map_err(A::Error::custom)
            }
            (None, None) => Err(A::Error::missing_field("object")),
        }
    }
}

/// What an event is about.
struct Subject<T>(Type, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Subject<T> {
    type Value = Told<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Told<T>, D::Error> {
        Ok(match self.0 {
            Type::Error => Told::Error(Status::deserialize(deserializer)?),
            Type::Bookmark => Told::Bookmark(versioned::<IgnoredAny, D>(deserializer)?.1),
            Type::Applied => {
                let (object, version) = versioned(deserializer)?;
                Told::Applied(object, version)
            }
            Type::Deleted => {
                let (object, version) = versioned(deserializer)?;
                Told::Deleted(object, version)
            }
        })
    }
}

/// An object, and its version, which `T` need not keep.
fn versioned<'de, T, D>(deserializer: D) -> Result<(T, String), D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let mut version = None;
    let object =
        T::deserialize(Seen { inner: deserializer, part: Part::Object, version: &mut version });
    Ok((object?, version.ok_or_else(|| D::Error::missing_field("resourceVersion"))?))
}

/// The parts of an object that lead to its version.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
}

impl Part {
    /// The member to follow.
    const fn member(self) -> &'static str {
        match self {
            Self::Object => "metadata",
            Self::Metadata => "resourceVersion",
        }
    }
}

/// What reads a part, or gets or visits what is read of it; the version is noted on the way.
struct Seen<'a, I> {
    inner: I,
    part: Part,
    version: &'a mut Option<String>,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Seen<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let Self { inner, part, version } = self;
        inner.deserialize_map(Seen { inner: visitor, part, version })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    // Whatever is asked for, both parts are objects of JSON.
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Seen<'_, V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        let seen = Seen { inner: members, part: self.part, version: self.version };
        self.inner.visit_map(Members { seen, is_followed: false })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seen<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let Self { inner, part, version } = self;
        inner.deserialize(Seen { inner: deserializer, part, version })
    }
}

/// The members of a part.
struct Members<'a, A> {
    seen: Seen<'a, A>,
    /// Whether the value that comes next is the member to follow.
    is_followed: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(Name(name)) = self.seen.inner.next_key()? else { return Ok(None) };
        self.is_followed = name == self.seen.part.member();
        seed.deserialize(CowStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let Seen { inner, part, version } = &mut self.seen;
        match (self.is_followed, part) {
            (false, _) => inner.next_value_seed(seed),
            (true, Part::Object) => {
                inner.next_value_seed(Seen { inner: seed, part: Part::Metadata, version })
            }
            (true, Part::Metadata) => {
                let text: String = inner.next_value()?;
                **version = Some(text.clone());
                seed.deserialize(Value::String(text)).map_err(A::Error::custom)
            }
        }
    }

    fn size_hint(&self) -> Option<usize> {
        self.seen.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn line(kind: &str, object: &str) -> String {
        format!(r#"{{"type":"{kind}","object":{object}}}"#)
    }

    fn told<T: DeserializeOwned>(line: &str) -> Told<T> {
        read(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_type_of_an_event_decides_what_it_says() {
        let text = r#"{"kind":"Pod","metadata":{"name":"a","resourceVersion":"7"},"n":[1,null]}"#;
        let object: Value = serde_json::from_str(text).expect("an object");
        for kind in ["ADDED", "MODIFIED"] {
            match told::<Value>(&line(kind, text)) {
                Told::Applied(read, version) => {
                    assert_eq!((read, &*version), (object.clone(), "7"))
                }
                other => panic!("{other:?}"),
            }
        }
        match told::<Value>(&line("DELETED", text)) {
            Told::Deleted(read, version) => assert_eq!((read, &*version), (object, "7")),
            other => panic!("{other:?}"),
        }
        let bookmark = r#"{"kind":"Pod","metadata":{"resourceVersion":"9"}}"#;
        match told::<Narrow>(&line("BOOKMARK", bookmark)) {
            Told::Bookmark(version) => assert_eq!(version, "9"),
            other => panic!("{other:?}"),
        }
        // A status has no version.
        let status = r#"{"kind":"Status","metadata":{},"code":410,"message":"too old"}"#;
        match told::<Narrow>(&line("ERROR", status)) {
            Told::Error(status) => assert_eq!(status.message, "too old"),
            other => panic!("{other:?}"),
        }
    }

    #[derive(Debug, serde::Deserialize)]
    struct Narrow {
        spec: BTreeMap<String, u32>,
    }

    /// Types that do, in different ways, or do not, read the version themselves.
    #[test]
    fn the_version_is_found_whatever_the_type_reads() {
        #[derive(Debug, serde::Deserialize)]
        struct Whole {
            metadata: Metadata,
            #[serde(flatten)]
            rest: BTreeMap<String, Value>,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            resource_version: Option<String>,
        }
        #[derive(Debug, serde::Deserialize)]
        struct Wrapped(Option<Whole>);

        let text = r#"{"metadata":{"resourceVersion":"7","labels":{"resourceVersion":"1"}},
            "spec":{"a":1},"template":{"metadata":{"resourceVersion":"2"}}}"#;
        let event = line("ADDED", text);
        let spec = json!({"a": 1});
        match told(&event) {
            Told::Applied(Narrow { spec: read }, version) => {
                assert_eq!((json!(read), &*version), (spec.clone(), "7"));
            }
            other => panic!("{other:?}"),
        }
        match told(&event) {
            Told::Applied(Wrapped(Some(Whole { metadata, rest })), version) => {
                assert_eq!(metadata.resource_version.as_deref(), Some("7"));
                assert_eq!((&rest["spec"], &*version), (&spec, "7"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(told(&event), Told::Applied(IgnoredAny, version) if version == "7"));
    }

    #[test]
    fn members_come_in_any_order_and_writing() {
        for line in [
            r#"{"object":{"spec":{"a":1},"metadata":{"a":{},"resourceVersion":"7"}},"type":"ADDED"}"#,
            r#" {"other":[{}], "type" : "ADD\u0045D", "object" : {"spec":{"a":1},"m\u0065tadata":
                {"resourc\u0065Version":"\u0037"}}, "more":null} "#,
        ] {
            match told::<Narrow>(line) {
                Told::Applied(Narrow { spec }, version) => {
                    assert_eq!((spec.get("a"), &*version), (Some(&1), "7"), "{line}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_lacks_a_part_is_unreadable() {
        let object = r#"{"spec":{},"metadata":{"resourceVersion":"7"}}"#;
        for (text, why) in [
            (r#"{"type":"ADDED"}"#.to_owned(), "missing field `object`"),
            (format!(r#"{{"object":{object}}}"#), "missing field `type`"),
            (line("ADDED", r#"{"spec":{}}"#), "missing field `resourceVersion`"),
            (line("BOOKMARK", r#"{"metadata":{}}"#), "missing field `resourceVersion`"),
            (line("ADDED", r#"{"metadata":{"resourceVersion":"7"}}"#), "missing field `spec`"),
            (line("ADDED", r#"{"spec":{},"metadata":{"resourceVersion":7}}"#), "a string"),
            (line("ADDED", r#"{"spec":{},"metadata":null}"#), "null"),
            (line("ADDED", "[]"), "sequence"),
            (line("ADDED", object)[..30].to_owned(), "EOF"),
            (line("ADDED", object) + "}", "trailing"),
            (r#"["ADDED"]"#.to_owned(), "an event of a watch"),
        ] {
            let error = read::<Narrow>(text.as_bytes()).expect_err(&text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
