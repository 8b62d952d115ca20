//! Another program as the IPAM plugin: called with our environment and our configuration, its
//! standard error is ours (CNI specification, section 4).

use std::path::PathBuf;

use serde_json::Value;

use crate::exec::Call;
use crate::fault::{DELEGATE_FAILED, Fault, INVALID_ENVIRONMENT};
use crate::result::Success;

/// Longest run, seconds: DHCP servers take their time.
const DELEGATE_TIMEOUT_S: u64 = 30;

/// A delegate, ready to be called.
pub(crate) struct Delegate<'a> {
    plugin: &'a str,
    path: &'a [PathBuf],
    config: &'a Value,
}

impl<'a> Delegate<'a> {
    /// A delegate of this name that gets this configuration.
    ///
    /// # Errors
    /// Code 4 without a path to look for it (CNI-13).
    pub(crate) fn new(
        plugin: &'a str,
        path: &'a [PathBuf],
        config: &'a Value,
    ) -> Result<Self, Fault> {
        if path.is_empty() {
            return Err(Fault::new(
                INVALID_ENVIRONMENT,
                "required variables are missing: CNI_PATH",
                format!("ipam.type {plugin:?} is looked for there"),
            ));
        }
        Ok(Self { plugin, path, config })
    }

    /// Asks for addresses. On a fault the delegate was told to release what it may have reserved
    /// (CNI-12).
    ///
    /// # Errors
    /// The delegate's.
    pub(crate) fn add(&self) -> Result<Success, Fault> {
        let answered = self.call("ADD").and_then(|answer| {
            Success::from_json(&answer).map_err(|problem| self.useless(&problem))
        });
        let answered = answered.and_then(|success| {
            if success.addresses.is_empty() {
                Err(self.useless("it has no address"))
            } else {
                Ok(success)
            }
        });
        answered.inspect_err(|_| {
            // The first fault is the one to tell; the runtime's DEL tries again.
            let _ = self.call("DEL");
        })
    }

    /// Calls the delegate with any other command.
    ///
    /// # Errors
    /// The delegate's.
    pub(crate) fn forward(&self, command: &str) -> Result<(), Fault> {
        self.call(command).map(drop)
    }

    fn call(&self, command: &str) -> Result<Value, Fault> {
        Call {
            plugin: self.plugin,
            path: self.path,
            environment: &[("CNI_COMMAND", command.into())],
            inherits: true,
            input: self.config,
            words_pass: true,
            timeout_s: DELEGATE_TIMEOUT_S,
        }
        .run()
    }

    fn useless(&self, problem: &str) -> Fault {
        let message = format!("the answer of the IPAM plugin {} cannot be used", self.plugin);
        Fault::new(DELEGATE_FAILED, message, problem)
    }
}
