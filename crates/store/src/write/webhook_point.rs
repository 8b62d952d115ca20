//! Where webhooks look at a write: after defaults and the built-in admission, before validation.

use std::sync::Arc;

use serde_json::Value;

use crate::webhooks::{Admission, Operation, Proposal};
use crate::{Context, Object, Request, Status, Store};

use super::decode;

impl Store {
    /// Lets webhooks see and change what is about to be written; whether they did. `value` is
    /// `None` for a deletion.
    ///
    /// # Errors
    /// What ends the write here; the store has the proposal then.
    pub(super) fn webhook_point(
        &mut self,
        request: &Request,
        old: Option<&Arc<Object>>,
        value: Option<&mut Value>,
        context: &Context<'_>,
    ) -> Result<bool, Status> {
        let current = old.map(|old| old.revision);
        match (&context.admission, value) {
            (Admission::Whole, _) => Ok(false),
            (Admission::Admitted { revision, object }, value) if *revision == current => {
                let (Some(value), Some(object)) = (value, object) else { return Ok(false) };
                *value = decode(request.resource, object.clone())?.value;
                Ok(true)
            }
            (Admission::Propose | Admission::Admitted { .. }, value) => {
                let operation = match (old, &value) {
                    (_, None) => Operation::Delete,
                    (None, Some(_)) => Operation::Create,
                    (Some(_), Some(_)) => Operation::Update,
                };
                self.proposal = Some(Proposal {
                    resource: request.resource,
                    subresource: request.subresource,
                    operation,
                    old: old.cloned(),
                    object: value.map(|value| value.clone()),
                });
                Err(Status::internal("the write waits for admission webhooks"))
            }
        }
    }
}
