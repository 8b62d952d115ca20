//! Claims and volumes as they are admitted: the default class, what keeps them from going while
//! they are in use, and growth.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::kinds::limits::quantity;
use crate::kinds::storage::{
    PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS, is_default,
};
use crate::{Object, Resource, Status, Store, json};

/// What a claim asks for.
const ASKED: &str = "/spec/resources/requests/storage";
/// Keeps a claim while a pod uses it.
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim has it.
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

impl Store {
    /// DefaultStorageClass and StorageObjectInUseProtection.
    pub(super) fn admit_storage(&self, resource: &Resource, value: &mut Value) {
        let finalizer = if resource == &PERSISTENT_VOLUME_CLAIM {
            if json::at(value, "/spec/storageClassName").is_none()
                && let Some(class) = self.default_storage_class()
            {
                json::set(value, "/spec/storageClassName", class.key.name.clone());
            }
            CLAIM_PROTECTION
        } else if resource == &PERSISTENT_VOLUME {
            VOLUME_PROTECTION
        } else {
            return;
        };
        let mut finalizers: Vec<String> =
            json::texts(value, "/metadata/finalizers").into_iter().map(str::to_owned).collect();
        if !finalizers.iter().any(|present| present == finalizer) {
            finalizers.push(finalizer.to_owned());
            json::set(value, "/metadata/finalizers", finalizers);
        }
    }

    /// PersistentVolumeClaimResize: a claim grows only where its class says that it may.
    pub(super) fn admit_growth(
        &self,
        resource: &Resource,
        claim: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let asked = |claim: &Value| json::at(claim, ASKED).and_then(quantity);
        if resource != &PERSISTENT_VOLUME_CLAIM || asked(claim) <= asked(old) {
            return Ok(());
        }
        let key = NamespacedName::new("", json::text(old, "/spec/storageClassName"));
        let class = self.head(&STORAGE_CLASS, &key);
        if class.is_some_and(|class| json::flag(&class.value, "/allowVolumeExpansion")) {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that \
                   provisions the pvc must support resize";
        Err(Status::forbidden(resource, json::text(claim, "/metadata/name"), why))
    }

    /// The class of claims that name none: of several the newest, then the first by name.
    fn default_storage_class(&self) -> Option<Arc<Object>> {
        let mut classes = self.head_objects(STORAGE_CLASS.storage);
        classes.retain(|class| is_default(&class.value));
        let created =
            |class: &Object| json::text(&class.value, "/metadata/creationTimestamp").to_owned();
        classes.sort_by_key(|class| (std::cmp::Reverse(created(class)), class.key.name.clone()));
        classes.into_iter().next()
    }
}
