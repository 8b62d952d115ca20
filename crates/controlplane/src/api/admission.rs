//! Writes that admission webhooks and policies are asked about: the store says what they are to see,
//! webhooks are asked without any lock, and the write goes on only if what there was is still there.
//! Connections and tokens, which are not stored, they are asked about too.
//!
//! Source: kubernetes.io, "Dynamic Admission Control" and "Validating Admission Policy".

use std::collections::BTreeMap;

use client::Body;
use hyper::{Method, Response};
use serde_json::{Value, json};
use store::names::uid;
use store::webhooks::{Admission, Kind, Operation, Phase, Proposal, Verdict, Webhook, verdict};
use store::{
    Action, ListOptions, Random as _, Reply, Request, Resource, Staged, Status, Subresource,
};

use super::route::Target;
use super::{Api, Call, Noted, answer};
use crate::webhook;
use crate::writer::{SystemRandom, WriteOptions};

/// How often a write begins anew because somebody else changed its object meanwhile.
const MAX_ATTEMPTS: usize = 5;

/// What webhooks and policies have to say beside yes or no.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Annotations for the audit log.
    pub annotations: BTreeMap<String, String>,
}

impl Told {
    /// Tells it with an answer.
    pub fn with(self, mut response: Response<Body>) -> Response<Body> {
        answer::add_warnings(&mut response, &self.warnings);
        if !self.annotations.is_empty() {
            response.extensions_mut().insert(Noted(self.annotations));
        }
        response
    }
}

impl Api {
    /// Runs one write, with the webhooks and policies that it is for.
    pub(super) async fn write_admitted(
        &self,
        request: Request,
        options: WriteOptions,
        annotations: &mut BTreeMap<String, String>,
    ) -> Result<Staged, Status> {
        if let Action::DeleteCollection(delete, labels, fields) = &request.action
            && self.concerns_deletion(&request, delete)
        {
            let list = ListOptions {
                namespace: request.namespace.clone(),
                labels: labels.clone(),
                fields: fields.clone(),
                ..ListOptions::default()
            };
            let delete = delete.clone();
            return self.delete_each(&request, &list, &delete, options, annotations).await;
        }
        if !self.shared.read().concerns_admission(&request) {
            return self.converter.write(request, options).await;
        }
        // A look is no write, whatever way it takes through the store.
        let look = WriteOptions { dry_run: true, admission: Admission::Propose, ..options.clone() };
        let mut seen = self.converter.write(request.clone(), look).await?;
        for _ in 0..MAX_ATTEMPTS {
            let Reply::Proposal(proposal) = seen.reply else {
                // Nothing that webhooks look at comes of it.
                return self.converter.write(request, options).await;
            };
            let mut told = Told::default();
            seen = self.admit(&request, &options, *proposal, &mut told).await?;
            if !matches!(seen.reply, Reply::Proposal(_)) {
                seen.warnings.append(&mut told.warnings);
                annotations.append(&mut told.annotations);
                return Ok(seen);
            }
        }
        Err(Status::modified(request.resource, &request.name))
    }

    /// Has webhooks and policies look at a connection; what they may change of objects they may
    /// not change of it.
    pub(super) async fn admit_connection(
        &self,
        call: &Call,
        target: &Target,
    ) -> Result<Told, Status> {
        if call.is_exempt || !self.shared.read().is_looked_at(target.resource, target.subresource) {
            return Ok(Told::default());
        }
        let (kind, options) = connection(call, target);
        let before = options.clone();
        let (after, told) = self.admit_unstored(call, target, kind, options).await?;
        match after == before {
            true => Ok(told),
            false => Err(Status::internal(
                "a mutating webhook changes the options of a connection, which this server does \
                 not do: take the CONNECT operation out of its rules",
            )),
        }
    }

    /// Has webhooks change and judge what is posted to a subresource and not stored; gives it as
    /// they left it.
    pub(super) async fn admit_unstored(
        &self,
        call: &Call,
        target: &Target,
        kind: Kind,
        object: Value,
    ) -> Result<(Value, Told), Status> {
        let is_connection = target.subresource != Some(Subresource::Token);
        let mut proposal = Proposal {
            resource: target.resource,
            subresource: target.subresource,
            kind: Some(kind),
            operation: if is_connection { Operation::Connect } else { Operation::Create },
            namespace: target.namespace.clone(),
            url_name: target.name.clone(),
            old: None,
            object: Some(object),
        };
        let dry_run = call.method == Method::POST && call.query().dry_run("CreateOptions")?;
        let options = WriteOptions { user: call.user.clone(), dry_run, ..WriteOptions::default() };
        let mut told = Told::default();
        self.mutate(&mut proposal, &options, &mut told.warnings).await?;
        self.judge(&proposal, &options, &mut told).await?;
        Ok((proposal.object.unwrap_or_default(), told))
    }

    /// Asks all webhooks and policies about a proposal, and writes what the former make of it.
    async fn admit(
        &self,
        request: &Request,
        options: &WriteOptions,
        mut proposal: Proposal,
        told: &mut Told,
    ) -> Result<Staged, Status> {
        let revision = proposal.old.as_ref().map(|old| old.revision);
        self.mutate(&mut proposal, options, &mut told.warnings).await?;
        let object = proposal.object.clone();
        let admission = Admission::Admitted { revision, object };
        let is_judged = self.shared.read().is_judged(&proposal);
        if is_judged && proposal.operation != Operation::Delete {
            // They judge what would be stored.
            let dry =
                WriteOptions { dry_run: true, admission: admission.clone(), ..options.clone() };
            let tried = self.converter.write(request.clone(), dry).await?;
            match tried.reply {
                Reply::Object(object) => proposal.object = Some(object.value.clone()),
                Reply::Value(value) => proposal.object = Some(value),
                Reply::Status(_) => {}
                Reply::Proposal(_) | Reply::Conversions(_) | Reply::Objects(..) => {
                    return Ok(tried);
                }
            }
        }
        if is_judged {
            self.judge(&proposal, options, told).await?;
        }
        let options = WriteOptions { admission, ..options.clone() };
        self.converter.write(request.clone(), options).await
    }

    /// Asks policies, then all webhooks that judge.
    async fn judge(
        &self,
        proposal: &Proposal,
        options: &WriteOptions,
        told: &mut Told,
    ) -> Result<(), Status> {
        let seen = self.seen_by_policies(proposal).await?;
        let judges = {
            let store = self.shared.read();
            let id = uid(&mut SystemRandom);
            let review = |row: &'static Resource| {
                let seen = seen.iter().find(|(in_row, _)| *in_row == row);
                let proposal = seen.map_or(proposal, |(_, proposal)| proposal);
                proposal.review(row, &id, options.user.as_ref(), options.dry_run)
            };
            let mut said = store.judge_by_policies(proposal, &review)?;
            told.warnings.append(&mut said.warnings);
            told.annotations.append(&mut said.annotations);
            store.webhooks(Phase::Validating, proposal)
        };
        let selected = judges.iter().filter(|webhook| webhook.selects(proposal));
        let asked = selected.map(|webhook| self.ask(webhook, proposal, options));
        for said in join(asked.collect()).await {
            told.warnings.extend(said?.warnings);
        }
        Ok(())
    }

    /// A proposal in the other versions in which policies look at it, where a webhook makes these.
    async fn seen_by_policies(
        &self,
        proposal: &Proposal,
    ) -> Result<Vec<(&'static Resource, Proposal)>, Status> {
        if proposal.resource.converter().is_none() {
            return Ok(Vec::new());
        }
        let rows = self.shared.read().rows_of_policies(proposal);
        let mut seen = Vec::new();
        for row in rows {
            let shown = self.converter.read(|_, conversions| proposal.seen_in(row, conversions));
            seen.push((row, shown.await?));
        }
        Ok(seen)
    }

    /// Asks those that may change the object, one after the other. One that wants it is asked
    /// once more when a later one changed the object.
    async fn mutate(
        &self,
        proposal: &mut Proposal,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let webhooks = self.shared.read().webhooks(Phase::Mutating, proposal);
        let mut seen = Vec::new();
        for (index, webhook) in webhooks.iter().enumerate() {
            if !webhook.selects(proposal) {
                continue;
            }
            self.change(webhook, proposal, options, warnings).await?;
            if webhook.is_asked_again {
                seen.push((index, proposal.object.clone()));
            }
        }
        for (index, left) in seen {
            let Some(webhook) = webhooks.get(index) else { continue };
            if left != proposal.object && webhook.selects(proposal) {
                self.change(webhook, proposal, options, warnings).await?;
            }
        }
        Ok(())
    }

    async fn change(
        &self,
        webhook: &Webhook,
        proposal: &mut Proposal,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let said = self.ask(webhook, proposal, options).await?;
        warnings.extend(said.warnings);
        let Some(patch) = said.patch else { return Ok(()) };
        if !is_converted(webhook, proposal) {
            return proposal.apply(webhook, &patch);
        }
        let row = webhook.row;
        let seen = self.converter.read(|_, conversions| proposal.seen_in(row, conversions));
        let mut seen = Proposal { resource: row, ..seen.await? };
        seen.apply(webhook, &patch)?;
        let taken = self
            .converter
            .read(|_, conversions| proposal.taken_back(seen.clone(), row, conversions));
        *proposal = taken.await?;
        Ok(())
    }

    /// Asks one webhook. Where it cannot be asked, its `failurePolicy` decides.
    async fn ask(
        &self,
        webhook: &Webhook,
        proposal: &Proposal,
        options: &WriteOptions,
    ) -> Result<Verdict, Status> {
        let id = uid(&mut SystemRandom);
        let row = webhook.row;
        let seen = match is_converted(webhook, proposal) {
            true => {
                let seen = self.converter.read(|_, conversions| proposal.seen_in(row, conversions));
                &seen.await?
            }
            false => proposal,
        };
        let review = seen.review(row, &id, options.user.as_ref(), options.dry_run);
        let is_wanted = webhook.wants(&self.shared.read(), &review);
        match is_wanted {
            Ok(true) => {}
            Ok(false) => return Ok(Verdict::default()),
            Err(why) => return Err(Status::forbidden(proposal.resource, proposal.name(), why)),
        }
        let callee = &webhook.callee;
        let target = webhook::find(&self.shared.read(), callee, SystemRandom.next_u64());
        let answer = self.webhooks.ask(callee, target, &review).await;
        let answer = answer.map_err(|why| format!("failed to call webhook: {why}"));
        let failure = match answer.and_then(|answer| verdict(&webhook.name, &id, &answer)) {
            Ok(judged) => return judged,
            Err(failure) => failure,
        };
        if webhook.fails_closed {
            let name = &webhook.name;
            return Err(Status::internal(format!("failed calling webhook {name:?}: {failure}")));
        }
        tracing::warn!(
            webhook = webhook.name, %failure,
            "an admission webhook is passed over, as its failurePolicy says"
        );
        Ok(Verdict::default())
    }

    fn concerns_deletion(&self, request: &Request, delete: &store::DeleteOptions) -> bool {
        let one = Request { action: Action::Delete(delete.clone()), ..request.clone() };
        self.shared.read().concerns_admission(&one)
    }

    /// A deletion of a collection is asked about object by object. The first refusal ends it.
    async fn delete_each(
        &self,
        request: &Request,
        list: &ListOptions,
        delete: &store::DeleteOptions,
        options: WriteOptions,
        annotations: &mut BTreeMap<String, String>,
    ) -> Result<Staged, Status> {
        let chosen = self
            .converter
            .read(|store, conversions| store.list_converted(request.resource, list, conversions));
        let chosen = chosen.await?.items;
        let mut gone = Vec::new();
        let mut warnings = Vec::new();
        for object in chosen {
            let one = Request {
                namespace: object.key.namespace.clone(),
                name: object.key.name.clone(),
                action: Action::Delete(delete.clone()),
                ..request.clone()
            };
            match Box::pin(self.write_admitted(one, options.clone(), annotations)).await {
                Ok(mut staged) => {
                    warnings.append(&mut staged.warnings);
                    gone.push(object);
                }
                // Somebody was faster.
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        let reply = Reply::Objects(request.resource, gone);
        Ok(Staged { code: 200, reply, warnings, records: Vec::new() })
    }
}

/// Whether a webhook is asked in a version that another one makes.
fn is_converted(webhook: &Webhook, proposal: &Proposal) -> bool {
    webhook.row != proposal.resource && proposal.kind.is_none() && webhook.row.converter().is_some()
}

/// What a connection is asked for with, as its options are called in the API.
fn connection(call: &Call, target: &Target) -> (Kind, Value) {
    let query = call.query();
    let kind = match (target.subresource, target.resource.kind) {
        (Some(Subresource::Attach), _) => "PodAttachOptions",
        (Some(Subresource::Exec), _) => "PodExecOptions",
        (Some(Subresource::PortForward), _) => "PodPortForwardOptions",
        (_, "Node") => "NodeProxyOptions",
        (_, "Service") => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    let mut set = |name: &str, value: Value| {
        if let Some(members) = options.as_object_mut() {
            members.insert(name.to_owned(), value);
        }
    };
    match kind {
        "PodAttachOptions" | "PodExecOptions" => {
            for name in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(name) {
                    set(name, true.into());
                }
            }
            if let Some(container) = query.find("container") {
                set("container", container.into());
            }
            let command: Vec<&str> = query.all("command").collect();
            if !command.is_empty() {
                set("command", json!(command));
            }
        }
        "PodPortForwardOptions" => {
            let ports = query.all("ports").filter_map(|port| port.parse().ok());
            let ports: Vec<u16> = ports.collect();
            if !ports.is_empty() {
                set("ports", json!(ports));
            }
        }
        _ => {
            if let Some((_, path)) = call.uri.path().split_once("/proxy") {
                set("path", path.into());
            }
        }
    }
    (("", "v1", kind), options)
}

/// Waits for all, together.
async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_ready = true;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => *output = Some(done),
                    std::task::Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}
