//! ServiceAccount: every pod has one, and shows its token to its containers.

use model::NamespacedName;
use serde_json::{Value, json as tree};

use crate::authorize::node::is_mirror;
use crate::kinds::core::SERVICE_ACCOUNT;
use crate::kinds::pod::POD;
use crate::names::generate;
use crate::{Context, Status, Store, json};

/// Where every client in a cluster looks for its token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Begins the name of the volume.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// How long the token is good, seconds: the real server's number, by which it knows these tokens.
const TOKEN_LIFE_S: i64 = 3_607;
/// The mode of the volume's files: 0644.
const FILE_MODE: i64 = 0o644;
/// The ConfigMap with the cluster's authority, which every namespace has.
const AUTHORITY: &str = "kube-root-ca.crt";

impl Store {
    /// Gives a pod its account, and what belongs to it. That the `default` one exists is not
    /// asked: its controller may be a moment behind the namespace.
    pub(super) fn admit_service_account(
        &self,
        namespace: &str,
        pod: &mut Value,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        if is_mirror(pod) {
            return Ok(());
        }
        json::set_default_text(pod, "/spec/serviceAccountName", "default");
        let name = json::text(pod, "/spec/serviceAccountName").to_owned();
        json::set(pod, "/spec/serviceAccount", name.clone());
        let key = NamespacedName::new(namespace, name.clone());
        let account = self.head(&SERVICE_ACCOUNT, &key);
        if name != "default" && account.is_none() {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not \
                 found"
            );
            return Err(Status::forbidden(&POD, json::text(pod, "/metadata/name"), why));
        }
        let account = account.as_ref().map(|account| &*account.value);
        if shows_token(pod, account) {
            mount_token(pod, context);
        }
        let secrets = account.and_then(|account| json::at(account, "/imagePullSecrets"));
        if let Some(secrets) =
            secrets.filter(|_| json::items(pod, "/spec/imagePullSecrets").is_empty())
        {
            json::set(pod, "/spec/imagePullSecrets", secrets.clone());
        }
        Ok(())
    }
}

/// The pod's own word comes before its account's.
fn shows_token(pod: &Value, account: Option<&Value>) -> bool {
    let own = json::at(pod, "/spec/automountServiceAccountToken").and_then(Value::as_bool);
    let shared = account
        .and_then(|account| json::at(account, "/automountServiceAccountToken"))
        .and_then(Value::as_bool);
    own.or(shared).unwrap_or(true)
}

/// Puts the volume into every container that has nothing at its place.
fn mount_token(pod: &mut Value, context: &mut Context<'_>) {
    let volumes = json::items(pod, "/spec/volumes");
    let own = volumes.iter().map(|volume| json::text(volume, "/name"));
    let present = own.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = present.clone().unwrap_or_else(|| generate(VOLUME_PREFIX, context.random));
    let mut is_used = false;
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in json::items_mut(pod, list) {
            let mut mounts = json::items(container, "/volumeMounts").to_vec();
            if mounts.iter().all(|mount| json::text(mount, "/mountPath") != MOUNT_PATH) {
                mounts.push(tree!({"name": name, "mountPath": MOUNT_PATH, "readOnly": true}));
                json::set(container, "/volumeMounts", mounts);
                is_used = true;
            }
        }
    }
    if is_used && present.is_none() {
        let mut volumes = json::items(pod, "/spec/volumes").to_vec();
        volumes.push(volume(&name));
        json::set(pod, "/spec/volumes", volumes);
    }
}

/// The token, by whom the API server is known, and the namespace.
fn volume(name: &str) -> Value {
    let namespace = tree!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
    tree!({
        "name": name,
        "projected": {
            "defaultMode": FILE_MODE,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE_S, "path": "token"}},
                {"configMap": {"name": AUTHORITY, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
            ],
        },
    })
}
