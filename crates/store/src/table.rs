//! Tables: what `kubectl get` prints, for lists, single objects and watch events.

use std::fmt::Write as _;

use model::Timestamp;
use serde_json::{Value, json};

use crate::definitions::Path;
use crate::{Object, Resource, json as tree};

/// One column of a Table.
pub struct Column {
    /// The heading; kubectl prints it in capitals.
    pub name: &'static str,
    /// The type that the definition names.
    pub kind: &'static str,
    /// The format that the definition names: `name` for the object's name.
    pub format: &'static str,
    /// 0 for columns that are always shown, 1 for those of `-o wide`.
    pub priority: u8,
    /// What it shows; empty where the name says it.
    pub description: &'static str,
    pub(crate) cell: Cell,
}

/// Where the cells of a column come from.
pub(crate) enum Cell {
    /// A function of the object.
    Of(fn(&Value, Timestamp) -> Value),
    /// A path that a definition names.
    Path(&'static Path),
}

impl Column {
    /// A text column.
    pub(crate) const fn text(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self::of(name, cell)
    }

    /// A column of numbers.
    pub(crate) const fn integer(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self { kind: "integer", ..Self::of(name, cell) }
    }

    /// A column of yes and no; of some kinds the API server prints `True` and `False`.
    pub(crate) const fn boolean(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self { kind: "boolean", ..Self::of(name, cell) }
    }

    /// The same column, shown with `-o wide` only.
    pub(crate) const fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }

    const fn of(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        let cell = Cell::Of(cell);
        Self { name, kind: "string", format: "", priority: 0, description: "", cell }
    }

    /// The first column of every kind.
    pub(crate) const NAME: Self = Self {
        format: "name",
        ..Self::of("Name", |value, _| tree::text(value, "/metadata/name").into())
    };

    /// The same for kinds that say more there than the name.
    pub(crate) const fn titled(cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self { format: "name", ..Self::of("Name", cell) }
    }

    /// The age since creation.
    pub(crate) const AGE: Self =
        Self::text("Age", |value, now| age(value, "/metadata/creationTimestamp", now).into());
}

/// What a row carries beside its cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The metadata: the default, from which kubectl takes labels and namespaces.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Reads the query parameter; empty is the default.
    pub fn from_query(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The Table of some objects. `metadata` is the list's, or empty for a single object; the column
/// definitions may be left out after the first event of a watch.
pub fn table<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Object>,
    metadata: Value,
    now: Timestamp,
    include: Include,
    with_columns: bool,
) -> Value {
    let columns: Vec<Value> = resource.columns.iter().map(definition).collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells: Vec<Value> =
                resource.columns.iter().map(|column| column.cell_of(&object.value, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::None => {}
                Include::Metadata => tree::set(&mut row, "/object", object.to_row_metadata()),
                Include::Object => tree::set(&mut row, "/object", object.to_value()),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if with_columns { columns } else { Vec::new() },
        "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": if column.description.is_empty() { column.name } else { column.description },
        "priority": column.priority,
    })
}

impl Column {
    fn cell_of(&self, value: &Value, now: Timestamp) -> Value {
        let path = match &self.cell {
            Cell::Of(cell) => return cell(value, now),
            Cell::Path(path) => path,
        };
        // As the real server's `cellForJSONValue`: what is of another type is left out.
        match (self.kind, path.first(value)) {
            (_, None | Some(Value::Null)) => Value::Null,
            ("string", Some(Value::String(text))) => text.as_str().into(),
            ("string", Some(other)) => other.to_string().into(),
            ("integer", Some(number @ Value::Number(_))) => {
                number.as_f64().map_or(Value::Null, |whole| match number.as_i64() {
                    Some(exact) => exact.into(),
                    None => whole.trunc().into(),
                })
            }
            ("number", Some(number @ Value::Number(_))) => number.clone(),
            ("boolean", Some(flag @ Value::Bool(_))) => flag.clone(),
            ("date", Some(Value::String(text))) => match Timestamp::parse(text) {
                Some(then) => human_duration(now.seconds().saturating_sub(then.seconds())).into(),
                None => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

/// The time since a stored time as kubectl shows it; `<unknown>` when there is none.
pub(crate) fn age(value: &Value, pointer: &str, now: Timestamp) -> String {
    match Timestamp::parse(tree::text(value, pointer)) {
        Some(then) => human_duration(now.seconds().saturating_sub(then.seconds())),
        None => "<unknown>".to_owned(),
    }
}

/// A duration in the two coarsest units that matter at its size.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if seconds < 10 * MINUTE => two_units(seconds, MINUTE, "m", 1, "s"),
        _ if seconds < 3 * HOUR => format!("{}m", seconds / MINUTE),
        _ if seconds < 8 * HOUR => two_units(seconds, HOUR, "h", MINUTE, "m"),
        _ if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        _ if seconds < 8 * DAY => two_units(seconds, DAY, "d", HOUR, "h"),
        _ if seconds < 2 * YEAR => format!("{}d", seconds / DAY),
        _ if seconds < 8 * YEAR => two_units(seconds, YEAR, "y", DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

fn two_units(seconds: i64, large: i64, large_name: &str, small: i64, small_name: &str) -> String {
    let mut text = format!("{}{large_name}", seconds / large);
    let rest = seconds % large / small;
    if rest != 0 {
        // Writing to a String cannot fail.
        let _ = write!(text, "{rest}{small_name}");
    }
    text
}

/// Text, or `<none>` for the empty one.
pub(crate) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// At most three items, then how many more there are.
pub(crate) fn shorten(items: &[String], empty: &str) -> String {
    const SHOWN: usize = 3;
    match items.len() {
        0 => empty.to_owned(),
        count if count > SHOWN => {
            let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
            format!("{shown} + {} more...", count - SHOWN)
        }
        _ => items.join(","),
    }
}

/// A map of labels as `a=b,c=d`.
pub(crate) fn labels_text(labels: Option<&Value>) -> String {
    let map = labels.and_then(Value::as_object);
    let pairs: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        const H: i64 = 3600;
        const D: i64 = 24 * H;
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (196, "3m16s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * H - 1, "179m"),
            (3 * H, "3h"),
            (3 * H + 60, "3h1m"),
            (8 * H, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (5 * D + 3 * H, "5d3h"),
            (8 * D, "8d"),
            (729 * D, "729d"),
            (2 * 365 * D, "2y"),
            (2 * 365 * D + 3 * D, "2y3d"),
            (9 * 365 * D, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
