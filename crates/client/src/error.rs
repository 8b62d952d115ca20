//! What can go wrong between us and an API server.

use serde::{Deserialize, Serialize};

/// Why a request did not give what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a `Status`: the request arrived and was refused.
    #[error("{}", .0.message)]
    Api(Box<Status>),
    /// The request or its answer was lost on the way. Whether a write took place is unknown.
    #[error("cannot reach the API server at {target}: {problem}; {hint}")]
    Transport {
        /// Where we wanted to go.
        target: String,
        /// What happened.
        problem: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The answer is not what was asked for.
    #[error("the answer to {what} cannot be read: {problem}")]
    Decode {
        /// The request.
        what: String,
        /// The parser's words, or the limit that was crossed.
        problem: String,
    },
    /// The kubeconfig, a certificate or a key is unusable.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl ClientError {
    /// The server's `Status`, when it answered with one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.is_reason("NotFound", 404)
    }

    /// Whether an object of that name exists already.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// Whether the object changed since it was read: read it again and retry.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.reason == "Conflict")
    }

    /// Whether the version or continue token is too old: list again.
    pub fn is_expired(&self) -> bool {
        self.is_reason("Expired", 410) || self.is_reason("Gone", 410)
    }

    /// Whether the server was not reached, or the answer was lost.
    pub fn is_transport(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }

    fn is_reason(&self, reason: &str, code: u16) -> bool {
        self.status().is_some_and(|status| status.reason == reason || status.code == code)
    }
}

/// `meta/v1 Status`, the body of every refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `Success` or `Failure`.
    pub status: String,
    /// For people.
    pub message: String,
    /// For machines: `NotFound`, `Conflict`…
    pub reason: String,
    /// What it is about.
    pub details: Option<StatusDetails>,
    /// The HTTP status code.
    pub code: u16,
}

/// `details` of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    /// The object's name.
    pub name: String,
    /// Its API group.
    pub group: String,
    /// Its plural resource or its kind: the server uses both.
    pub kind: String,
    /// Its uid.
    pub uid: String,
    /// One entry a fault.
    pub causes: Vec<StatusCause>,
    /// Seconds to wait before a retry.
    pub retry_after_seconds: u32,
}

/// One fault of an invalid object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusCause {
    /// For machines.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The path of the field.
    pub field: String,
}
