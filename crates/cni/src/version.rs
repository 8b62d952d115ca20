//! Versions of the specification.

use serde_json::{Value, json};

use crate::fault::{DECODING_FAILURE, Fault, INCOMPATIBLE_VERSION, INVALID_CONFIG};

/// All that this plugin speaks, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";
/// What a configuration without a version means.
const UNSTATED: &str = "0.1.0";

/// The answer to VERSION: the version that was asked with, and all that we speak.
///
/// # Errors
/// When the input is not JSON.
pub fn answer(input: &str) -> Result<Value, Fault> {
    let asked = if input.trim().is_empty() {
        NEWEST.to_owned()
    } else {
        let value: Value = serde_json::from_str(input).map_err(|error| {
            Fault::new(DECODING_FAILURE, "the version query is not JSON", error)
        })?;
        value.get("cniVersion").and_then(Value::as_str).unwrap_or(NEWEST).to_owned()
    };
    Ok(json!({ "cniVersion": asked, "supportedVersions": SUPPORTED }))
}

/// The version of a configuration.
///
/// # Errors
/// When it is none that we speak.
pub fn of_config(config: &Value) -> Result<String, Fault> {
    let version = match config.get("cniVersion") {
        None | Some(Value::Null) => UNSTATED,
        Some(Value::String(version)) if version.is_empty() => UNSTATED,
        Some(Value::String(version)) => version,
        Some(other) => {
            return Err(Fault::new(
                INVALID_CONFIG,
                "cniVersion must be a text",
                format!("it is {other}"),
            ));
        }
    };
    if SUPPORTED.contains(&version) {
        return Ok(version.to_owned());
    }
    let supported = SUPPORTED.join(", ");
    Err(Fault::new(
        INCOMPATIBLE_VERSION,
        "incompatible CNI versions",
        format!("the configuration has {version:?}; this plugin speaks {supported}"),
    ))
}

/// Whether a supported version is at least another, by its place in [`SUPPORTED`].
pub fn at_least(version: &str, other: &str) -> bool {
    let place = |wanted: &str| SUPPORTED.iter().position(|version| *version == wanted);
    place(version) >= place(other)
}
