//! A cluster in memory: the real store, all controllers, and node runtimes that start what they
//! are given. Watches lag, writes overlap and clocks run, all by one seed.
#![allow(dead_code)] // Each test program uses a part of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use controllers::kind::KINDS;
use controllers::{
    Batch, Config, Failure, Job, Kind, Manager, ObjectKey, StepResult, Ticket, Write,
};
use model::{ClusterConfig, NamespacedName, Timestamp};
use serde_json::{Value, json};
use store::selector::{FieldSelector, LabelSelector};
use store::webhooks::Admission;
use store::{
    Action, Context, DeleteOptions, FieldValidation, ListOptions, Operation, PatchKind, Reply,
    Request, Resource, Status, Store, StoreConfig, registry,
};

/// Steps after which a test that should have settled fails.
const MAX_STEPS: usize = 200_000;

pub struct Seed(u64);

impl Seed {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (store::Random::next_u64(self) % bound.max(1) as u64) as usize
    }
}

impl store::Random for Seed {
    fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

struct Flying {
    job: Job,
    results: Vec<Option<StepResult>>,
    /// Steps that are under way or have their results.
    begun: usize,
}

impl Flying {
    /// Begins what follows once all that is under way has its result.
    fn begin(&mut self) {
        let done: Vec<StepResult> = self.results.iter().map_while(Clone::clone).collect();
        if done.len() < self.begun {
            return;
        }
        match self.job.next_batch(&done) {
            Some(Batch::Perform(count)) => self.begun += count,
            Some(Batch::Skip(count)) => {
                let skipped = self.results.iter_mut().skip(self.begun).take(count);
                skipped.for_each(|result| *result = Some(StepResult::NotTried));
                self.begun += count;
                self.begin();
            }
            None => {}
        }
    }
}

pub struct Cluster {
    pub store: Store,
    pub manager: Manager,
    pub now: Timestamp,
    pub seed: Seed,
    /// What watches have yet to report.
    backlog: BTreeMap<Kind, VecDeque<(Operation, Value)>>,
    flying: Vec<Flying>,
    /// The directories of provisioned volumes.
    pub volumes: BTreeSet<String>,
    /// Nodes whose runtime does nothing.
    pub dead_nodes: Vec<String>,
    /// Whether pods become ready.
    pub pods_become_ready: bool,
    /// Writes that the controllers made, Events left out.
    pub writes: Vec<String>,
    /// Refused writes that were no conflicts.
    pub failures: Vec<String>,
    addresses: u32,
}

fn config(now: Timestamp) -> Config {
    let config = Config::new(ClusterConfig::default(), "CA".into(), now);
    Config { volumes_directory: Some("/volumes".into()), ..config }
}

impl Cluster {
    /// A cluster with some nodes and the namespace `default`, before anything was watched.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let cluster = ClusterConfig::default();
        let now = Timestamp::from_seconds(1_800_000_000);
        let config = config(now);
        let mut this = Self {
            store: Store::new(StoreConfig::from(&cluster)),
            manager: Manager::new(config),
            now,
            seed: Seed::new(seed),
            backlog: BTreeMap::new(),
            flying: Vec::new(),
            volumes: BTreeSet::new(),
            dead_nodes: Vec::new(),
            pods_become_ready: true,
            writes: Vec::new(),
            failures: Vec::new(),
            addresses: 0,
        };
        for name in ["default", "kube-system", "kube-node-lease"] {
            this.create("Namespace", "", json!({"metadata": {"name": name}}));
        }
        for index in 1..=nodes {
            this.create("Node", "", node(&format!("node{index}")));
        }
        this.backlog.clear();
        for row in KINDS.iter().filter(|row| row.watched) {
            let (values, revision) = this.list(row.kind);
            this.manager.listed(row.kind, values, revision, this.now);
        }
        this
    }

    /// A fresh process of controllers over the same store.
    pub fn restart_controllers(&mut self) {
        self.manager = Manager::new(config(self.now));
        self.backlog.clear();
        self.flying.clear();
        self.writes.clear();
        for row in KINDS.iter().filter(|row| row.watched) {
            let (values, revision) = self.list(row.kind);
            self.manager.listed(row.kind, values, revision, self.now);
        }
    }

    pub fn list(&self, kind: Kind) -> (Vec<Value>, u64) {
        let list = self.store.list(resource(kind), &ListOptions::default()).expect("a list");
        let values = list.items.iter().map(|object| object.value.clone()).collect();
        (values, self.store.revision())
    }

    pub fn all(&self, kind: Kind) -> Vec<Value> {
        self.list(kind).0
    }

    /// The objects of a kind, shared with the store.
    pub fn objects(&self, kind: Kind) -> Vec<Arc<store::Object>> {
        self.store.list(resource(kind), &ListOptions::default()).expect("a list").items
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        let mut objects = self.objects(kind).into_iter();
        let found =
            objects.find(|found| found.key.namespace == namespace && found.key.name == name);
        found.map(|found| found.value.clone())
    }

    pub fn create(&mut self, kind: &str, namespace: &str, body: Value) -> Value {
        let row = KINDS.iter().find(|row| row.name == kind).expect("a kind");
        let result = self.request(row.kind, namespace, "", None, Action::Create(body));
        result.unwrap_or_else(|status| panic!("{kind}: {status:?}"))
    }

    pub fn patch(&mut self, kind: Kind, namespace: &str, name: &str, body: Value) -> Value {
        let action = Action::Patch(PatchKind::Merge, body);
        let result = self.request(kind, namespace, name, None, action);
        result.unwrap_or_else(|status| panic!("{name}: {status:?}"))
    }

    pub fn patch_status(&mut self, kind: Kind, namespace: &str, name: &str, body: Value) {
        let action = Action::Patch(PatchKind::Merge, json!({"status": body}));
        let result = self.request(kind, namespace, name, Some("status"), action);
        result.unwrap_or_else(|status| panic!("{name}: {status:?}"));
    }

    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str, options: Value) {
        let options = DeleteOptions::from_value(&options).expect("options");
        let result = self.request(kind, namespace, name, None, Action::Delete(options));
        result.unwrap_or_else(|status| panic!("{name}: {status:?}"));
    }

    /// Asks for a pod to go, as `kubectl drain` does.
    pub fn evict(&mut self, namespace: &str, name: &str) {
        let action = Action::Create(json!({"metadata": {"name": name}}));
        let result = self.request(Kind::Pod, namespace, name, Some("eviction"), action);
        result.unwrap_or_else(|status| panic!("{name}: {status:?}"));
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
        let subresource =
            subresource.map(|text| resource.subresource(text).expect("a subresource"));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let request = Request { resource, namespace, name, subresource, action };
        let mut context = Context {
            now: self.now,
            random: &mut self.seed,
            subject: None,
            manager: "test",
            create_refusal: None,
            dry_run: false,
            validation: FieldValidation::default(),
            admission: Admission::Whole,
        };
        let staged = self.store.stage(&request, &mut context)?;
        for record in &staged.records {
            let kind = KINDS.iter().find(|row| row.name == record.object.resource.kind);
            if let Some(row) = kind.filter(|row| row.watched) {
                let event = (record.operation, record.object.value.clone());
                self.backlog.entry(row.kind).or_default().push_back(event);
            }
        }
        self.store.publish();
        Ok(match staged.reply {
            Reply::Object(object) => object.value.clone(),
            Reply::Value(value) => value,
            Reply::Objects(..) | Reply::Status(_) | Reply::Proposal(_) | Reply::Conversions(_) => {
                json!({"kind": "Status"})
            }
        })
    }

    /// Runs until nothing moves any more, without letting time pass beyond what `patience` says.
    /// `check` runs after each step.
    pub fn settle(&mut self, patience: Duration, mut check: impl FnMut(&Cluster)) {
        let end = self.now.after(patience);
        for _ in 0..MAX_STEPS {
            if !self.step() {
                let Some(deadline) = self.manager.next_deadline().filter(|next| *next <= end)
                else {
                    return;
                };
                self.now = self.now.max(deadline).after(Duration::from_millis(1));
            }
            check(self);
        }
        panic!("the cluster does not settle; last writes: {:?}", self.last_writes());
    }

    fn last_writes(&self) -> &[String] {
        &self.writes[self.writes.len().saturating_sub(12)..]
    }

    /// Lets time pass as it passes in a living cluster: leases are renewed.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.now < end {
            self.now = self.now.after(Duration::from_secs(1)).min(end);
            self.renew_leases();
            self.settle(Duration::ZERO, |_| {});
        }
    }

    fn renew_leases(&mut self) {
        for node in self.all(Kind::Node) {
            let name = text(&node["metadata"]["name"]);
            if self.dead_nodes.contains(&name) {
                continue;
            }
            let spec = json!({"holderIdentity": name, "renewTime": self.now.micro()});
            match self.get(Kind::Lease, "kube-node-lease", &name) {
                None => {
                    let body = json!({"metadata": {"name": name}, "spec": spec});
                    self.create("Lease", "kube-node-lease", body);
                }
                Some(_) => {
                    let body = json!({"spec": spec});
                    self.patch(Kind::Lease, "kube-node-lease", &name, body);
                }
            }
        }
    }

    /// One step of somebody. False when nobody has anything to do now.
    pub fn step(&mut self) -> bool {
        let first = self.seed.below(5);
        for offset in 0..5 {
            let moved = match (first + offset) % 5 {
                0 => self.deliver(),
                1 => self.take_job(),
                2 => self.execute(),
                3 => self.finish(),
                _ => self.run_pods(),
            };
            if moved {
                self.now = self.now.after(Duration::from_micros(300));
                return true;
            }
        }
        false
    }

    fn deliver(&mut self) -> bool {
        let waiting: Vec<Kind> = self
            .backlog
            .iter()
            .filter(|(_, events)| !events.is_empty())
            .map(|(kind, _)| *kind)
            .collect();
        if waiting.is_empty() {
            return false;
        }
        let kind = waiting[self.seed.below(waiting.len())];
        let event = self.backlog.get_mut(&kind).and_then(VecDeque::pop_front);
        let Some((operation, value)) = event else { return false };
        match operation {
            Operation::Delete => self.manager.deleted(kind, value, self.now),
            _ => self.manager.applied(kind, value, self.now),
        }
        true
    }

    fn take_job(&mut self) -> bool {
        let Some(job) = self.manager.next(self.now) else { return false };
        if let Ticket::Run(controller, key) = &job.ticket {
            for step in &job.steps {
                self.writes.push(format!("{controller:?} {key}: {:?}", step.write));
            }
        }
        let results = vec![None; job.steps.len()];
        let mut flying = Flying { job, results, begun: 0 };
        flying.begin();
        self.flying.push(flying);
        true
    }

    fn execute(&mut self) -> bool {
        let mut ready = Vec::new();
        for (index, flying) in self.flying.iter().enumerate() {
            let begun = flying.results.iter().take(flying.begun).enumerate();
            ready.extend(begun.filter(|(_, one)| one.is_none()).map(|(step, _)| (index, step)));
        }
        if ready.is_empty() {
            return false;
        }
        let (index, step) = ready[self.seed.below(ready.len())];
        let write = self.flying[index].job.steps[step].write.clone();
        let result = self.write(&write);
        if let StepResult::Failed(failure) = &result
            && failure.reason != "Conflict"
            && !failure.namespace_terminating
        {
            self.failures.push(format!("{write:?}: {failure:?}"));
        }
        self.flying[index].results[step] = Some(result);
        self.flying[index].begin();
        true
    }

    fn finish(&mut self) -> bool {
        let done: Vec<usize> = (0..self.flying.len())
            .filter(|index| self.flying[*index].results.iter().all(Option::is_some))
            .collect();
        if done.is_empty() {
            return false;
        }
        let flying = self.flying.swap_remove(done[self.seed.below(done.len())]);
        let results = flying.results.into_iter().flatten().collect();
        self.manager.finished(flying.job, results, self.now);
        true
    }

    fn is_present(&self, key: &ObjectKey, uid: &str) -> bool {
        let found = self.get(key.kind, &key.name.namespace, &key.name.name);
        found.is_some_and(|found| uid.is_empty() || found["metadata"]["uid"] == uid)
    }

    fn write(&mut self, write: &Write) -> StepResult {
        let answer = match write {
            Write::Create { kind, namespace, body } => {
                self.request(*kind, namespace, "", None, Action::Create(body.clone()))
            }
            Write::Patch { object, subresource, body } => {
                let action = Action::Patch(PatchKind::Merge, body.clone());
                let (namespace, name) = parts(object);
                self.request(object.kind, namespace, name, *subresource, action)
            }
            Write::Delete { object, uid, propagation, grace_period_seconds, absent } => {
                if absent.iter().any(|(key, uid)| self.is_present(key, uid)) {
                    return StepResult::NotAbsent;
                }
                let mut options = json!({"preconditions": {"uid": uid}});
                if let Some(policy) = propagation {
                    options["propagationPolicy"] = json!(policy.as_str());
                }
                if let Some(seconds) = grace_period_seconds {
                    options["gracePeriodSeconds"] = json!(seconds);
                }
                let options = DeleteOptions::from_value(&options).expect("options");
                let (namespace, name) = parts(object);
                self.request(object.kind, namespace, name, None, Action::Delete(options))
            }
            Write::GiveToken { secret, body, .. } => {
                let (namespace, name) = parts(secret);
                let mut body = body.clone();
                body["stringData"]["token"] = json!("TOKEN");
                let action = Action::Patch(PatchKind::Merge, body);
                self.request(secret.kind, namespace, name, None, action)
            }
            Write::MakeVolume { volume } => {
                self.volumes.insert(volume.clone());
                return StepResult::Done;
            }
            Write::RemoveVolume { volume, absent } => {
                if absent.iter().any(|(key, uid)| self.is_present(key, uid)) {
                    return StepResult::NotAbsent;
                }
                self.volumes.remove(volume);
                return StepResult::Done;
            }
            Write::DeleteCollection { kind, namespace } => {
                let options = DeleteOptions::default();
                let labels = LabelSelector::default();
                let action = Action::DeleteCollection(options, labels, FieldSelector::default());
                self.request(*kind, namespace, "", None, action)
            }
            Write::Bind { pod, uid, node } => {
                let body = json!({"metadata": {"uid": uid}, "target": {"name": node}});
                let (namespace, name) = (&pod.namespace, &pod.name);
                let action = Action::Create(body);
                match self.request(Kind::Pod, namespace, name, Some("binding"), action) {
                    Ok(_) => Ok(self.get(Kind::Pod, namespace, name).expect("the bound pod")),
                    Err(status) => Err(status),
                }
            }
            Write::Finalize { namespace, body } => self.request(
                Kind::Namespace,
                "",
                namespace,
                Some("finalize"),
                Action::Update(body.clone()),
            ),
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

    /// A node's runtime does one thing for one pod.
    fn run_pods(&mut self) -> bool {
        let mut todo: Vec<(String, String, Value)> = Vec::new();
        for object in self.objects(Kind::Pod) {
            let pod = &object.value;
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            if node.is_empty() || self.dead_nodes.iter().any(|dead| dead == node) {
                continue;
            }
            let meta = &pod["metadata"];
            let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
            let stopped = meta["deletionGracePeriodSeconds"] == 0;
            if meta["deletionTimestamp"].is_string() {
                let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
                let waited_for = meta["finalizers"].is_array();
                // Whoever waits for its end hears how it was.
                if waited_for && !ended {
                    todo.push((namespace, name, json!({"phase": "Failed"})));
                } else if !stopped {
                    todo.push((namespace, name, Value::Null));
                }
            } else if let Some(status) = self.next_status(pod) {
                todo.push((namespace, name, status));
            }
        }
        if todo.is_empty() {
            return false;
        }
        let (namespace, name, status) = todo.swap_remove(self.seed.below(todo.len()));
        if status.is_null() {
            self.delete(Kind::Pod, &namespace, &name, json!({"gracePeriodSeconds": 0}));
        } else {
            self.patch_status(Kind::Pod, &namespace, &name, status);
        }
        true
    }

    fn next_status(&mut self, pod: &Value) -> Option<Value> {
        let now = self.now.to_string();
        let old = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str, status: &str| {
            old.iter().any(|found| found["type"] == kind && found["status"] == status)
        };
        let with = |status: &str| {
            let mut conditions: Vec<Value> = old
                .iter()
                .filter(|found| found["type"] != "Ready" && found["type"] != "ContainersReady")
                .cloned()
                .collect();
            for kind in ["ContainersReady", "Ready"] {
                conditions.push(json!({"type": kind, "status": status, "lastTransitionTime": now}));
            }
            conditions
        };
        if pod["status"]["podIP"].is_null() {
            self.addresses += 1;
            let ip = format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1);
            return Some(json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": with("False")}));
        }
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if phase == "Succeeded" || phase == "Failed" {
            return None;
        }
        if self.pods_become_ready && !is("ContainersReady", "True") {
            return Some(json!({"conditions": with("True")}));
        }
        let image = &pod["spec"]["containers"][0]["image"];
        if pod["spec"]["restartPolicy"] == "Always" || image == "stays" {
            return None;
        }
        // What is not to run for ever ends, as its image's name says.
        let fails = image == "fails";
        let phase = if fails { "Failed" } else { "Succeeded" };
        Some(json!({"phase": phase, "conditions": with("False")}))
    }
}

pub fn resource(kind: Kind) -> &'static Resource {
    registry::by_kind(kind.row().api_version, kind.row().name).expect("a row of the store")
}

fn failure(status: &Status) -> Failure {
    let value = status.to_value();
    let causes = value["details"]["causes"].as_array().cloned().unwrap_or_default();
    Failure {
        code: status.code,
        reason: text(&value["reason"]),
        message: text(&value["message"]),
        namespace_terminating: causes.iter().any(|cause| cause["reason"] == "NamespaceTerminating"),
    }
}

fn parts(key: &ObjectKey) -> (&str, &str) {
    let NamespacedName { namespace, name } = &key.name;
    (namespace, name)
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    })
}

pub fn deployment(name: &str, replicas: i64, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

pub fn service(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

/// Pods that count, by readiness: `(all, ready)`.
pub fn pods(cluster: &Cluster, app: &str) -> (i64, i64) {
    let mut counts = (0, 0);
    for object in cluster.objects(Kind::Pod) {
        let pod = &object.value;
        let alive = pod["metadata"]["deletionTimestamp"].is_null();
        if !alive || pod["metadata"]["labels"]["app"] != app {
            continue;
        }
        counts.0 += 1;
        let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice);
        let ready = conditions
            .unwrap_or_default()
            .iter()
            .any(|found| found["type"] == "Ready" && found["status"] == "True");
        counts.1 += i64::from(ready);
    }
    counts
}
