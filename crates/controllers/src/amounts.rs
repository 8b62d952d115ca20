//! Amounts of resources by name: what nodes have and pods ask for.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use model::Quantity;

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads amounts that clients write as numbers or as text. What is no quantity, which validation
/// keeps out, is left out.
pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amounts, D::Error> {
    let values = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
    let quantity = |(name, value): (String, Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((name, Quantity::parse(&text)?))
    };
    Ok(values.into_iter().filter_map(quantity).collect())
}

/// Adds `more` to `total`.
pub(crate) fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = *sum + *amount;
    }
}

/// Takes `less` from `total`.
pub(crate) fn subtract(total: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        let rest = total.entry(name.clone()).or_default();
        *rest = *rest - *amount;
    }
}

/// Raises each of `total` to what `other` has.
pub(crate) fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_texts_are_read_and_summed() {
        let read = |value: Value| read(value).expect("amounts");
        let mut total = read(json!({"cpu": "1500m", "pods": 3, "odd": {}, "half": 0.5}));
        assert_eq!(total.keys().collect::<Vec<_>>(), ["cpu", "half", "pods"]);
        let more = read(json!({"cpu": 1, "memory": "1Gi"}));
        add(&mut total, &more);
        assert_eq!(total["cpu"].to_string(), "2500m");
        subtract(&mut total, &more);
        raise(&mut total, &read(json!({"memory": "1Mi", "pods": "2"})));
        assert_eq!(
            (total["memory"].to_string(), total["pods"].to_string()),
            ("1Mi".into(), "3".into())
        );
        assert!(read(Value::Null).is_empty());
    }
}
