//! The keys inside of `runtimeConfig`, as runtimes write them.

use serde_json::{Map, Value};

/// Spells the keys below each capability as the conventions do, with a small first letter.
/// containerd writes them as its own fields are named, `HostPort` and `IngressRate`; the reference
/// plugins never notice, since Go reads keys whatever their case. A key that is there in both
/// spellings keeps the conventions'.
pub fn spell_as_conventions(config: &mut Value) {
    let capabilities = config.get_mut("runtimeConfig").and_then(Value::as_object_mut);
    for parameters in capabilities.into_iter().flat_map(Map::values_mut) {
        small_first_letters(parameters);
    }
}

fn small_first_letters(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(small_first_letters),
        Value::Object(fields) => {
            let mut respelled = Map::new();
            for (key, mut value) in std::mem::take(fields) {
                small_first_letters(&mut value);
                let mut letters = key.chars();
                let first = letters.next().map(|letter| letter.to_ascii_lowercase());
                let spelled: String = first.into_iter().chain(letters).collect();
                if spelled == key || !respelled.contains_key(&spelled) {
                    respelled.insert(spelled, value);
                }
            }
            *fields = respelled;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What containerd 1.6 sends for a pod with a host port and two bandwidth annotations.
    #[test]
    fn containerds_spelling_is_read() {
        let mut config = json!({
            "name": "net",
            "Untouched": { "Key": 1 },
            "runtimeConfig": {
                "portMappings": [
                    { "HostPort": 18081, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "" },
                ],
                "bandwidth": { "IngressRate": 8_000_000, "IngressBurst": 64, "ingressRate": 7 },
                "mac": "02:00:00:00:00:01",
            },
        });
        spell_as_conventions(&mut config);
        let expected = json!({
            "name": "net",
            "Untouched": { "Key": 1 },
            "runtimeConfig": {
                "portMappings": [
                    { "hostPort": 18081, "containerPort": 8080, "protocol": "tcp", "hostIP": "" },
                ],
                "bandwidth": { "ingressRate": 7, "ingressBurst": 64 },
                "mac": "02:00:00:00:00:01",
            },
        });
        assert_eq!(config, expected);
    }
}
