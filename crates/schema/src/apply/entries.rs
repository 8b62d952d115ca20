//! `metadata.managedFields`: the managers as clients see and store them.

use std::collections::BTreeMap;

use model::Timestamp;
use serde_json::{Map, Value};

use super::{Manager, Managers, Operation, Owned, Set};

/// Most managers that came to their fields by other writes than applies; the oldest are put
/// together (KEP-555).
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager that the oldest are put together under.
const ANCIENT: &str = "ancient-changes";
/// The only form of a set of fields.
const FIELDS_TYPE: &str = "FieldsV1";

/// Reads `managedFields`. `None` when an entry is none: the real server then keeps what it has.
pub fn decode(entries: &Value) -> Option<Managers> {
    entries.as_array()?.iter().map(decode_entry).collect()
}

fn decode_entry(entry: &Value) -> Option<(Manager, Owned)> {
    let text = |name: &str| match entry.get(name) {
        None | Some(Value::Null) => Some(String::new()),
        Some(value) => value.as_str().map(str::to_owned),
    };
    if text("fieldsType")? != FIELDS_TYPE {
        return None;
    }
    let manager = Manager {
        operation: Operation::from_text(&text("operation")?)?,
        name: text("manager")?,
        api_version: text("apiVersion")?,
        subresource: text("subresource")?,
    };
    let time = match text("time")? {
        time if time.is_empty() => None,
        time => Some(Timestamp::parse(&time)?),
    };
    let fields = entry.get("fieldsV1").map_or(Some(Set::default()), Set::from_value)?;
    Some((manager, Owned { fields, time }))
}

/// Writes `managedFields` as JSON text, in the order of the real server: applies first, then by
/// time. Text, since the tree of it is many times as large, and almost nobody looks.
pub fn encode(managers: &Managers) -> String {
    let seconds = |owned: &Owned| owned.time.map_or(0, Timestamp::seconds);
    let mut entries: Vec<(&Manager, &Owned)> = managers.iter().collect();
    entries.sort_by_key(|(manager, owned)| (manager.operation, seconds(owned)));
    Value::Array(entries.into_iter().map(|(manager, owned)| entry(manager, owned)).collect())
        .to_string()
}

fn entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut set = |name: &str, value: Value| entry.insert(name.to_owned(), value);
    set("manager", manager.name.clone().into());
    set("operation", manager.operation.text().into());
    set("apiVersion", manager.api_version.clone().into());
    set("fieldsType", FIELDS_TYPE.into());
    set("fieldsV1", owned.fields.to_value());
    if let Some(time) = owned.time {
        set("time", time.to_string().into());
    }
    if !manager.subresource.is_empty() {
        set("subresource", manager.subresource.clone().into());
    }
    Value::Object(entry)
}

/// Puts the oldest managers of updates together until there are at most [`MAX_UPDATE_MANAGERS`].
pub fn limit(managers: &mut Managers) {
    let is_update = |manager: &&Manager| manager.operation == Operation::Update;
    let mut count = managers.keys().filter(is_update).count();
    if count <= MAX_UPDATE_MANAGERS {
        return;
    }
    let mut updates: Vec<(Option<Timestamp>, Manager)> = managers
        .iter()
        .filter(|(manager, _)| is_update(manager))
        .map(|(manager, owned)| (owned.time, manager.clone()))
        .collect();
    updates.sort();
    let mut first_of_version: BTreeMap<String, Manager> = BTreeMap::new();
    for (time, manager) in updates {
        if count <= MAX_UPDATE_MANAGERS {
            break;
        }
        let Some(first) = first_of_version.get(&manager.api_version) else {
            first_of_version.insert(manager.api_version.clone(), manager);
            continue;
        };
        let bucket = Manager {
            operation: Operation::Update,
            name: ANCIENT.to_owned(),
            api_version: manager.api_version.clone(),
            subresource: String::new(),
        };
        let earlier = managers.remove(first).map(|owned| owned.fields).unwrap_or_default();
        let later = managers.remove(&manager).map(|owned| owned.fields).unwrap_or_default();
        let owned = managers.entry(bucket.clone()).or_default();
        owned.fields = owned.fields.union(&earlier).union(&later);
        owned.time = time;
        first_of_version.insert(manager.api_version, bucket);
        count = managers.keys().filter(is_update).count();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn updated(name: &str, seconds: i64, field: &str) -> (Manager, Owned) {
        let manager = Manager {
            operation: Operation::Update,
            name: name.to_owned(),
            api_version: "v1".to_owned(),
            subresource: String::new(),
        };
        let fields = Set::from_value(&json!({field: {}})).expect("a set");
        (manager, Owned { fields, time: Some(Timestamp::from_seconds(seconds)) })
    }

    #[test]
    fn entries_read_back_and_stand_in_the_real_servers_order() {
        let entries = json!([
            {
                "manager": "z", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:data": {"f:a": {}}}, "time": "2026-11-21T00:00:02Z",
            },
            {
                "manager": "y", "operation": "Update", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {".": {}, "f:b": {}}},
                "time": "2026-11-21T00:00:01Z",
            },
            {
                "manager": "a", "operation": "Update", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:c": {}}},
                "subresource": "status", "time": "2026-11-21T00:00:03Z",
            },
        ]);
        let managers = decode(&entries).expect("entries");
        assert_eq!(managers.len(), 3);
        let text = encode(&managers);
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), entries);
    }

    #[test]
    fn what_is_no_entry_is_told_from_one() {
        let good = json!({
            "manager": "a", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {}},
        });
        assert!(decode(&json!([good])).is_some());
        for (member, value) in [
            ("operation", json!("Delete")),
            ("fieldsType", json!("FieldsV2")),
            ("fieldsV1", json!({"data": {}})),
            ("fieldsV1", json!({"f:data": 1})),
            ("time", json!("yesterday")),
            ("manager", json!(1)),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            assert_eq!(decode(&json!([bad])), None, "{bad}");
        }
        assert_eq!(decode(&json!({})), None);
    }

    /// Trap 13 of the API server's list.
    #[test]
    fn the_oldest_of_many_updates_are_put_together() {
        let mut managers: Managers =
            (0..10).map(|n| updated(&format!("m{n}"), n, &format!("f:x{n}"))).collect();
        let before = managers.clone();
        limit(&mut managers);
        assert_eq!(managers, before, "ten are not too many");
        managers.extend([updated("m10", 10, "f:x10"), updated("m11", 11, "f:x11")]);
        limit(&mut managers);
        assert_eq!(managers.len(), MAX_UPDATE_MANAGERS);
        let (bucket, _) = updated(ANCIENT, 0, "f:any");
        let ancient = managers.get(&bucket).expect("the oldest");
        assert_eq!(ancient.fields.paths(), [".x0", ".x1", ".x2"]);
        assert_eq!(ancient.time, Some(Timestamp::from_seconds(2)));
        managers.extend([updated("m12", 12, "f:x12")]);
        limit(&mut managers);
        assert_eq!(managers.get(&bucket).expect("the oldest").fields.paths().len(), 4);
    }
}
