//! Lists: options, one page, and all pages.

use serde::{Deserialize, Deserializer};

/// What of a collection to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// A label selector in the API's text form; empty selects all.
    pub label_selector: String,
    /// A field selector in the API's text form; empty selects all.
    pub field_selector: String,
    /// At most this many objects a page; 0 asks for all in one.
    pub limit: u32,
    /// The token of the page before.
    pub continue_token: String,
}

/// One page of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub struct List<T> {
    /// The revision, and where to go on.
    #[serde(default)]
    pub metadata: ListMetadata,
    /// The objects. Some servers write `null` for an empty list.
    #[serde(default = "Vec::new", deserialize_with = "null_as_empty")]
    pub items: Vec<T>,
}

/// `metadata` of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// A watch from here misses nothing and repeats nothing.
    pub resource_version: String,
    /// The token of the next page; empty on the last one.
    #[serde(rename = "continue")]
    pub continue_token: String,
}

fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}
