//! A store with a clock and a seeded random source, and an object of every kind.
// Each test file uses its own part of this.
#![allow(dead_code)]

use std::sync::Arc;

use model::{ClusterConfig, Timestamp};
use serde_json::{Value, json};
use store::authorize::Subject;
use store::selector::{FieldSelector, LabelSelector};
use store::webhooks::Admission;
use store::{
    Action, Context, DeleteOptions, FieldValidation, ListOptions, Object, PatchKind, Random,
    Record, Reply, Request, Resource, Staged, Status, Store, StoreConfig, Subresource, WatchEvent,
    WatchOptions, registry,
};

/// splitmix64: small, seeded, good enough to spread names and addresses.
pub struct Seeded(pub u64);

impl Random for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A store with everything that a request needs besides.
pub struct Api {
    pub store: Store,
    pub random: Seeded,
    pub now: Timestamp,
    pub dry_run: bool,
    /// As whom further requests write.
    pub manager: &'static str,
    /// What the shell found in the bodies of further requests.
    pub validation: FieldValidation,
    /// All records that were published.
    pub log: Vec<Record>,
    /// Who asks, with his groups; `None` for who may do everything.
    pub user: Option<(&'static str, Vec<String>)>,
}

impl Api {
    /// An empty store.
    pub fn empty() -> Self {
        Self::over(Store::new(StoreConfig::from(&ClusterConfig::default())))
    }

    /// A store with the namespace `default`.
    pub fn new() -> Self {
        let mut api = Self::empty();
        let namespace = json!({"metadata": {"name": "default"}});
        api.create("namespaces", "", namespace).expect("a namespace");
        api
    }

    pub fn over(store: Store) -> Self {
        let now = Timestamp::parse("2026-11-20T23:25:02Z").expect("a time");
        Self {
            store,
            random: Seeded(1),
            now,
            dry_run: false,
            manager: "curl",
            user: None,
            validation: FieldValidation::default(),
            log: Vec::new(),
        }
    }

    /// Stages without publishing.
    pub fn stage(&mut self, request: &Request) -> Result<Staged, Status> {
        let mut context = Context {
            now: self.now,
            random: &mut self.random,
            subject: self.user.as_ref().map(|(name, groups)| Subject { name, groups }),
            manager: self.manager,
            create_refusal: None,
            dry_run: self.dry_run,
            validation: self.validation.clone(),
            admission: Admission::Whole,
        };
        self.store.stage(request, &mut context)
    }

    /// Stages and publishes.
    pub fn run(&mut self, request: &Request) -> Result<Staged, Status> {
        let staged = self.stage(request)?;
        self.log.extend(staged.records.iter().cloned());
        self.store.publish();
        Ok(staged)
    }

    pub fn act(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        action: Action,
    ) -> Result<Staged, Status> {
        self.run(&request(row(plural), namespace, name, subresource, action))
    }

    pub fn create(
        &mut self,
        plural: &str,
        namespace: &str,
        body: Value,
    ) -> Result<Arc<Object>, Status> {
        self.act(plural, namespace, "", None, Action::Create(body)).map(object)
    }

    pub fn update(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Arc<Object>, Status> {
        self.act(plural, namespace, name, None, Action::Update(body)).map(object)
    }

    pub fn patch(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        kind: PatchKind,
        body: Value,
    ) -> Result<Arc<Object>, Status> {
        self.act(plural, namespace, name, None, Action::Patch(kind, body)).map(object)
    }

    pub fn patch_status(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Arc<Object>, Status> {
        let action = Action::Patch(PatchKind::Strategic, body);
        self.act(plural, namespace, name, Some(Subresource::Status), action).map(object)
    }

    pub fn delete(
        &mut self,
        plural: &str,
        namespace: &str,
        name: &str,
        options: Value,
    ) -> Result<Reply, Status> {
        let options = DeleteOptions::from_value(&options)?;
        self.act(plural, namespace, name, None, Action::Delete(options)).map(|staged| staged.reply)
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.store.get(row(plural), namespace, name)
    }

    pub fn names(&self, plural: &str, labels: &str, fields: &str) -> Vec<String> {
        let resource = row(plural);
        let options = ListOptions {
            labels: LabelSelector::parse(labels).expect("a selector"),
            fields: FieldSelector::parse(resource, fields).expect("a selector"),
            ..ListOptions::default()
        };
        let list = self.store.list(resource, &options).expect("a list");
        list.items.iter().map(|object| object.key.name.clone()).collect()
    }

    /// All events of a watch from a revision, as `(type, name, revision)`.
    pub fn events(
        &self,
        resource: &'static Resource,
        options: WatchOptions,
    ) -> Result<Vec<(String, String, u64)>, Status> {
        let mut watcher = self.store.watch(resource, options)?;
        let mut all = Vec::new();
        loop {
            let events = self.store.watch_next(&mut watcher, 7)?;
            if events.is_empty() {
                return Ok(all);
            }
            all.extend(events.iter().filter_map(event_text));
        }
    }
}

fn event_text(event: &WatchEvent) -> Option<(String, String, u64)> {
    match event {
        WatchEvent::Object(kind, object) => {
            let stated = object.value["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
            Some((kind.as_str().to_owned(), object.key.to_string(), stated))
        }
        WatchEvent::Bookmark(_) => None,
    }
}

/// The row of a plural; `events.v1` is the one of events.k8s.io.
pub fn row(plural: &str) -> &'static Resource {
    if plural == "events.v1" {
        return registry::find("events.k8s.io", "v1", "events").expect("a row");
    }
    registry::resources().find(|row| row.plural == plural).expect("a row")
}

pub fn request(
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    subresource: Option<Subresource>,
    action: Action,
) -> Request {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Request { resource, namespace, name, subresource, action }
}

pub fn object(staged: Staged) -> Arc<Object> {
    match staged.reply {
        Reply::Object(object) => object,
        other => panic!("not an object: {other:?}"),
    }
}

/// The namespace in which samples of a row live.
pub fn namespace_of(resource: &Resource) -> &'static str {
    if resource.namespaced { "default" } else { "" }
}

/// A valid object of each kind, without metadata.
pub fn sample(resource: &Resource) -> Value {
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "nginx:1.27"}]},
    });
    let workload =
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}});
    match resource.kind {
        // A pod with a token has a volume more than its manifest, which a merge would take away.
        "Pod" => json!({"spec": {"automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "nginx:1.27"}]}}),
        "Service" => json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => workload,
        "Job" => json!({"spec": {"template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}),
        "CronJob" => {
            json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}})
        }
        "ControllerRevision" => json!({"revision": 1, "data": {"spec": {"template": template}}}),
        "ReplicationController" => json!({"spec": {"template": template}}),
        "EndpointSlice" => json!({
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.1.2"]}],
            "ports": [{"port": 80}],
        }),
        "Event" if resource.group.is_empty() => {
            json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"}})
        }
        "Event" => json!({"regarding": {"kind": "Pod", "namespace": "default", "name": "web"}}),
        "Ingress" => {
            json!({"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}})
        }
        "IngressClass" => json!({"spec": {"controller": "example.org/ours"}}),
        "ClusterRole" | "Role" => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        "ClusterRoleBinding" | "RoleBinding" => json!({
            "subjects": [{"kind": "User", "name": "jane"}],
            "roleRef": {"kind": "ClusterRole", "name": "view"},
        }),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.97.0.0/24"]}}),
        "IPAddress" => json!({"spec": {"parentRef": {"resource": "gateways", "name": "g"}}}),
        "CustomResourceDefinition" => json!({"spec": {
            "group": "example.com", "scope": "Cluster",
            "names": {"plural": "ones", "kind": "One"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                          "schema": {"openAPIV3Schema": {"type": "object"}}}],
        }}),
        "PersistentVolume" => json!({"spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/data"},
        }}),
        "PersistentVolumeClaim" => json!({"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }}),
        "StorageClass" => json!({"provisioner": "example.org/disks"}),
        "ResourceQuota" => json!({"spec": {"hard": {"pods": "10", "requests.cpu": "4"}}}),
        "LimitRange" => json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        "Lease" => json!({"spec": {"holderIdentity": "me"}}),
        "ValidatingAdmissionPolicy" => json!({"spec": {
            "matchConstraints": {"resourceRules": [{"operations": ["*"], "apiGroups": [""],
                "apiVersions": ["v1"], "resources": ["pods"]}]},
            "validations": [{"expression": "object.metadata.name != 'x'"}],
        }}),
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        _ => json!({}),
    }
}

/// A sample with a name.
pub fn named(resource: &Resource, name: &str) -> Value {
    let mut value = sample(resource);
    value["metadata"] = json!({"name": name});
    value
}
