//! Where webhooks and policies look at a write: after defaults and the built-in admission, before
//! validation.

use std::sync::Arc;

use serde_json::Value;

use crate::webhooks::{Admission, Kind, Operation, Proposal};
use crate::{Context, Object, Request, Status, Store, json};

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
        if matches!(context.admission, Admission::Whole) {
            return Ok(false);
        }
        let shown = value.as_deref().cloned();
        match (self.propose(request, None, old, shown, context)?, value) {
            (Some(admitted), Some(value)) => {
                *value = decode(request.resource, admitted)?.value;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// As [`Store::webhook_point`], for what is written through a subresource in a kind of its own.
    pub(super) fn webhook_point_as(
        &mut self,
        kind: Kind,
        request: &Request,
        old: Option<&Arc<Object>>,
        value: &mut Value,
        context: &Context<'_>,
    ) -> Result<(), Status> {
        let (group, version, name) = kind;
        let slash = if group.is_empty() { "" } else { "/" };
        json::set(value, "/apiVersion", format!("{group}{slash}{version}"));
        json::set(value, "/kind", name);
        if let Some(admitted) =
            self.propose(request, Some(kind), old, Some(value.clone()), context)?
        {
            *value = admitted;
        }
        Ok(())
    }

    /// What webhooks made of an object; `None` where they are not asked, and for a deletion.
    fn propose(
        &mut self,
        request: &Request,
        kind: Option<Kind>,
        old: Option<&Arc<Object>>,
        object: Option<Value>,
        context: &Context<'_>,
    ) -> Result<Option<Value>, Status> {
        let current = old.map(|old| old.revision);
        match &context.admission {
            Admission::Whole => Ok(None),
            Admission::Admitted { revision, object } if *revision == current => Ok(object.clone()),
            Admission::Propose | Admission::Admitted { .. } => {
                let operation = match (old, &object) {
                    (_, None) => Operation::Delete,
                    (None, Some(_)) => Operation::Create,
                    (Some(_), Some(_)) => Operation::Update,
                };
                self.proposal = Some(Proposal {
                    resource: request.resource,
                    subresource: request.subresource,
                    kind,
                    operation,
                    namespace: request.namespace.clone(),
                    url_name: request.name.clone(),
                    old: old.cloned(),
                    object,
                });
                Err(Status::internal("the write waits for admission"))
            }
        }
    }
}
