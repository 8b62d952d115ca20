//! [`Fault`]: a refusal with the codes of the specification.

use std::fmt;

use serde_json::{Value, json};

/// The configuration's version is none of ours.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// A key of the configuration asks for what this plugin does not do.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is gone: nothing needs cleaning up.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// A variable of the environment is missing or wrong.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// The configuration could not be read.
pub const IO_FAILURE: u32 = 5;
/// The configuration is not JSON.
pub const DECODING_FAILURE: u32 = 6;
/// The configuration contradicts itself or the specification.
pub const INVALID_CONFIG: u32 = 7;
/// Something is missing that will be there in a moment.
pub const TRY_AGAIN: u32 = 11;
/// The plugin cannot serve an ADD at the moment.
pub const UNAVAILABLE: u32 = 50;
/// The same, and pods that run are hurt too.
pub const LIMITED_CONNECTIVITY: u32 = 51;
/// Ours: the kernel refused an operation on a link, address or route.
pub const KERNEL_REFUSED: u32 = 100;
/// Ours: the interface is in the namespace already.
pub const INTERFACE_EXISTS: u32 = 101;
/// Ours: no address is free.
pub const NO_ADDRESS: u32 = 102;
/// Ours: the directory of addresses cannot be read or written.
pub const ADDRESS_STORE: u32 = 103;
/// Ours: CHECK found something else than ADD left.
pub const CHECK_FAILED: u32 = 104;
/// Ours: the directory of records cannot be read or written, or others could write it.
pub const STATE_STORE: u32 = 105;
/// Ours: the kernel refused rules at the pod's edge.
pub const EDGE_REFUSED: u32 = 106;
/// Ours: a delegate could not be run, or gave no answer that can be understood.
pub const DELEGATE_FAILED: u32 = 107;

/// A refusal: code, message, and the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The specification's code; 100 and above are ours.
    pub code: u32,
    /// What failed.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

impl Fault {
    /// A refusal.
    pub fn new(code: u32, message: impl Into<String>, details: impl fmt::Display) -> Self {
        Self { code, message: message.into(), details: details.to_string() }
    }

    /// One refusal for all: the first, which also tells the others. Nothing when there is none.
    ///
    /// # Errors
    /// When there is any.
    pub fn all(faults: Vec<Self>) -> Result<(), Self> {
        let mut faults = faults.into_iter();
        let Some(mut first) = faults.next() else { return Ok(()) };
        for fault in faults {
            first.details = format!("{}; also {fault}", first.details);
        }
        Err(first)
    }

    /// The document for standard output, in the caller's version.
    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (code {})", self.message, self.details, self.code)
    }
}

impl std::error::Error for Fault {}

impl From<render::OpError> for Fault {
    fn from(error: render::OpError) -> Self {
        Self::new(EDGE_REFUSED, "the rules at the pod's edge were not changed", error)
    }
}

impl From<netlink::Error> for Fault {
    fn from(error: netlink::Error) -> Self {
        Self::new(KERNEL_REFUSED, "the kernel refused an operation", error)
    }
}

impl From<ipam::Error> for Fault {
    fn from(error: ipam::Error) -> Self {
        match error {
            ipam::Error::Exhausted(_) => Self::new(
                NO_ADDRESS,
                error.to_string(),
                "remove pods, or give the node a larger range",
            ),
            ipam::Error::NotAllowed(_)
            | ipam::Error::Withheld(_)
            | ipam::Error::Taken(_)
            | ipam::Error::Unused(_) => {
                Self::new(NO_ADDRESS, error.to_string(), "request another address, or none")
            }
            ipam::Error::Duplicate { .. } => Self::new(
                NO_ADDRESS,
                error.to_string(),
                "the container runtime must call DEL before another ADD",
            ),
            ipam::Error::Name(_) => {
                Self::new(INVALID_CONFIG, error.to_string(), "rename the network")
            }
            ipam::Error::File { .. } => Self::new(
                ADDRESS_STORE,
                error.to_string(),
                "check the space and the permissions of the directory",
            ),
        }
    }
}
