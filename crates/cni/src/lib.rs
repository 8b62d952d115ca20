//! The CNI plugin `flatnet` (CNI specification 1.1.0): puts a pod on the node's network.
//!
//! ```text
//! environment ──▶ request ┐
//!                         ├─▶ command ─▶ addresses ─▶ records ─▶ kernel::edge ─▶ link ─▶ result
//! standard input ▶ config ┘     │        (or delegate)
//!                               ├─▶ chained    another plugin made the interface
//!                               └─▶ check, status, gc
//! ```
//!
//! It works alone from its configuration and its files: pods can be added and removed while no
//! agent runs. [`runtime_side`] is the other end: it runs lists of plugins as container runtimes do.

mod addresses;
pub mod agent;
mod chained;
mod check;
mod command;
pub mod config;
mod delegate;
mod exec;
pub mod fault;
mod gc;
mod ipam_plugin;
mod leased;
pub mod link;
pub mod records;
pub mod request;
pub mod result;
pub mod runtime_side;
mod status;
pub mod version;

use std::io::Read;

use addresses::Invocation;
use config::Config;
use fault::Fault;
use request::{Command, Request};

/// Bytes of configuration that are read at most; real ones have a few kilobytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What the plugin answers: one JSON document for standard output, and how it exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The document; empty for commands that have no result.
    pub text: String,
    /// Whether the process exits with 0.
    pub success: bool,
}

/// Carries out the request that an environment and a standard input make.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: impl Read) -> Answer {
    let mut version = version::NEWEST.to_owned();
    match carry_out(&variable, input, &mut version) {
        Ok(text) => Answer { text, success: true },
        Err(fault) => Answer { text: fault.to_json(&version).to_string(), success: false },
    }
}

/// Sets `version` as soon as the caller's is known, so that a fault can be told in it.
fn carry_out(
    variable: &impl Fn(&str) -> Option<String>,
    input: impl Read,
    version: &mut String,
) -> Result<String, Fault> {
    let request = Request::parse(variable)?;
    let text = read_config(input, &request)?;
    if request.command == Command::Version {
        return Ok(version::answer(&text)?.to_string());
    }
    let mut value: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Fault::new(fault::DECODING_FAILURE, "the configuration is not JSON", error)
    })?;
    config::spell_as_conventions(&mut value);
    let asked = version::of_config(&value)?;
    version.clone_from(&asked);
    let config = Config::parse(&value, asked)?;
    let call = Invocation { request: &request, config: &config, value: &value };
    if ipam_plugin::is_meant(&value) { ipam_plugin::run(&call) } else { command::run(&call) }
}

fn read_config(input: impl Read, request: &Request) -> Result<String, Fault> {
    let failure = |error: &dyn std::fmt::Display| {
        Fault::new(fault::IO_FAILURE, "cannot read the configuration from standard input", error)
    };
    let mut bytes = Vec::new();
    input.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failure(&error))?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(failure(&format!("it has more than {CONFIG_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Fault::new(fault::DECODING_FAILURE, "the configuration is not UTF-8", error)
    })?;
    if text.trim().is_empty() && request.command != Command::Version {
        return Err(failure(&"it is empty"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Answers a STATUS, which needs no environment, with this on standard input.
    fn answer(input: &[u8]) -> Value {
        let variable = |name: &str| (name == "CNI_COMMAND").then(|| "STATUS".to_owned());
        let answer = run(variable, input);
        assert!(!answer.success);
        serde_json::from_str(&answer.text).expect("an error document")
    }

    #[test]
    fn inputs_that_cannot_be_read_have_the_codes_of_the_specification() {
        let endless = vec![b' '; CONFIG_BYTES_MAX as usize + 1];
        let rows: [(&[u8], u32); 7] = [
            (b"", fault::IO_FAILURE),
            (b" \n", fault::IO_FAILURE),
            (&endless, fault::IO_FAILURE),
            (b"{", fault::DECODING_FAILURE),
            (b"\xff", fault::DECODING_FAILURE),
            (br#"{"cniVersion":"7.0.0","name":"net"}"#, fault::INCOMPATIBLE_VERSION),
            (br#"{"cniVersion":1,"name":"net"}"#, fault::INVALID_CONFIG),
        ];
        for (input, code) in rows {
            assert_eq!(
                answer(input)["code"],
                json!(code),
                "{:?}",
                input.get(..40.min(input.len()))
            );
        }
    }

    #[test]
    fn a_fault_is_told_in_the_callers_version_with_all_its_parts() {
        let input = br#"{"cniVersion":"1.0.0","name":"net","markMasqBit":5}"#;
        let expected = json!({
            "cniVersion": "1.0.0",
            "code": 2,
            "msg": "unsupported field markMasqBit: 5",
            "details": "packets are marked with bit 14: remove it",
        });
        assert_eq!(answer(input), expected);
    }
}
