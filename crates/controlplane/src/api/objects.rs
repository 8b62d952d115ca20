//! Requests for collections, objects and subresources, written once for all kinds.

use std::sync::Arc;

use client::Body;
use hyper::header::USER_AGENT;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use store::authorize::Request as Asked;
use store::reviews::Review;
use store::selector::{FieldSelector, LabelSelector};
use store::table::{Include, table};
use store::webhooks::Admission;
use store::{
    Action, DeleteOptions, FieldValidation, List, ListOptions, Object, PatchKind, Reply, Request,
    Staged, Status, Subresource, WatchOptions, registry,
};

use super::admission::Told;
use super::negotiate::{self, Accepted, Form};
use super::proxied;
use super::query::Query;
use super::route::Target;
use super::watch::{self, WatchRequest};
use super::{Api, Call, Written, answer};
use crate::audit::Entry;
use crate::writer::{WriteOptions, now};

impl Api {
    pub(super) async fn target(
        &self,
        call: Call,
        target: Target,
    ) -> Result<Response<Body>, Status> {
        let verb = verb_of(&call, &target);
        let selected = selected_name(&call, &target);
        self.authorize(
            &call,
            &Asked::Resource {
                // A method that nothing has is answered below, to those who may do anything here.
                verb: verb.unwrap_or("*"),
                group: target.resource.group,
                plural: target.resource.plural,
                subresource: target.subresource.map(Subresource::name).unwrap_or_default(),
                namespace: namespace_of(&target),
                name: selected.as_deref().unwrap_or(&target.name),
            },
        )?;
        match target.subresource {
            Some(Subresource::Token) if call.method == Method::POST => {
                return self.token(&call, &target).await;
            }
            Some(Subresource::Log) if call.method == Method::GET => {
                return self.proxy.log(&self.shared, &target, &call.query()).await;
            }
            Some(Subresource::Log) => return Err(Status::method_not_allowed()),
            Some(
                Subresource::Attach
                | Subresource::Exec
                | Subresource::PortForward
                | Subresource::Proxy,
            ) => return self.connect(call, &target).await,
            _ => {}
        }
        let Some(verb) = verb else { return Err(Status::method_not_allowed()) };
        // Subresources bring verbs of their own; writes need to know where.
        let over_all_namespaces = target.resource.namespaced && target.namespace.is_empty();
        let is_served = target.subresource.is_some() || target.resource.allows(verb);
        if !is_served || (over_all_namespaces && !matches!(verb, "list" | "watch")) {
            return Err(Status::method_not_allowed());
        }
        if let Some(review) = Review::of(target.resource) {
            return self.review(&call, &target, review);
        }
        if registry::measured().any(|row| row == target.resource) {
            return self.metrics(&call, &target).await;
        }
        match verb {
            "list" => self.list(&call, &target).await,
            "watch" => self.watch(&call, &target),
            "get" => self.get(&call, &target).await,
            _ => self.write(call, target).await,
        }
    }

    /// Connects to what is not ours, where admission lets it.
    async fn connect(&self, call: Call, target: &Target) -> Result<Response<Body>, Status> {
        let is_proxy = target.subresource == Some(Subresource::Proxy);
        if !is_proxy && !matches!(call.method, Method::GET | Method::POST) {
            return Err(Status::method_not_allowed());
        }
        let told = self.admit_connection(&call, target).await?;
        let answered = match is_proxy {
            true => self.proxied(call, target).await,
            false => self.proxy.connect(&self.shared, target, call).await,
        };
        answered.map(|response| told.with(response))
    }

    async fn get(&self, call: &Call, target: &Target) -> Result<Response<Body>, Status> {
        let accepted = negotiate::accepted(&call.headers, false)?;
        let Target { resource, namespace, name, .. } = target;
        if target.subresource == Some(Subresource::Scale) {
            let scale = self.converter.read(|store, conversions| {
                store.scale_converted(resource, namespace, name, conversions)
            });
            let scale = scale.await?;
            return Ok(answer::value(StatusCode::OK, &scale, accepted.encoding));
        }
        let parts = [Subresource::Status, Subresource::EphemeralContainers];
        if target.subresource.is_some_and(|part| !parts.contains(&part)) {
            return Err(Status::method_not_allowed());
        }
        let include = include(&call.query())?;
        let object = self
            .converter
            .read(|store, conversions| store.get_converted(resource, namespace, name, conversions));
        show(StatusCode::OK, &object.await?, accepted, include)
    }

    async fn list(&self, call: &Call, target: &Target) -> Result<Response<Body>, Status> {
        let accepted = negotiate::accepted(&call.headers, false)?;
        let query = call.query();
        let options = ListOptions {
            namespace: target.namespace.clone(),
            labels: LabelSelector::parse(query.get("labelSelector"))?,
            fields: FieldSelector::parse(target.resource, query.get("fieldSelector"))?,
            limit: query
                .number("limit")?
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(0),
            continue_token: query.get("continue").to_owned(),
            resource_version: query.get("resourceVersion").to_owned(),
            resource_version_match: query.get("resourceVersionMatch").to_owned(),
        };
        let include = include(&query)?;
        let list = self.converter.read(|store, conversions| {
            store.list_converted(target.resource, &options, conversions)
        });
        let list = list.await?;
        Ok(show_list(&list, accepted, include))
    }

    fn watch(&self, call: &Call, target: &Target) -> Result<Response<Body>, Status> {
        let mut accepted = negotiate::accepted(&call.headers, false)?;
        if !target.resource.has_protobuf() {
            // Who accepts protobuf reads JSON too.
            accepted = accepted.as_text();
        }
        let query = call.query();
        let options = WatchOptions {
            namespace: target.namespace.clone(),
            labels: LabelSelector::parse(query.get("labelSelector"))?,
            fields: FieldSelector::parse(target.resource, query.get("fieldSelector"))?,
            resource_version: query.get("resourceVersion").to_owned(),
            resource_version_match: query.get("resourceVersionMatch").to_owned(),
            send_initial_events: query.optional_flag("sendInitialEvents"),
            allow_bookmarks: query.flag("allowWatchBookmarks"),
        };
        let watcher = self.shared.read().watch(target.resource, options)?;
        let request = WatchRequest {
            watcher,
            accepted,
            include: include(&query)?,
            timeout_seconds: query.number("timeoutSeconds")?,
        };
        let stop = self.stop.clone();
        Ok(watch::start(&self.shared, &self.converter, &self.lines, stop, request))
    }

    async fn write(&self, call: Call, target: Target) -> Result<Response<Body>, Status> {
        let accepted = negotiate::accepted(&call.headers, false)?;
        let query = call.query();
        let include = include(&query)?;
        let kind = target.resource.kind;
        // Other subresources have bodies of kinds of their own.
        let is_object =
            matches!(target.subresource, None | Some(Subresource::Status | Subresource::Finalize));
        let message = target.resource.message().filter(|_| is_object);
        let (action, faults, options_kind) = match call.method {
            Method::POST => {
                let body = negotiate::body(&call.headers, &call.body, kind, message)?;
                (Action::Create(body.value), body.faults, "CreateOptions")
            }
            Method::PUT => {
                let body = negotiate::body(&call.headers, &call.body, kind, message)?;
                (Action::Update(body.value), body.faults, "UpdateOptions")
            }
            Method::PATCH => {
                let (action, faults) = patch(&call, &query)?;
                (action, faults, "PatchOptions")
            }
            _ => (delete(&call, &query, &target)?, Vec::new(), "DeleteOptions"),
        };
        let directive = query.field_directive(options_kind)?;
        let mut dry_run = query.dry_run(options_kind)?;
        if call.method == Method::DELETE {
            dry_run |= body_asks_for_dry_run(&call)?;
        }
        let is_apply = matches!(action, Action::Apply { .. });
        let user_agent = call.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        let options = WriteOptions {
            user: call.user.clone(),
            manager: query.manager(options_kind, is_apply, user_agent.unwrap_or_default())?,
            create_refusal: self.create_refusal(&call, &target, &action),
            dry_run,
            validation: FieldValidation { directive, faults },
            admission: Admission::Whole,
            attempt: None,
        };
        let request = Request {
            resource: target.resource,
            namespace: target.namespace,
            name: target.name,
            subresource: target.subresource,
            action,
        };
        let mut told = Told::default();
        let staged = match call.is_exempt {
            true => self.converter.write(request, options).await?,
            false => self.write_admitted(request, options, &mut told.annotations).await?,
        };
        reply(&staged, accepted, include).map(|response| told.with(response))
    }

    /// Why the caller may not make what a PUT or an apply finds absent.
    fn create_refusal(&self, call: &Call, target: &Target, action: &Action) -> Option<Status> {
        let makes_objects = match action {
            Action::Update(_) => target.resource.create_on_update,
            Action::Apply { .. } => true,
            _ => false,
        };
        if !makes_objects || target.subresource.is_some() {
            return None;
        }
        let asked = Asked::Resource {
            verb: "create",
            group: target.resource.group,
            plural: target.resource.plural,
            subresource: "",
            namespace: namespace_of(target),
            name: &target.name,
        };
        self.authorize(call, &asked).err()
    }
}

/// Says in the audit log what a request is about.
pub(super) fn describe(call: &Call, target: &Target, entry: &mut Entry) {
    if let Some(verb) = verb_of(call, target) {
        verb.clone_into(&mut entry.verb);
    }
    let streams =
        [Subresource::Attach, Subresource::Exec, Subresource::Log, Subresource::PortForward];
    entry.is_stream =
        entry.verb == "watch" || target.subresource.is_some_and(|one| streams.contains(&one));
    let resource = target.resource;
    entry.object = json!({
        "resource": resource.plural,
        "namespace": target.namespace,
        "name": target.name,
        "apiGroup": resource.group,
        "apiVersion": resource.version,
        "subresource": target.subresource.map(Subresource::name),
    });
    if let Some(object) = entry.object.as_object_mut() {
        object.retain(|_, value| !value.is_null() && value != "");
    }
}

/// The API's verb of a request; `None` for a method that its target does not have.
fn verb_of(call: &Call, target: &Target) -> Option<&'static str> {
    Some(match (&call.method, !target.name.is_empty(), target.subresource) {
        (method, true, Some(Subresource::Proxy)) => proxied::verb(method)?,
        (&Method::GET, false, _) if call.query().flag("watch") => "watch",
        (&Method::GET, false, _) => "list",
        (&Method::GET, true, _) => "get",
        (&Method::POST, false, _) => "create",
        (&Method::PUT, true, _) => "update",
        (&Method::PATCH, true, _) => "patch",
        (&Method::DELETE, true, None) => "delete",
        (&Method::DELETE, false, _) => "deletecollection",
        (&Method::POST, true, Some(subresource)) if is_posted(subresource) => "create",
        _ => return None,
    })
}

/// The one object that a list or a watch may show: to it a right by name applies.
fn selected_name(call: &Call, target: &Target) -> Option<String> {
    let selects = target.name.is_empty() && call.method == Method::GET;
    let fields = selects.then(|| call.query().get("fieldSelector").to_owned())?;
    let fields = FieldSelector::parse(target.resource, &fields).ok()?;
    fields.exact("/metadata/name").map(str::to_owned)
}

/// The namespace that rights are looked for in: a Namespace object lies in itself.
fn namespace_of(target: &Target) -> &str {
    match target.resource.plural {
        "namespaces" => &target.name,
        _ => &target.namespace,
    }
}

const fn is_posted(subresource: Subresource) -> bool {
    matches!(
        subresource,
        Subresource::Attach
            | Subresource::Binding
            | Subresource::Eviction
            | Subresource::Exec
            | Subresource::PortForward
            | Subresource::Token
    )
}

/// What a PATCH wants, and what stands twice in it.
fn patch(call: &Call, query: &Query) -> Result<(Action, Vec<String>), Status> {
    let media_type = negotiate::media_type(&call.headers);
    if media_type == "application/apply-patch+yaml" {
        let config = negotiate::configuration(&call.body)?;
        let force = query.flag("force");
        return Ok((Action::Apply { config: config.value, force }, config.faults));
    }
    let kind = PatchKind::from_media_type(&media_type).ok_or_else(Status::unknown_patch_type)?;
    let patch = negotiate::read_json(&call.body, None)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    Ok((Action::Patch(kind, patch.value), patch.faults))
}

/// Options of a DELETE stand in its body; query parameters count when there is no body.
fn delete(call: &Call, query: &Query, target: &Target) -> Result<Action, Status> {
    let body = delete_body(call)?;
    let options = DeleteOptions::from_value(&body.unwrap_or_else(|| delete_parameters(query)))?;
    if !target.name.is_empty() {
        return Ok(Action::Delete(options));
    }
    let labels = LabelSelector::parse(query.get("labelSelector"))?;
    let fields = FieldSelector::parse(target.resource, query.get("fieldSelector"))?;
    Ok(Action::DeleteCollection(options, labels, fields))
}

fn delete_body(call: &Call) -> Result<Option<Value>, Status> {
    if call.body.is_empty() {
        return Ok(None);
    }
    negotiate::body(&call.headers, &call.body, "DeleteOptions", None).map(|body| Some(body.value))
}

fn delete_parameters(query: &Query) -> Value {
    let mut options = serde_json::Map::new();
    if let Ok(Some(seconds)) = query.number("gracePeriodSeconds") {
        options.insert("gracePeriodSeconds".to_owned(), seconds.into());
    }
    if let Some(policy) = query.find("propagationPolicy") {
        options.insert("propagationPolicy".to_owned(), policy.into());
    }
    if let Some(orphan) = query.optional_flag("orphanDependents") {
        options.insert("orphanDependents".to_owned(), orphan.into());
    }
    Value::Object(options)
}

fn body_asks_for_dry_run(call: &Call) -> Result<bool, Status> {
    let body = delete_body(call)?;
    let asked = body.as_ref().and_then(|body| body.get("dryRun")).and_then(Value::as_array);
    Ok(asked.is_some_and(|values| values.iter().any(|value| value == "All")))
}

/// What the rows of a Table carry.
pub(super) fn include(query: &Query) -> Result<Include, Status> {
    let text = query.get("includeObject");
    Include::from_query(text)
        .ok_or_else(|| Status::bad_request(format!("unrecognized includeObject value: {text:?}")))
}

/// An object in the form that was agreed on.
pub(super) fn show(
    code: StatusCode,
    object: &Arc<Object>,
    accepted: Accepted,
    include: Include,
) -> Result<Response<Body>, Status> {
    Ok(match accepted.form {
        Form::Table => {
            let metadata = json!({"resourceVersion": object.revision.to_string()});
            let table = table(object.resource, [&**object], metadata, now(), include, true);
            answer::value(code, &table, accepted.encoding)
        }
        Form::Partial => answer::value(code, &object.to_partial(), accepted.encoding),
        Form::Plain | Form::Discovery => answer::object(code, object, accepted.encoding),
    })
}

/// A list in the form that was agreed on.
pub(super) fn show_list(list: &List, accepted: Accepted, include: Include) -> Response<Body> {
    match accepted.form {
        Form::Table => {
            let objects = list.items.iter().map(|object| &**object);
            let table = table(list.resource, objects, list.metadata(), now(), include, true);
            answer::value(StatusCode::OK, &table, accepted.encoding)
        }
        Form::Partial => answer::value(StatusCode::OK, &list.to_partial(), accepted.encoding),
        Form::Plain | Form::Discovery => answer::list(StatusCode::OK, list, accepted.encoding),
    }
}

fn reply(staged: &Staged, accepted: Accepted, include: Include) -> Result<Response<Body>, Status> {
    let code = StatusCode::from_u16(staged.code).map_err(Status::internal)?;
    let mut response = match &staged.reply {
        Reply::Object(object) => {
            let mut response = show(code, object, accepted, include)?;
            response.extensions_mut().insert(Written(object.key.name.clone()));
            response
        }
        Reply::Objects(resource, objects) => {
            let list = store::List {
                resource,
                revision: objects.iter().map(|object| object.revision).max().unwrap_or(0),
                items: objects.clone(),
                continue_token: None,
                remaining: None,
            };
            answer::list(code, &list, accepted.encoding)
        }
        Reply::Value(value) => answer::value(code, value, accepted.encoding),
        // Nobody that asks for an answer is shown one.
        Reply::Proposal(_) | Reply::Conversions(_) => {
            return Err(Status::internal("webhooks were not asked"));
        }
        Reply::Status(status) => answer::encoded_status(status, accepted.encoding),
    };
    answer::add_warnings(&mut response, &staged.warnings);
    Ok(response)
}
