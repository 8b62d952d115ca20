//! Numbers that people give as such or as a percentage: `maxSurge`, `maxUnavailable`,
//! `minAvailable`.

use model::kinds::IntOrString;

/// A number, or a percentage of `total`; `default_percent` when absent. Text that is neither
/// counts as 0, which validation keeps out.
pub(crate) fn share(
    value: Option<&IntOrString>,
    default_percent: i32,
    total: i32,
    rounds_up: bool,
) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => {
            text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()).unwrap_or(0).max(0)
        }
        None => i64::from(default_percent),
    };
    let product = percent.saturating_mul(i64::from(total));
    let rounded = if rounds_up { product.saturating_add(99) / 100 } else { product / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surge_rounds_up_and_unavailability_down() {
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        for (total, up, down) in [(1, 1, 0), (2, 1, 0), (4, 1, 1), (10, 3, 2)] {
            assert_eq!(share(None, 25, total, true), up);
            assert_eq!(share(percent("25%").as_ref(), 0, total, false), down);
        }
        assert_eq!(share(Some(&IntOrString::Int(3)), 25, 1, true), 3);
        assert_eq!(share(percent("oops").as_ref(), 25, 10, true), 0);
    }
}
