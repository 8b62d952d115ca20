//! The table itself: messages and fields as `fields.txt` has them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

/// The table of the API that is served.
pub fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| {
        // Our own constant, which a test reads; nothing from outside reaches this.
        Table::parse(include_str!("fields.txt")).expect("fields.txt is a table")
    });
    &TABLE
}

/// All messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    messages: Vec<Message>,
    /// The place of the message of `v1/Pod`.
    kinds: BTreeMap<&'static str, usize>,
}

/// A message: an object with known fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Its name with its group and version: `core.v1.Pod`.
    pub name: &'static str,
    /// Whether it changes hands as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Whether it may have `apiVersion` and `kind` beside its fields.
    pub typed: bool,
    /// Its kind, as `apps/v1/Deployment`, where it is one.
    pub kind: Option<&'static str>,
    /// Whether it is JSON only: the table does not know its form in protobuf.
    pub json_only: bool,
    /// Whether fields that it does not name are kept (`x-kubernetes-preserve-unknown-fields`);
    /// each is a leaf then.
    pub open: bool,
    /// Its fields, in the order of their names.
    pub fields: Vec<Field>,
}

/// A field of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its number in protobuf.
    pub number: u32,
    /// The numbers of the messages that have it, the outer one first, where Go embeds some and JSON
    /// does not show them: a `Volume` has its sources so.
    pub embedded_in: Vec<u32>,
    /// What it holds.
    pub kind: Type,
    /// Whether the schema requires it. Go writes it even when it is empty.
    pub required: bool,
    /// Whether its zero value differs from absence (a pointer in Go).
    pub explicit: bool,
    /// Whether it is a message that is always there in Go.
    pub embedded: bool,
    /// How server-side apply merges its list or map.
    pub relation: Relation,
    /// The member by which a strategic merge patch merges the list; empty for a set of scalars.
    pub merge_key: Option<&'static str>,
    /// Whether a strategic merge patch replaces the object whole.
    pub replaced: bool,
    /// Whether a strategic merge patch says which members stay (`retainKeys`).
    pub retains_keys: bool,
    /// What an absent value means.
    pub default: Option<Value>,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Text.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Double,
    /// Bytes, base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a text or a number.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// An RFC 3339 time with seconds.
    Time,
    /// An RFC 3339 time with microseconds.
    MicroTime,
    /// Any JSON.
    Raw,
    /// A message, by its place in the table.
    Message(usize),
    /// A message of its own, which a definition brought.
    Own(Box<Message>),
    /// A list.
    List(Box<Type>),
    /// A map from texts.
    Map(Box<Type>),
}

/// How a list or map is merged (`x-kubernetes-list-type`, `x-kubernetes-map-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Relation {
    /// Maps by their keys. Lists without a type are atomic.
    #[default]
    Granular,
    /// As a whole.
    Atomic,
    /// A list of scalars without order.
    Set,
    /// A list of messages that these members tell apart.
    Keys(Vec<&'static str>),
}

impl Table {
    /// The message of a kind: `kind("apps/v1", "Deployment")`.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<&Message> {
        let place = self.kinds.get(format!("{api_version}/{kind}").as_str())?;
        self.messages.get(*place)
    }

    /// As [`Table::kind`], of kinds that have a form in protobuf.
    pub(crate) fn protobuf_kind(&self, api_version: &str, kind: &str) -> Option<&Message> {
        self.kind(api_version, kind).filter(|message| !message.json_only)
    }

    /// The message of a type; `None` for types that are none.
    pub fn message<'a>(&'a self, kind: &'a Type) -> Option<&'a Message> {
        match kind {
            Type::Message(place) => self.messages.get(*place),
            Type::Own(message) => Some(message),
            _ => None,
        }
    }

    /// The message of a name: `core.v1.Pod`.
    pub fn named(&self, name: &str) -> Option<&Message> {
        let place = self.messages.binary_search_by(|message| message.name.cmp(name)).ok()?;
        self.messages.get(place)
    }

    /// All messages, in the order of their names.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// All kinds, as `apps/v1/Deployment`.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.kinds.keys().copied()
    }

    /// Reads the text form. Messages stand in the order of their names.
    fn parse(text: &'static str) -> Option<Self> {
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        let names: Vec<&'static str> =
            lines().filter(|line| !line.starts_with(' ')).map(first_word).collect();
        let mut table = Self::default();
        for line in lines() {
            if line.starts_with(' ') {
                table.messages.last_mut()?.fields.push(Field::parse(line, &names)?);
                continue;
            }
            let mut words = line.split(' ');
            let mut message = Message { name: words.next()?, ..Message::default() };
            for word in words {
                match word.split_once('=') {
                    None if word == "atomic" => message.atomic = true,
                    None if word == "typed" => message.typed = true,
                    None if word == "json" => message.json_only = true,
                    Some(("kind", kind)) => {
                        message.kind = Some(kind);
                        table.kinds.insert(kind, table.messages.len());
                    }
                    _ => return None,
                }
            }
            table.messages.push(message);
        }
        table.messages.is_sorted_by_key(|message| message.name).then_some(table)
    }
}

impl Message {
    /// The field of a name in JSON.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let place = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        self.fields.get(place)
    }

    /// The name without group and version, as Go has it: `Pod`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl Field {
    fn parse(line: &'static str, messages: &[&str]) -> Option<Self> {
        let mut words = line.trim_start().split(' ');
        let name = words.next()?;
        let number = words.next()?;
        let mut path: Vec<u32> =
            number.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let number = path.pop()?;
        let mut field = Self {
            name,
            number,
            embedded_in: path,
            kind: Type::parse(words.next()?, messages)?,
            required: false,
            explicit: false,
            embedded: false,
            relation: Relation::Granular,
            merge_key: None,
            replaced: false,
            retains_keys: false,
            default: None,
        };
        for word in words {
            match word.split_once('=') {
                None => match word {
                    "required" => field.required = true,
                    "explicit" => field.explicit = true,
                    "embedded" => field.embedded = true,
                    "atomic" => field.relation = Relation::Atomic,
                    "set" => field.relation = Relation::Set,
                    "merge" => field.merge_key = Some(""),
                    "replace" => field.replaced = true,
                    "retainKeys" => field.retains_keys = true,
                    _ => return None,
                },
                Some(("map", keys)) => field.relation = Relation::Keys(keys.split(',').collect()),
                Some(("merge", key)) => field.merge_key = Some(key),
                Some(("default", json)) => field.default = Some(serde_json::from_str(json).ok()?),
                Some(_) => return None,
            }
        }
        // A list without a type is atomic; a map is merged by its keys.
        if field.relation == Relation::Granular && matches!(field.kind, Type::List(_)) {
            field.relation = Relation::Atomic;
        }
        Some(field)
    }
}

impl Type {
    fn parse(text: &str, messages: &[&str]) -> Option<Self> {
        let inner = |open, close| text.strip_prefix(open)?.strip_suffix(close);
        if let Some(item) = inner('[', ']') {
            return Self::parse(item, messages).map(|item| Self::List(Box::new(item)));
        }
        if let Some(item) = inner('{', '}') {
            return Self::parse(item, messages).map(|item| Self::Map(Box::new(item)));
        }
        Some(match text {
            "string" => Self::Text,
            "bool" => Self::Bool,
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "double" => Self::Double,
            "bytes" => Self::Bytes,
            "quantity" => Self::Quantity,
            "intOrString" => Self::IntOrString,
            "time" => Self::Time,
            "microTime" => Self::MicroTime,
            "raw" => Self::Raw,
            name => Self::Message(messages.binary_search(&name).ok()?),
        })
    }
}

fn first_word(line: &'static str) -> &'static str {
    line.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the list of facts demands: rows as the published definitions have them.
    #[test]
    fn rows_say_what_the_published_definitions_say() {
        let table = table();
        let field = |message: &str, name: &str| {
            table.named(message).and_then(|one| one.field(name)).expect("a field").clone()
        };
        let ports = field("core.v1.ServiceSpec", "ports");
        assert_eq!((ports.number, ports.merge_key), (1, Some("port")));
        assert_eq!(ports.relation, Relation::Keys(vec!["port", "protocol"]));
        let protocol = field("core.v1.ServicePort", "protocol");
        assert_eq!(protocol.default, Some("TCP".into()));
        assert_eq!(field("core.v1.ServiceSpec", "selector").relation, Relation::Atomic);
        assert_eq!(field("meta.v1.ObjectMeta", "finalizers").relation, Relation::Set);
        assert_eq!(field("meta.v1.ObjectMeta", "finalizers").merge_key, Some(""));
        assert_eq!(field("meta.v1.ObjectMeta", "labels").relation, Relation::Granular);
        let source = field("core.v1.Volume", "configMap");
        assert_eq!((source.embedded_in, source.number), (vec![2], 19));
        assert!(field("apps.v1.DeploymentSpec", "replicas").explicit);
        assert!(!field("apps.v1.DeploymentSpec", "minReadySeconds").explicit);
        assert!(field("apps.v1.DeploymentSpec", "strategy").embedded);
        assert!(!field("apps.v1.DeploymentStrategy", "rollingUpdate").embedded);
        assert!(table.named("meta.v1.LabelSelector").expect("a message").atomic);
        assert!(field("policy.v1.PodDisruptionBudgetSpec", "selector").replaced);
        assert!(field("core.v1.PodSpec", "volumes").retains_keys);
    }

    #[test]
    fn kinds_are_found_by_version_and_name() {
        let deployment = table().kind("apps/v1", "Deployment").expect("a kind");
        assert_eq!((deployment.name, deployment.go_name()), ("apps.v1.Deployment", "Deployment"));
        assert_eq!(table().kind("apps/v1beta1", "Deployment"), None);
        assert_eq!(table().kinds().count(), 54);
    }

    #[test]
    fn numbers_are_distinct_within_a_message() {
        for message in &table().messages {
            let mut numbers: Vec<_> =
                message.fields.iter().map(|field| (&field.embedded_in, field.number)).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), message.fields.len(), "{}", message.name);
            assert!(message.fields.is_sorted_by_key(|field| field.name), "{}", message.name);
        }
    }

    #[test]
    fn lists_are_merged_by_members_that_their_items_have() {
        let table = table();
        for message in &table.messages {
            for field in &message.fields {
                let Relation::Keys(keys) = &field.relation else { continue };
                let Type::List(item) = &field.kind else { panic!("{}: no list", field.name) };
                let item = table.message(item).expect("a list of messages");
                let key = field.merge_key.into_iter().filter(|key| !key.is_empty());
                for key in keys.iter().copied().chain(key) {
                    assert!(item.field(key).is_some(), "{} {} {key}", message.name, field.name);
                }
            }
        }
    }
}
