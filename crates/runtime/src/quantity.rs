//! Quantities of the API: `500m`, `64Mi`, `1e3`.

use serde_json::Value;

/// A quantity in thousandths. `None` when it is none.
pub fn milli(value: &Value) -> Option<i64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let suffixes: [(&str, f64); 14] = [
        ("Ki", 1024_f64),
        ("Mi", 1024_f64.powi(2)),
        ("Gi", 1024_f64.powi(3)),
        ("Ti", 1024_f64.powi(4)),
        ("Pi", 1024_f64.powi(5)),
        ("Ei", 1024_f64.powi(6)),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let suffix = suffixes.iter().find_map(|(suffix, factor)| {
        text.strip_suffix(suffix).map(|number| (number.to_owned(), *factor))
    });
    let (number, factor) = suffix.unwrap_or((text, 1.0));
    let number: f64 = number.parse().ok()?;
    // The API rounds what is finer than a thousandth up.
    Some((number * factor * 1000.0).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_every_form_are_read() {
        let cases = [
            ("64Mi", Some(64 * 1024 * 1024 * 1000)),
            ("500m", Some(500)),
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("1e3", Some(1_000_000)),
            ("1k", Some(1_000_000)),
            ("much", None),
        ];
        for (text, expected) in cases {
            assert_eq!(milli(&Value::from(text)), expected, "{text}");
        }
        assert_eq!(milli(&Value::from(3)), Some(3000));
    }
}
