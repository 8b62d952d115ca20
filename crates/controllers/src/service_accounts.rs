//! What every namespace has: the ServiceAccount `default`, and the certificate that says whom to
//! trust as the API server.

use std::collections::BTreeSet;

use serde_json::json;

use model::NamespacedName;

use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::ROOT_CA_CONFIG_MAP;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

const DEFAULT: &str = "default";

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    let namespace = match object.kind {
        Kind::Namespace => &object.meta.name,
        Kind::ServiceAccount if object.meta.name == DEFAULT => &object.meta.namespace,
        Kind::ConfigMap if object.meta.name == ROOT_CA_CONFIG_MAP => &object.meta.namespace,
        _ => return,
    };
    keys.insert(ObjectKey::new(Kind::Namespace, NamespacedName::new("", &**namespace)));
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(namespace) = snapshot.get(Kind::Namespace, &key.name) else { return outcome };
    if namespace.is_terminating() {
        return outcome;
    }
    let name = &key.name.name;
    if snapshot.find(Kind::ServiceAccount, name, DEFAULT).is_none() {
        let kind = Kind::ServiceAccount;
        let body = kind.object(json!({"name": DEFAULT, "namespace": name}));
        outcome.push(Step::quiet(Write::Create { kind, namespace: name.clone(), body }));
    }
    let data = json!({"ca.crt": input.config.root_ca});
    match snapshot.find(Kind::ConfigMap, name, ROOT_CA_CONFIG_MAP) {
        None => {
            let kind = Kind::ConfigMap;
            let about = "Contains a CA bundle that can be used to verify the kube-apiserver when \
                         using internal endpoints such as the internal service IP or \
                         kubernetes.default.svc. No other usage is guaranteed across \
                         distributions of Kubernetes clusters.";
            let mut body = kind.object(json!({
                "name": ROOT_CA_CONFIG_MAP,
                "namespace": name,
                "annotations": {"kubernetes.io/description": about},
            }));
            body["data"] = data;
            outcome.push(Step::quiet(Write::Create { kind, namespace: name.clone(), body }));
        }
        Some(map) if map.root_ca() != Some(&input.config.root_ca) && !map.is_terminating() => {
            outcome.push(Step::quiet(map.patch(json!({"data": data}))));
        }
        Some(_) => {}
    }
    outcome
}
