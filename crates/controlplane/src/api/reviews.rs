//! Requests that are answered and not stored: reviews of rights and identities, and tokens of
//! ServiceAccounts.

use client::Body;
use hyper::{Response, StatusCode};
use schema::Message;
use serde_json::Value;
use store::reviews::{self, Review};
use store::{FieldDirective, FieldValidation, Status};

use super::admission::Told;
use super::negotiate;
use super::route::Target;
use super::{Api, Call, answer};
use crate::writer::now;

/// A body as it came, and what is to be said of its fields.
struct Asked {
    value: Value,
    validation: FieldValidation,
}

impl Api {
    /// Answers a review.
    pub(super) fn review(
        &self,
        call: &Call,
        target: &Target,
        review: Review,
    ) -> Result<Response<Body>, Status> {
        let asked = asked(call, target.resource.kind, target.resource.message())?;
        let validation = asked.validation;
        let value = reviews::read(target.resource, &target.namespace, asked.value, &validation)?;
        let sender = call.user.as_ref().ok_or_else(Status::unauthorized)?;
        let store = self.shared.read();
        let status = match review {
            Review::Token => self.tokens.review(&store, &value, now())?,
            review => store.review(review, &value, sender)?,
        };
        let accepted = negotiate::accepted(&call.headers, false)?;
        let answer = reviews::answered(value, status);
        let mut response = answer::value(StatusCode::CREATED, &answer, accepted.encoding);
        answer::add_warnings(&mut response, &warnings(&validation));
        Ok(response)
    }

    /// Makes a token for a ServiceAccount.
    pub(super) async fn token(
        &self,
        call: &Call,
        target: &Target,
    ) -> Result<Response<Body>, Status> {
        let asked = asked(call, "TokenRequest", reviews::token_request_message())?;
        let mut body = reviews::read_token_request(asked.value, &asked.validation)?;
        let mut told = Told::default();
        let is_looked_at = || self.shared.read().is_looked_at(target.resource, target.subresource);
        if !call.is_exempt && is_looked_at() {
            let kind = ("authentication.k8s.io", "v1", "TokenRequest");
            (body, told) = self.admit_unstored(call, target, kind, body).await?;
        }
        let store = self.shared.read();
        if let Some(user) = &call.user {
            store.restrict_token(user.subject(), &target.namespace, &target.name, &body)?;
        }
        let made = self.tokens.request(&store, &target.namespace, &target.name, &body, now())?;
        told.warnings.append(&mut warnings(&asked.validation));
        told.warnings.extend(made.warning);
        let accepted = negotiate::accepted(&call.headers, false)?;
        Ok(told.with(answer::value(StatusCode::CREATED, &made.answer, accepted.encoding)))
    }
}

fn asked(call: &Call, kind: &str, message: Option<&Message>) -> Result<Asked, Status> {
    let query = call.query();
    let directive = query.field_directive("CreateOptions")?;
    // Nothing is stored in any case; a wrong value is refused all the same.
    query.dry_run("CreateOptions")?;
    let read = negotiate::body(&call.headers, &call.body, kind, message)?;
    let validation = FieldValidation { directive, faults: read.faults };
    Ok(Asked { value: read.value, validation })
}

fn warnings(validation: &FieldValidation) -> Vec<String> {
    match validation.directive {
        FieldDirective::Warn => validation.faults.clone(),
        FieldDirective::Ignore | FieldDirective::Strict => Vec::new(),
    }
}
