//! Writes that admission webhooks are asked about: the store says what they are to see, they are
//! asked without any lock, and the write goes on only if what there was is still there.
//!
//! Source: kubernetes.io, "Dynamic Admission Control".

use store::authorize::Subject;
use store::names::uid;
use store::webhooks::{Admission, Operation, Phase, Proposal, Verdict, Webhook, verdict};
use store::{Action, ListOptions, Random as _, Reply, Request, Staged, Status};

use super::Api;
use crate::tls::User;
use crate::webhook;
use crate::writer::{SystemRandom, WriteOptions};

/// How often a write begins anew because somebody else changed its object meanwhile.
const MAX_ATTEMPTS: usize = 5;

impl Api {
    /// Runs one write, with the webhooks that it is for.
    pub(super) async fn write_admitted(
        &self,
        request: Request,
        options: WriteOptions,
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
            return self.delete_each(&request, &list, &delete, options).await;
        }
        if !self.shared.read().concerns_webhooks(&request) {
            return self.shared.write(request, options).await;
        }
        let mut warnings = Vec::new();
        // A look is no write, whatever way it takes through the store.
        let look = WriteOptions { dry_run: true, admission: Admission::Propose, ..options.clone() };
        let mut seen = self.shared.write(request.clone(), look).await?;
        for _ in 0..MAX_ATTEMPTS {
            let Reply::Proposal(proposal) = seen.reply else {
                // Nothing that webhooks look at comes of it.
                return self.shared.write(request, options).await;
            };
            warnings.clear();
            seen = self.admit(&request, &options, *proposal, &mut warnings).await?;
            if !matches!(seen.reply, Reply::Proposal(_)) {
                seen.warnings.append(&mut warnings);
                return Ok(seen);
            }
        }
        Err(Status::modified(request.resource, &request.name))
    }

    /// Asks all webhooks about a proposal, and writes what they make of it.
    async fn admit(
        &self,
        request: &Request,
        options: &WriteOptions,
        mut proposal: Proposal,
        warnings: &mut Vec<String>,
    ) -> Result<Staged, Status> {
        let revision = proposal.old.as_ref().map(|old| old.revision);
        self.mutate(&mut proposal, options, warnings).await?;
        let object = proposal.object.clone();
        let admission = Admission::Admitted { revision, object };
        let judges = self.shared.read().webhooks(Phase::Validating, &proposal);
        if !judges.is_empty() {
            if proposal.operation != Operation::Delete {
                // They judge what would be stored.
                let dry =
                    WriteOptions { dry_run: true, admission: admission.clone(), ..options.clone() };
                let tried = self.shared.write(request.clone(), dry).await?;
                match &tried.reply {
                    Reply::Object(object) => proposal.object = Some(object.value.clone()),
                    _ => return Ok(tried),
                }
            }
            let selected = judges.iter().filter(|webhook| webhook.selects(&proposal));
            let asked = selected.map(|webhook| self.ask(webhook, &proposal, options));
            for said in join(asked.collect()).await {
                warnings.extend(said?.warnings);
            }
        }
        let options = WriteOptions { admission, ..options.clone() };
        self.shared.write(request.clone(), options).await
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
        match said.patch {
            Some(patch) => proposal.apply(&webhook.name, &patch),
            None => Ok(()),
        }
    }

    /// Asks one webhook. Where it cannot be asked, its `failurePolicy` decides.
    async fn ask(
        &self,
        webhook: &Webhook,
        proposal: &Proposal,
        options: &WriteOptions,
    ) -> Result<Verdict, Status> {
        let id = uid(&mut SystemRandom);
        let subject: Option<Subject<'_>> = options.user.as_ref().map(User::subject);
        let review = proposal.review(&id, subject, options.dry_run);
        let target = webhook::find(&self.shared.read(), webhook, SystemRandom.next_u64());
        let answer = self.webhooks.ask(webhook, target, &review).await;
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
        self.shared.read().concerns_webhooks(&one)
    }

    /// A deletion of a collection is asked about object by object. The first refusal ends it.
    async fn delete_each(
        &self,
        request: &Request,
        list: &ListOptions,
        delete: &store::DeleteOptions,
        options: WriteOptions,
    ) -> Result<Staged, Status> {
        let chosen = self.shared.read().list(request.resource, list)?.items;
        let mut gone = Vec::new();
        let mut warnings = Vec::new();
        for object in chosen {
            let one = Request {
                namespace: object.key.namespace.clone(),
                name: object.key.name.clone(),
                action: Action::Delete(delete.clone()),
                ..request.clone()
            };
            match Box::pin(self.write_admitted(one, options.clone())).await {
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
