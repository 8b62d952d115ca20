//! Drives the controllers: carries watch events and the results of writes into
//! [`controllers::Manager`], and its writes to the API. Decides nothing itself.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::{
    Client, ClientError, DeleteOptions, PatchKind, Preconditions, ResourcePath, WatchEvent,
    WatchSpec, Watcher,
};
use controllers::kind::KINDS;
use controllers::manager::Listed;
use controllers::{Batch, Config, Failure, Job, Kind, Manager, ObjectKey, Step, StepResult, Write};
use model::{ClusterConfig, Timestamp};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::volumes::Volumes;

/// Watch events that are taken in before writes are looked for again.
const MAX_EVENTS_AT_ONCE: usize = 64;

/// What the controllers run with that begin now. `root_ca` is the PEM text of the certificate
/// authority, which every namespace gets.
pub fn config(cluster: ClusterConfig, root_ca: String) -> Config {
    Config::new(cluster, root_ca, now())
}

/// Runs all controllers until `shutdown` becomes true or its sender is gone.
pub async fn run(client: Client, config: Config, mut shutdown: watch::Receiver<bool>) {
    let writer = Writer {
        client: client.clone(),
        volumes: config.volumes_directory.as_ref().map(Volumes::at),
    };
    let mut manager = Manager::new(config);
    let mut watchers = Watchers::new(&client);
    let mut jobs: JoinSet<(Job, Vec<StepResult>)> = JoinSet::new();
    loop {
        while let Some(job) = manager.next(now()) {
            jobs.spawn(perform(writer.clone(), job));
        }
        let wait = manager.next_deadline().map(|deadline| deadline.since(now()));
        tokio::select! {
            () = stopped(&mut shutdown) => return,
            Some(done) = jobs.join_next() => finish(&mut manager, done),
            (kind, event, revision) = watchers.next() => {
                take_in(&mut manager, kind, event, revision);
                watchers.drain(|kind, event, revision| {
                    take_in(&mut manager, kind, event, revision);
                });
            }
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could stop us.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

fn finish(manager: &mut Manager, done: Result<(Job, Vec<StepResult>), tokio::task::JoinError>) {
    match done {
        Ok((job, results)) => {
            for result in &results {
                if let StepResult::Failed(failure) = result {
                    log_failure(&job, failure);
                }
            }
            manager.finished(job, results, now());
        }
        // Aborts happen only after the loop. A panic must not leave its key busy for ever.
        Err(error) => {
            if let Ok(panic) = error.try_into_panic() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn log_failure(job: &Job, failure: &Failure) {
    let (reason, message) = (&failure.reason, &failure.message);
    if failure.namespace_terminating || failure.reason == "Conflict" {
        tracing::debug!(ticket = ?job.ticket, reason, message, "a controller's write was refused");
    } else {
        tracing::warn!(
            ticket = ?job.ticket,
            code = failure.code,
            reason,
            message,
            "a controller's write failed; it is tried again"
        );
    }
}

fn take_in(manager: &mut Manager, kind: Kind, event: WatchEvent<Unmanaged>, revision: u64) {
    match event {
        WatchEvent::Listed(values) => {
            let values = values.into_iter().map(|value| value.0).collect();
            let listed = manager.listed(kind, values, revision, now());
            if let Listed::Held { before, after } = listed {
                tracing::error!(
                    kind = kind.row().plural,
                    before,
                    after,
                    hold_seconds = controllers::manager::LIST_HOLD.as_secs(),
                    "a list lost most of its objects: controllers write nothing for a while; if \
                     the store was restored or damaged, stop the control plane and check it now"
                );
            }
        }
        WatchEvent::Applied(value) => manager.applied(kind, value.0, now()),
        WatchEvent::Deleted(value) => manager.deleted(kind, value.0, now()),
        WatchEvent::Lost { reason } => {
            tracing::warn!(kind = kind.row().plural, reason, "a controller watch broke");
        }
        WatchEvent::Resumed => {}
    }
}

fn now() -> Timestamp {
    // A clock before 1970 reads as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_microseconds(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// An object without `metadata.managedFields`, which as a tree are larger than most objects, and
/// of which a first list would hold all at once. No controller reads them.
struct Unmanaged(Value);

impl<'de> Deserialize<'de> for Unmanaged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members {
            are_metadata: bool,
        }

        impl<'de> Visitor<'de> for Members {
            type Value = Map<String, Value>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of the API")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Map::new();
                while let Some(name) = access.next_key::<String>()? {
                    let value = match name.as_str() {
                        "managedFields" if self.are_metadata => {
                            access.next_value::<IgnoredAny>()?;
                            continue;
                        }
                        "metadata" if !self.are_metadata => {
                            Value::Object(access.next_value::<Metadata>()?.0)
                        }
                        _ => access.next_value()?,
                    };
                    members.insert(name, value);
                }
                Ok(members)
            }
        }

        struct Metadata(Map<String, Value>);

        impl<'de> Deserialize<'de> for Metadata {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(Members { are_metadata: true }).map(Self)
            }
        }

        let members = deserializer.deserialize_map(Members { are_metadata: false })?;
        Ok(Self(Value::Object(members)))
    }
}

/// The watches of all kinds, polled from one task.
struct Watchers {
    watchers: Vec<(Kind, Watcher<Unmanaged>)>,
    /// Which is polled first: each in turn, so that a busy kind holds up no other.
    turn: usize,
}

impl Watchers {
    fn new(client: &Client) -> Self {
        let watched = KINDS.iter().filter(|row| row.watched);
        let watchers = watched
            .map(|row| {
                let path = ResourcePath::new(row.api_version, row.plural);
                (row.kind, client.watch(WatchSpec::new(path)))
            })
            .collect();
        Self { watchers, turn: 0 }
    }

    async fn next(&mut self) -> (Kind, WatchEvent<Unmanaged>, u64) {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Takes what is there already.
    fn drain(&mut self, mut take: impl FnMut(Kind, WatchEvent<Unmanaged>, u64)) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for _ in 0..MAX_EVENTS_AT_ONCE {
            let Poll::Ready((kind, event, revision)) = self.poll_next(&mut context) else { return };
            take(kind, event, revision);
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(Kind, WatchEvent<Unmanaged>, u64)> {
        let count = self.watchers.len();
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            let Some((kind, watcher)) = self.watchers.get_mut(index) else { continue };
            if let Poll::Ready(event) = watcher.poll_next(context) {
                self.turn = index + 1;
                let revision = watcher.revision().and_then(|text| text.parse().ok());
                return Poll::Ready((*kind, event, revision.unwrap_or(0)));
            }
        }
        Poll::Pending
    }
}

/// Where writes go.
#[derive(Clone)]
struct Writer {
    client: Client,
    volumes: Option<Volumes>,
}

async fn perform(writer: Writer, job: Job) -> (Job, Vec<StepResult>) {
    let mut results = Vec::with_capacity(job.steps.len());
    while let Some(batch) = job.next_batch(&results) {
        match batch {
            Batch::Perform(count) => {
                let steps = job.steps.iter().skip(results.len()).take(count);
                results.extend(together(&writer, steps).await);
            }
            Batch::Skip(count) => results.extend(vec![StepResult::NotTried; count]),
        }
    }
    (job, results)
}

/// Runs the writes of some steps at once, and gives their results in the order of the steps.
async fn together(writer: &Writer, steps: impl Iterator<Item = &Step>) -> Vec<StepResult> {
    type Running<'a> = Pin<Box<dyn Future<Output = StepResult> + Send + 'a>>;
    let mut running: Vec<(Running<'_>, Option<StepResult>)> =
        steps.map(|step| (Box::pin(write(writer, &step.write)) as Running<'_>, None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, result) in running.iter_mut().filter(|(_, result)| result.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(done) => *result = Some(done),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().map(|(_, result)| result.unwrap_or(StepResult::NotTried)).collect()
}

async fn write(writer: &Writer, write: &Write) -> StepResult {
    let client = &writer.client;
    match write {
        Write::Create { kind, namespace, body } => {
            object_or_failure(client.create(&collection(*kind, namespace), body).await)
        }
        Write::Patch { object, subresource, body } => {
            let path = object_path(object);
            let path = match subresource {
                Some(subresource) => path.subresource(*subresource),
                None => path,
            };
            or_gone(client.patch(&path, PatchKind::Merge, body).await)
        }
        Write::Delete { object, uid, propagation, grace_period_seconds, absent } => {
            if let Some(result) = any_present(client, absent).await {
                return result;
            }
            let options = DeleteOptions {
                grace_period_seconds: grace_period_seconds.map(i64::from),
                propagation_policy: propagation.map(|policy| policy.as_str()),
                preconditions: Some(Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: None,
                }),
            };
            match or_gone(client.delete(&object_path(object), &options).await) {
                StepResult::Object(value) if value["kind"] == "Status" => StepResult::Done,
                result => result,
            }
        }
        Write::MakeVolume { volume } => of_volumes(writer, volume, Volumes::make).await,
        Write::RemoveVolume { volume, absent } => match any_present(client, absent).await {
            Some(result) => result,
            None => of_volumes(writer, volume, Volumes::remove).await,
        },
        Write::DeleteCollection { kind, namespace } => {
            let options = DeleteOptions {
                propagation_policy: Some(controllers::Propagation::Background.as_str()),
                ..DeleteOptions::default()
            };
            match client.delete(&collection(*kind, namespace), &options).await {
                Ok(_) => StepResult::Done,
                Err(error) => StepResult::Failed(failure(&error)),
            }
        }
        Write::GiveToken { secret, uid, account, body } => {
            give_token(client, secret, uid, account, body.clone()).await
        }
        Write::Bind { pod, uid, node } => bind(client, pod, uid, node).await,
        Write::Finalize { namespace, body } => {
            let path = collection(Kind::Namespace, "").name(namespace).subresource("finalize");
            object_or_failure(client.update(&path, body).await)
        }
    }
}

/// Binds a pod, and reads it back: the answer to a binding does not show the pod, and the next
/// placement must see this one.
async fn bind(client: &Client, pod: &model::NamespacedName, uid: &str, node: &str) -> StepResult {
    let path = object_path(&ObjectKey::new(Kind::Pod, pod.clone()));
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let bound = client.create::<_, Value>(&path.clone().subresource("binding"), &body).await;
    match or_gone(bound) {
        StepResult::Object(_) => or_gone(client.get(&path).await),
        result => result,
    }
}

/// Makes a token that is good as long as its Secret is there, and puts it there.
async fn give_token(
    client: &Client,
    secret: &ObjectKey,
    uid: &str,
    account: &str,
    mut body: Value,
) -> StepResult {
    let namespace = &secret.name.namespace;
    let path = collection(Kind::ServiceAccount, namespace).name(account).subresource("token");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "expirationSeconds": crate::tokens::LIFE_LIMIT_S,
            "boundObjectRef":
                {"apiVersion": "v1", "kind": "Secret", "name": secret.name.name, "uid": uid},
        },
    });
    let made = or_gone(client.create::<_, Value>(&path, &request).await);
    let StepResult::Object(made) = made else { return made };
    body["stringData"]["token"] = made["status"]["token"].clone();
    or_gone(client.patch(&object_path(secret), PatchKind::Merge, &body).await)
}

/// Does something to the directory of a volume, away from the threads that serve.
async fn of_volumes(
    writer: &Writer,
    volume: &str,
    act: fn(&Volumes, &str) -> Result<(), String>,
) -> StepResult {
    let failed = |message: String| StepResult::Failed(Failure { message, ..Failure::default() });
    let Some(volumes) = writer.volumes.clone() else {
        return failed("this control plane has no directory for volumes".into());
    };
    let volume = volume.to_owned();
    match tokio::task::spawn_blocking(move || act(&volumes, &volume)).await {
        Ok(Ok(())) => StepResult::Done,
        Ok(Err(message)) => failed(message),
        Err(error) => failed(error.to_string()),
    }
}

/// The result of a write of which some object must be absent and is there, or may be.
async fn any_present(client: &Client, absent: &[(ObjectKey, String)]) -> Option<StepResult> {
    for (key, uid) in absent {
        if let Some(result) = present(client, key, uid).await {
            return Some(result);
        }
    }
    None
}

/// The result of a write that must not take place since the object is there, or may be.
async fn present(client: &Client, key: &ObjectKey, uid: &str) -> Option<StepResult> {
    match client.get_optional::<Value>(&object_path(key)).await {
        Ok(None) => None,
        Ok(Some(found)) if !uid.is_empty() && found["metadata"]["uid"] != uid => None,
        Ok(Some(_)) => Some(StepResult::NotAbsent),
        Err(error) => Some(StepResult::Failed(failure(&error))),
    }
}

fn collection(kind: Kind, namespace: &str) -> ResourcePath {
    let row = kind.row();
    ResourcePath::new(row.api_version, row.plural).namespace(namespace)
}

fn object_path(key: &ObjectKey) -> ResourcePath {
    collection(key.kind, &key.name.namespace).name(&*key.name.name)
}

fn object_or_failure(answer: Result<Value, ClientError>) -> StepResult {
    match answer {
        Ok(value) => StepResult::Object(value),
        Err(error) => StepResult::Failed(failure(&error)),
    }
}

fn or_gone(answer: Result<Value, ClientError>) -> StepResult {
    match answer {
        Err(error) if error.is_not_found() => StepResult::Gone,
        answer => object_or_failure(answer),
    }
}

fn failure(error: &ClientError) -> Failure {
    let Some(status) = error.status() else {
        return Failure { message: error.to_string(), ..Failure::default() };
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    Failure {
        code: status.code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        namespace_terminating: causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_managers_are_left_out() {
        let text = r#"{"kind": "ConfigMap", "metadata": {"name": "c", "labels": {"managedFields": "1"},
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:data": {}}}]},
            "data": {"metadata": "m", "managedFields": "d"}}"#;
        let mut whole: Value = serde_json::from_str(text).expect("JSON");
        whole["metadata"].as_object_mut().expect("metadata").remove("managedFields");
        let read: Unmanaged = serde_json::from_str(text).expect("an object");
        assert_eq!(read.0, whole);
        assert!(serde_json::from_str::<Unmanaged>("[]").is_err());
    }
}
