//! This program as the IPAM plugin of another one: `ipam.type` is ours, `type` is not. It answers
//! what host-local answers.

use model::layout;
use serde_json::Value;

use crate::addresses::{self, Invocation};
use crate::command::{lacking, require_version};
use crate::fault::{Fault, UNAVAILABLE};
use crate::gc;
use crate::request::Command;

/// Whether a configuration means this program only as its IPAM plugin.
pub(crate) fn is_meant(config: &Value) -> bool {
    let kind = config.get("type").and_then(Value::as_str).unwrap_or(layout::CNI_PLUGIN);
    let ipam = config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    kind != layout::CNI_PLUGIN && ipam == Some(layout::CNI_PLUGIN)
}

/// Carries out a command and answers its document; empty where it has none.
pub(crate) fn run(call: &Invocation<'_>) -> Result<String, Fault> {
    let config = call.config;
    match call.request.command {
        Command::Add => {
            let given = addresses::give(call)?;
            return Ok(addresses::as_result(given).to_json(&config.version).to_string());
        }
        Command::Del => addresses::take_back(call)?,
        Command::Check => {
            require_version(config, "0.4.0", "CHECK")?;
            let previous =
                config.previous.as_ref().ok_or_else(|| lacking("prevResult", "CHECK"))?;
            addresses::check(call, &previous.success.addresses)?;
        }
        Command::Status => {
            require_version(config, "1.1.0", "STATUS")?;
            addresses::status(call)
                .map_err(|fault| Fault::new(UNAVAILABLE, fault.message, fault.details))?;
        }
        Command::Gc => {
            require_version(config, "1.1.0", "GC")?;
            addresses::collect(call, &gc::living(config))?;
        }
        Command::Version => {}
    }
    Ok(String::new())
}
