//! What happens to a definition's objects when the definition changes or goes.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use super::{CLEANUP_FINALIZER, MAX_COMPILED, condition, establish, set_condition};
use crate::kinds::core::NAMESPACE;
use crate::kinds::definition::DEFINITION;
use crate::state::Content;
use crate::{
    Context, DeleteOptions, Object, Operation, Request, Resource, Status, Store, json, registry,
};

/// Where an object names its owners.
const OWNERS: &str = "/metadata/ownerReferences";

impl Store {
    /// Whether objects of a definition can be made: not while it is going, nor when it is gone.
    pub(crate) fn admit_custom(&self, request: &Request) -> Result<(), Status> {
        if request.resource.custom.is_none() {
            return Ok(());
        }
        let key = NamespacedName::new("", request.resource.storage);
        match self.head(&DEFINITION, &key) {
            None => Err(Status::unknown_path()),
            Some(definition) if definition.is_terminating() => {
                let mut status = Status::method_not_allowed();
                status.message =
                    "create not allowed while custom resource definition is terminating".to_owned();
                Err(status)
            }
            Some(_) => Ok(()),
        }
    }

    /// Settles the names of a definition that is written.
    pub(crate) fn establish(
        &self,
        resource: &Resource,
        value: &mut Value,
        context: &Context<'_>,
    ) -> Result<(), Status> {
        if resource != &DEFINITION {
            return Ok(());
        }
        let others = self.head_objects(DEFINITION.storage);
        establish(value, others.iter().map(|one| &*one.value), context.now);
        if self.definitions.has_room(value) {
            return Ok(());
        }
        let message = format!(
            "{MAX_COMPILED} different definitions were made since the control plane started, \
             which is the most it keeps; start it again"
        );
        Err(Status::failure(507, "InsufficientStorage", message))
    }

    /// Deletes all objects of a definition that is being deleted, in its transaction. What has
    /// finalizers of its own stays for a while, and the definition with it.
    pub(crate) fn delete_instances(
        &mut self,
        definition: &mut Value,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        let name = json::text(definition, "/metadata/name").to_owned();
        if let Some(row) = self.definitions.storage_row(&name) {
            for object in self.head_objects(&name) {
                self.remove(row, &object, &DeleteOptions::default(), context)?;
            }
        }
        if self.head_objects(&name).is_empty() {
            return Ok(());
        }
        let why = ("InstanceDeletionInProgress", "CustomResource deletion is in progress");
        set_condition(definition, "Terminating", true, why, context.now);
        let mut finalizers = json::items(definition, "/metadata/finalizers").to_vec();
        if !finalizers.iter().any(|one| one == CLEANUP_FINALIZER) {
            finalizers.push(CLEANUP_FINALIZER.into());
        }
        json::set(definition, "/metadata/finalizers", finalizers);
        Ok(())
    }

    /// Follows the removals of a transaction: the last object of a definition that waits lets it
    /// go, the names of a definition that went are free for others, and what was owned goes too.
    /// A loop, not a recursion: chains of owners may be long.
    pub(crate) fn follow_removals(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while let Some(removed) = self.removed.pop() {
            if removed.resource == &DEFINITION {
                self.accept_others(&removed, context);
            } else if removed.resource.custom.is_some() {
                self.finish_definition(removed.resource.storage, context);
            }
            self.remove_dependents(&removed, context)?;
        }
        Ok(())
    }

    /// Deletes all custom objects of a namespace that is being deleted: the controller of
    /// namespaces knows the program's own kinds alone.
    pub(crate) fn delete_custom_objects(
        &mut self,
        namespace: &str,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        for object in self.custom_objects(namespace) {
            self.remove(object.resource, &object, &DeleteOptions::default(), context)?;
        }
        Ok(())
    }

    /// Keeps a namespace as long as custom objects are in it.
    pub(crate) fn check_emptied(&self, namespace: &str) -> Result<(), Status> {
        match self.custom_objects(namespace).len() {
            0 => Ok(()),
            count => {
                let why =
                    format!("{count} custom objects are in it, whose finalizers are not done");
                Err(Status::conflict(&NAMESPACE, namespace, why))
            }
        }
    }

    fn custom_objects(&self, namespace: &str) -> Vec<Arc<Object>> {
        let storages: Vec<&'static str> = self.definitions.storages().collect();
        let objects = storages.into_iter().flat_map(|storage| self.head_objects(storage));
        objects.filter(|object| object.key.namespace == namespace).collect()
    }

    /// Takes a custom owner out of what it owns, when that shall stay.
    pub(crate) fn orphan_dependents(&mut self, owner: &Object, context: &mut Context<'_>) {
        for dependent in self.dependents(owner) {
            let mut content = Content::of(&dependent);
            let mut owners = json::items(&content.value, OWNERS).to_vec();
            owners.retain(|one| json::text(one, "/uid") != owner.uid());
            match owners.is_empty() {
                true => {
                    json::remove(&mut content.value, OWNERS);
                }
                false => json::set(&mut content.value, OWNERS, owners),
            }
            let key = dependent.key.clone();
            self.commit(dependent.resource, key, Operation::Update, content, context);
        }
    }

    /// Garbage collection where custom objects take part: the controller that does it for all
    /// else does not see them.
    fn remove_dependents(
        &mut self,
        owner: &Object,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        for dependent in self.dependents(owner) {
            let owners = json::items(&dependent.value, OWNERS);
            let lives = |one: &Value| self.lives(one, &dependent.key.namespace);
            if !dependent.is_terminating() && !owners.iter().any(lives) {
                let options = DeleteOptions::default();
                self.remove(dependent.resource, &dependent, &options, context)?;
            }
        }
        Ok(())
    }

    /// What names the owner as one of its owners; of an owner that is not custom, the custom ones.
    fn dependents(&self, owner: &Object) -> Vec<Arc<Object>> {
        let storages: Vec<&'static str> = match owner.resource.custom {
            Some(_) => self.shelves.keys().copied().collect(),
            None => self.definitions.storages().collect(),
        };
        let objects =
            storages.into_iter().flat_map(|storage| self.head_objects_with(storage, owner.uid()));
        let is_owned = |object: &Arc<Object>| {
            let mut owners = json::items(&object.value, OWNERS).iter();
            owners.any(|one| json::text(one, "/uid") == owner.uid())
        };
        objects.filter(is_owned).collect()
    }

    /// Whether an owner is there. One of a kind that is not known may be.
    fn lives(&self, reference: &Value, namespace: &str) -> bool {
        let (version, kind) =
            (json::text(reference, "/apiVersion"), json::text(reference, "/kind"));
        let is_it = |row: &&'static Resource| row.kind == kind && row.api_version() == version;
        let custom = || self.definitions.served().find(is_it);
        let Some(row) = registry::by_kind(version, kind).or_else(custom) else { return true };
        let namespace = if row.namespaced { namespace } else { "" };
        let key = NamespacedName::new(namespace, json::text(reference, "/name"));
        self.head(row, &key).is_some_and(|owner| owner.uid() == json::text(reference, "/uid"))
    }

    fn finish_definition(&mut self, name: &str, context: &mut Context<'_>) {
        let key = NamespacedName::new("", name);
        let waiting = self.head(&DEFINITION, &key).filter(|one| one.is_terminating());
        let Some(definition) = waiting else { return };
        let mut content = Content::of(&definition);
        let mut finalizers = json::items(&content.value, "/metadata/finalizers").to_vec();
        let count = finalizers.len();
        finalizers.retain(|one| one != CLEANUP_FINALIZER);
        if finalizers.len() == count || !self.head_objects(name).is_empty() {
            return;
        }
        let operation = match finalizers.is_empty() {
            true => Operation::Delete,
            false => Operation::Update,
        };
        json::set(&mut content.value, "/metadata/finalizers", finalizers);
        self.commit(&DEFINITION, key, operation, content, context);
    }

    fn accept_others(&mut self, removed: &Object, context: &mut Context<'_>) {
        let group = json::text(&removed.value, "/spec/group");
        let waits = |other: &Arc<Object>| {
            json::text(&other.value, "/spec/group") == group
                && condition(&other.value, "NamesAccepted") == "False"
        };
        let waiting = self.head_objects(DEFINITION.storage).into_iter().filter(waits);
        for other in waiting.collect::<Vec<_>>() {
            // Read anew: the one before may have got what this one wants too.
            let all = self.head_objects(DEFINITION.storage);
            let mut content = Content::of(&other);
            establish(&mut content.value, all.iter().map(|one| &*one.value), context.now);
            let key = other.key.clone();
            if content.value != other.value {
                self.commit(&DEFINITION, key, Operation::Update, content, context);
            }
        }
    }
}
