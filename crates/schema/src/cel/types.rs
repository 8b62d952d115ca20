//! Types of expressions and values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Known when it is evaluated.
    Dyn,
    /// The type of `null`.
    Null,
    /// `true` and `false`.
    Bool,
    /// Signed, 64 bits.
    Int,
    /// Unsigned, 64 bits.
    Uint,
    /// With a fraction.
    Double,
    /// Text.
    String,
    /// Octets.
    Bytes,
    /// A span of time.
    Duration,
    /// A point in time.
    Timestamp,
    /// A type as a value.
    Type,
    /// A list.
    List(Arc<ListType>),
    /// A map of keys to values.
    Map(Arc<(Self, Self)>),
    /// An object of a schema, with its fields.
    Object(Arc<ObjectType>),
    /// What may be absent.
    Optional(Arc<Self>),
    /// A type of the libraries, by its name.
    Opaque(&'static str),
    /// Any one type, the same wherever the letter stands in a signature.
    Any(char),
}

/// A list's type.
#[derive(Clone, Debug, PartialEq)]
pub struct ListType {
    /// The type of all items.
    pub item: Type,
    /// What tells items apart.
    pub identity: Identity,
}

/// What tells the items of a list apart (`x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Their place: `atomic`.
    #[default]
    Place,
    /// Themselves: `set`.
    Value,
    /// Some members: `map`.
    Keys(Vec<String>),
}

/// The fields of an object by the names that expressions use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    pub(super) fields: BTreeMap<String, FieldType>,
}

/// A field as it is named in JSON, and its type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FieldType {
    pub(super) name: String,
    pub(super) kind: Type,
}

impl Type {
    /// The type of the variable `authorizer`.
    pub const AUTHORIZER: Self = Self::Opaque("kubernetes.authorization.Authorizer");
    /// The type of the variable `authorizer.requestResource`.
    pub const RESOURCE_CHECK: Self = Self::Opaque("kubernetes.authorization.ResourceCheck");

    /// A list whose items have one type.
    pub fn list(item: Self) -> Self {
        Self::list_of(item, Identity::Place)
    }

    /// A list whose items are told apart in some way.
    pub fn list_of(item: Self, identity: Identity) -> Self {
        Self::List(Arc::new(ListType { item, identity }))
    }

    /// A map.
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// What may be absent.
    pub fn optional(inner: Self) -> Self {
        Self::Optional(Arc::new(inner))
    }

    /// An object with fields of these names in JSON. Names that no expression can write are left
    /// out.
    pub fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let named = fields.into_iter().filter_map(|(name, kind)| {
            Some((escape(name)?, FieldType { name: name.to_owned(), kind }))
        });
        Self::Object(Arc::new(ObjectType { fields: named.collect() }))
    }

    /// An object whose fields expressions name as they are called, which is so outside of schemas.
    pub fn record<'a>(fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let named = fields
            .into_iter()
            .map(|(name, kind)| (name.to_owned(), FieldType { name: name.to_owned(), kind }));
        Self::Object(Arc::new(ObjectType { fields: named.collect() }))
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether `null` may stand for a value of it.
    fn is_nullable(&self) -> bool {
        matches!(
            self,
            Self::Object(_)
                | Self::Duration
                | Self::Timestamp
                | Self::Optional(_)
                | Self::Opaque(_)
                | Self::Null
        )
    }

    /// Whether a value of `other` may stand where this type is wanted; letters get their types.
    pub(super) fn takes(&self, other: &Self, letters: &mut BTreeMap<char, Self>) -> bool {
        match (self, other) {
            (Self::Any(letter), _) => {
                let Some(known) = letters.get(letter).cloned() else {
                    letters.insert(*letter, other.clone());
                    return true;
                };
                if known.takes(other, letters) {
                    return true;
                }
                // The wider one of both stays.
                let fits = other.takes(&known, letters);
                if fits {
                    letters.insert(*letter, other.clone());
                }
                fits
            }
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::Null, other) | (other, Self::Null) => other.is_nullable(),
            (Self::List(one), Self::List(other)) => one.item.takes(&other.item, letters),
            (Self::Map(one), Self::Map(other)) => {
                one.0.takes(&other.0, letters) && one.1.takes(&other.1, letters)
            }
            (Self::Optional(one), Self::Optional(other)) => one.takes(other, letters),
            (one, other) => one == other,
        }
    }

    /// The type with its letters filled in; a letter without a type may be anything.
    pub(super) fn filled(&self, letters: &BTreeMap<char, Self>) -> Self {
        match self {
            Self::Any(letter) => letters.get(letter).cloned().unwrap_or(Self::Dyn),
            Self::List(list) => Self::list_of(list.item.filled(letters), list.identity.clone()),
            Self::Map(map) => Self::map(map.0.filled(letters), map.1.filled(letters)),
            Self::Optional(inner) => Self::optional(inner.filled(letters)),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("google.protobuf.Duration"),
            Self::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Self::Type => f.write_str("type"),
            Self::List(list) => write!(f, "list({})", list.item),
            Self::Map(map) => write!(f, "map({}, {})", map.0, map.1),
            Self::Object(_) => f.write_str("object"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Opaque(name) => f.write_str(name),
            Self::Any(letter) => write!(f, "{letter}"),
        }
    }
}

/// A property's name as expressions write it; `None` when they cannot.
pub(super) fn escape(name: &str) -> Option<String> {
    const WORDS: &[&str] = &[
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
    ];
    if WORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let is_letter = |one: char| one.is_ascii_alphabetic() || "_-./".contains(one);
    if !name.starts_with(is_letter)
        || !name.chars().all(|one| is_letter(one) || one.is_ascii_digit())
    {
        return None;
    }
    let escaped = name.replace("__", "__underscores__");
    Some(escaped.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_that_are_no_identifiers_are_escaped() {
        for (name, expected) in [
            ("replicas", Some("replicas")),
            ("namespace", Some("__namespace__")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("1a", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), expected, "{name}");
        }
    }
}
