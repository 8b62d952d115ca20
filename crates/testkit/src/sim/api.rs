//! The real store as an API server without a network: requests are staged, published and answered
//! at once.

use controllers::kind::KINDS;
use controllers::{Failure, Kind, ObjectKey, StepResult, Write};
use model::{ClusterConfig, Timestamp};
use serde_json::{Value, json};
use store::selector::{FieldSelector, LabelSelector};
use store::webhooks::Admission;
use store::{
    Action, Context, DeleteOptions, FieldValidation, ListOptions, PatchKind, Reply, Request,
    Resource, Status, Store, StoreConfig, WatchOptions, Watcher, registry,
};

use crate::random::Generator;

/// The API of the simulated cluster.
#[derive(Debug)]
pub struct Api {
    /// The store.
    pub store: Store,
    /// The time of all requests.
    pub now: Timestamp,
    random: Generator,
}

impl store::Random for Generator {
    fn next_u64(&mut self) -> u64 {
        self.next()
    }
}

/// The store's row of a kind.
///
/// # Panics
/// When controllers know a kind that the store does not have: a fault of the build.
pub fn resource(kind: Kind) -> &'static Resource {
    let row = kind.row();
    match registry::by_kind(row.api_version, row.name) {
        Some(resource) => resource,
        None => panic!("the store has no {} {}", row.api_version, row.name),
    }
}

impl Api {
    /// An empty cluster.
    pub fn new(config: &ClusterConfig, now: Timestamp, seed: u64) -> Self {
        Self { store: Store::new(StoreConfig::from(config)), now, random: Generator::new(seed) }
    }

    /// All objects of a kind, and the revision of the list.
    ///
    /// # Errors
    /// Never for a kind that the store has.
    pub fn list(&self, kind: Kind) -> Result<(Vec<Value>, u64), Status> {
        let list = self.store.list(resource(kind), &ListOptions::default())?;
        Ok((list.items.iter().map(|object| object.value.clone()).collect(), list.revision))
    }

    /// One object, when it is there.
    pub fn get(&self, key: &ObjectKey) -> Option<Value> {
        let found = self.store.get(resource(key.kind), &key.name.namespace, &key.name.name);
        found.ok().map(|object| object.value.clone())
    }

    /// A watch of a kind after a revision.
    ///
    /// # Errors
    /// Those of [`Store::watch`].
    pub fn watch(&self, kind: Kind, after: u64) -> Result<Watcher, Status> {
        let options =
            WatchOptions { resource_version: after.to_string(), ..WatchOptions::default() };
        self.store.watch(resource(kind), options)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn create(&mut self, kind: Kind, namespace: &str, body: Value) -> Result<Value, Status> {
        self.request(kind, namespace, "", None, Action::Create(body))
    }

    /// Patches an object or its status by a merge patch.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn patch(
        &mut self,
        key: &ObjectKey,
        subresource: Option<&str>,
        body: Value,
    ) -> Result<Value, Status> {
        let action = Action::Patch(PatchKind::Merge, body);
        self.request(key.kind, &key.name.namespace, &key.name.name, subresource, action)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn delete(&mut self, key: &ObjectKey, options: DeleteOptions) -> Result<Value, Status> {
        let action = Action::Delete(options);
        self.request(key.kind, &key.name.namespace, &key.name.name, None, action)
    }

    fn request(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        action: Action,
    ) -> Result<Value, Status> {
        let resource = resource(kind);
        let subresource = subresource.and_then(|name| resource.subresource(name));
        let request = Request {
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource,
            action,
        };
        let mut context = Context {
            now: self.now,
            random: &mut self.random,
            subject: None,
            manager: "simulator",
            create_refusal: None,
            dry_run: false,
            validation: FieldValidation::default(),
            admission: Admission::Whole,
        };
        let staged = self.store.stage(&request, &mut context)?;
        self.store.publish();
        Ok(match staged.reply {
            Reply::Object(object) => object.value.clone(),
            Reply::Value(value) => value,
            _ => json!({"kind": "Status"}),
        })
    }

    /// Carries out a controller's write, as the control plane's driver does.
    pub fn perform(&mut self, write: &Write) -> StepResult {
        let answer = match write {
            Write::Create { kind, namespace, body } => self.create(*kind, namespace, body.clone()),
            Write::Patch { object, subresource, body } => {
                self.patch(object, *subresource, body.clone())
            }
            Write::Delete { object, uid, propagation, grace_period_seconds, absent } => {
                if absent.iter().any(|(key, uid)| self.is_present(key, uid)) {
                    return StepResult::NotAbsent;
                }
                let mut options = json!({"preconditions": {"uid": uid}});
                if let Some(policy) = propagation {
                    options["propagationPolicy"] = policy.as_str().into();
                }
                if let Some(seconds) = grace_period_seconds {
                    options["gracePeriodSeconds"] = (*seconds).into();
                }
                DeleteOptions::from_value(&options).and_then(|options| self.delete(object, options))
            }
            // No case of the simulator keeps tokens in Secrets.
            Write::GiveToken { .. } => return StepResult::Done,
            // No case of the simulator has claims: nothing is kept on a disk.
            Write::MakeVolume { .. } => return StepResult::Done,
            Write::RemoveVolume { .. } => return StepResult::Done,
            Write::DeleteCollection { kind, namespace } => {
                let (labels, fields) = (LabelSelector::default(), FieldSelector::default());
                let action = Action::DeleteCollection(DeleteOptions::default(), labels, fields);
                self.request(*kind, namespace, "", None, action)
            }
            Write::Bind { pod, uid, node } => {
                let body = json!({"metadata": {"uid": uid}, "target": {"name": node}});
                let action = Action::Create(body);
                let bound =
                    self.request(Kind::Pod, &pod.namespace, &pod.name, Some("binding"), action);
                let key = ObjectKey::new(Kind::Pod, pod.clone());
                bound.map(|bound| self.get(&key).unwrap_or(bound))
            }
            Write::Finalize { namespace, body } => {
                let action = Action::Update(body.clone());
                self.request(Kind::Namespace, "", namespace, Some("finalize"), action)
            }
        };
        match answer {
            Ok(value) if value["kind"] == "Status" => StepResult::Done,
            Ok(value) => StepResult::Object(value),
            Err(status) if status.code == 404 && !matches!(write, Write::Create { .. }) => {
                StepResult::Gone
            }
            Err(status) => StepResult::Failed(failure(&status)),
        }
    }

    fn is_present(&self, key: &ObjectKey, uid: &str) -> bool {
        self.get(key).is_some_and(|found| uid.is_empty() || found["metadata"]["uid"] == uid)
    }
}

fn failure(status: &Status) -> Failure {
    let value = status.to_value();
    let causes = value["details"]["causes"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    Failure {
        code: status.code,
        reason: text(&value["reason"]),
        message: text(&value["message"]),
        namespace_terminating: causes.iter().any(|one| one["reason"] == "NamespaceTerminating"),
    }
}

/// All kinds that controllers watch.
pub fn watched() -> impl Iterator<Item = Kind> {
    KINDS.iter().filter(|row| row.watched).map(|row| row.kind)
}
