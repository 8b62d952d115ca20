//! A claim: finds its volume, asks for one, or says why it waits.

use std::sync::Arc;

use serde_json::json;

use crate::controller::Input;
use crate::kind::Kind;
use crate::object::{Node, Object, is_true};
use crate::scheduler::can_have;
use crate::snapshot::Snapshot;
use crate::volume::{Claim, StorageClass, Volume};
use crate::write::{Outcome, Step, Write};

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, CLAIM_PROTECTION, COMPONENT, NO_PROVISIONER,
    PROVISIONED_BY, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER, remove_finalizer,
};

/// The label of a node with its name, which volumes are tied to.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A claim with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    claim: &'a Claim,
    snapshot: &'a Snapshot,
    input: &'a Input<'a>,
}

pub(super) fn reconcile(
    object: &Object,
    claim: &Claim,
    snapshot: &Snapshot,
    input: &Input<'_>,
    outcome: &mut Outcome,
) {
    if object.is_terminating() {
        if object.has_finalizer(CLAIM_PROTECTION) && !is_used(object, snapshot) {
            outcome.push(remove_finalizer(object, CLAIM_PROTECTION));
        }
        return;
    }
    let context = Context { object, claim, snapshot, input };
    match claim.spec.volume_name.as_str() {
        "" => context.find(outcome),
        name => context.take_named(name, outcome),
    }
}

/// Whether a pod that has a node uses the claim. Pods that wait for a node get none with it.
fn is_used(object: &Object, snapshot: &Snapshot) -> bool {
    snapshot.in_namespace(Kind::Pod, &object.meta.namespace).any(|pod| {
        pod.pod().is_some_and(|view| {
            !view.spec.node_name.is_empty() && view.claims().any(|name| name == object.meta.name)
        })
    })
}

impl Context<'_> {
    /// A claim that names its volume, or has it already.
    fn take_named(&self, name: &str, outcome: &mut Outcome) {
        let was_bound = self.object.meta.annotations.contains_key(BIND_COMPLETED);
        let found = self.snapshot.find(Kind::PersistentVolume, "", name);
        let Some((object, volume)) = found.and_then(|found| Some((found, found.volume()?))) else {
            if was_bound {
                let why = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                self.lose("ClaimLost", why, outcome);
            }
            return;
        };
        match &volume.spec.claim_ref {
            Some(other) if !self.is_mine(volume) => {
                if was_bound && !other.uid.is_empty() {
                    let why = "Two claims are bound to the same volume, this one is bound \
                               incorrectly";
                    self.lose("ClaimMisbound", why, outcome);
                } else {
                    let why = format!("volume {name:?} already bound to a different claim.");
                    outcome.report(self.tell("FailedBinding", why).warning());
                }
            }
            None if was_bound => {
                let why = "Bound claim has lost reference to PersistentVolume. Data on the volume \
                           is lost!";
                self.lose("ClaimLost", why, outcome);
            }
            _ => match volume.mismatch(self.claim).filter(|_| !was_bound) {
                Some(why) => {
                    let why = format!("Cannot bind to requested volume {name:?}: {why}");
                    outcome.report(self.tell("VolumeMismatch", why).warning());
                }
                None => self.bind(object, volume, outcome),
            },
        }
    }

    fn lose(&self, reason: &'static str, why: &str, outcome: &mut Outcome) {
        if self.claim.status.phase != "Lost" {
            let step = Step::quiet(self.object.patch_status(json!({"phase": "Lost"})));
            outcome.push(step.on_success(self.tell(reason, why).warning()));
        }
    }

    /// A claim that takes any volume that fits.
    fn find(&self, outcome: &mut Outcome) {
        let class = self.snapshot.find(Kind::StorageClass, "", self.claim.class());
        let class = class.and_then(|class| class.storage_class());
        let selected = self.object.meta.annotations.get(SELECTED_NODE);
        if let Some((object, volume)) = self.kept_for_this() {
            return self.bind(object, volume, outcome);
        }
        if class.is_some_and(StorageClass::waits) && selected.is_none() {
            let why = "waiting for first consumer to be created before binding";
            outcome.report(self.tell("WaitForFirstConsumer", why));
            return;
        }
        let node = selected.and_then(|name| self.snapshot.find(Kind::Node, "", name));
        let free = free_volume(self.object, self.claim, node, self.snapshot);
        if let Some((object, volume)) = free {
            return self.bind(object, volume, outcome);
        }
        match class {
            Some(class) if class.provisioner == PROVISIONER => {
                self.provision(class, node, outcome);
            }
            Some(class) if class.provisioner != NO_PROVISIONER => self.ask(class, outcome),
            None if !self.claim.class().is_empty() => {
                let name = self.claim.class();
                let why = format!("storageclass.storage.k8s.io {name:?} not found");
                outcome.report(self.tell("ProvisioningFailed", why).warning());
            }
            _ => {
                let why = "no persistent volumes available for this claim and no storage class is \
                           set";
                outcome.report(self.tell("FailedBinding", why));
            }
        }
    }

    /// The volume that somebody keeps for this claim, or that was made for it.
    fn kept_for_this(&self) -> Option<(&Arc<Object>, &Volume)> {
        let mut volumes = volumes(self.snapshot);
        volumes.find(|(object, volume)| {
            self.is_mine(volume)
                && !object.is_terminating()
                && volume.mismatch(self.claim).is_none()
        })
    }

    fn is_mine(&self, volume: &Volume) -> bool {
        volume.spec.claim_ref.as_ref().is_some_and(|claim| {
            claim.key() == self.object.meta.key()
                && (claim.uid.is_empty() || claim.uid == self.object.meta.uid)
        })
    }

    /// Joins the two, the volume first: whoever looks between sees a volume that is spoken for.
    fn bind(&self, volume: &Object, view: &Volume, outcome: &mut Outcome) {
        let meta = &self.object.meta;
        let reference = view.spec.claim_ref.as_ref();
        if reference.is_none_or(|claim| claim.uid.is_empty()) {
            let mut body = json!({"spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
            }}});
            if reference.is_none() {
                body["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            outcome.push(Step::quiet(volume.patch_unchanged(body)));
        }
        if view.status.phase != "Bound" {
            outcome.push(Step::quiet(volume.patch_status(json!({"phase": "Bound"}))));
        }
        let chosen = self.claim.spec.volume_name.is_empty();
        if chosen || !meta.annotations.contains_key(BIND_COMPLETED) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if chosen {
                annotations[BOUND_BY_CONTROLLER] = json!("yes");
            }
            let body = json!({"metadata": {"annotations": annotations},
                "spec": {"volumeName": volume.meta.name}});
            outcome.push(Step::quiet(self.object.patch(body)));
        }
        if self.claim.status.phase != "Bound" {
            let status = json!({"phase": "Bound", "accessModes": view.spec.access_modes,
                "capacity": view.spec.capacity});
            outcome.push(Step::quiet(self.object.patch_status(status)));
        }
    }

    /// Makes a directory, and the volume that lies in it.
    fn provision(&self, class: &StorageClass, node: Option<&Arc<Object>>, outcome: &mut Outcome) {
        let fail = |why: &str| {
            let name = self.claim.class();
            let why = format!("failed to provision volume with StorageClass {name:?}: {why}");
            self.tell("ProvisioningFailed", why).warning()
        };
        let Some(directory) = &self.input.config.volumes_directory else {
            return outcome.report(fail("this control plane has no directory for volumes"));
        };
        if self.claim.spec.volume_mode == "Block" {
            return outcome.report(fail("directories are no block devices: volumeMode Filesystem"));
        }
        if self.claim.spec.selector.is_some() {
            return outcome.report(fail("claim.Spec.Selector is not supported"));
        }
        let Some(node) = node.or_else(|| any_node(self.snapshot)) else {
            return outcome.report(fail("no node is ready"));
        };
        let volume = format!("pvc-{}", self.object.meta.uid);
        let body = self.new_volume(class, node, &volume, directory);
        let made = format!("Successfully provisioned volume {volume}");
        outcome.push(Step::quiet(Write::MakeVolume { volume }).on_failure(fail("{error}")));
        let write = Write::Create { kind: Kind::PersistentVolume, namespace: String::new(), body };
        let step = Step::quiet(write).on_success(self.tell("ProvisioningSucceeded", made));
        outcome.push(step.on_failure(fail("{error}")));
    }

    fn new_volume(
        &self,
        class: &StorageClass,
        node: &Object,
        name: &str,
        directory: &str,
    ) -> serde_json::Value {
        let (meta, spec) = (&self.object.meta, &self.claim.spec);
        let host = node.meta.labels.get(HOSTNAME).unwrap_or(&node.meta.name);
        let mut body = Kind::PersistentVolume
            .object(json!({"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}}));
        body["spec"] = json!({
            "accessModes": spec.access_modes,
            "capacity": {"storage": spec.resources.requests.get("storage")},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
            },
            "hostPath": {"path": format!("{directory}/{name}"), "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [host]},
            ]}]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": self.claim.class(),
            "volumeMode": "Filesystem",
        });
        body
    }

    /// Asks a provisioner that somebody else runs.
    fn ask(&self, class: &StorageClass, outcome: &mut Outcome) {
        let provisioner = &class.provisioner;
        if self.object.meta.annotations.get(STORAGE_PROVISIONER) != Some(provisioner) {
            let body = json!({"metadata": {"annotations": {STORAGE_PROVISIONER: provisioner}}});
            outcome.push(Step::quiet(self.object.patch(body)));
        }
        let why = format!(
            "Waiting for a volume to be created either by the external provisioner \
             '{provisioner}' or manually by the system administrator. If volume creation is \
             delayed, please verify that the provisioner is running and correctly registered."
        );
        outcome.report(self.tell("ExternalProvisioning", why));
    }

    fn tell(&self, reason: &'static str, why: impl Into<String>) -> crate::write::Report {
        self.object.report(COMPONENT, reason, why)
    }
}

/// The smallest volume that fits a claim and that nobody has; on a node, where one is named.
pub(crate) fn free_volume<'a>(
    object: &Object,
    claim: &Claim,
    node: Option<&Arc<Object>>,
    snapshot: &'a Snapshot,
) -> Option<(&'a Arc<Object>, &'a Volume)> {
    let fits = |(found, volume): &(&Arc<Object>, &Volume)| {
        let labels = &found.meta.labels;
        let selector = claim.spec.selector.as_ref();
        let kept = volume.spec.claim_ref.as_ref();
        !found.is_terminating()
            && kept.is_none_or(|kept| kept.uid.is_empty() && kept.key() == object.meta.key())
            && volume.status.phase != "Failed"
            && volume.mismatch(claim).is_none()
            && selector.is_none_or(|selector| selector.matches(labels))
            && node.is_none_or(|node| can_have(volume, node))
    };
    volumes(snapshot)
        .filter(fits)
        .min_by_key(|(object, volume)| (volume.capacity(), object.meta.name.clone()))
}

fn volumes(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<Object>, &Volume)> {
    snapshot.all(Kind::PersistentVolume).filter_map(|object| Some((object, object.volume()?)))
}

/// A node for claims that do not wait for a pod.
fn any_node(snapshot: &Snapshot) -> Option<&Arc<Object>> {
    let fits = |node: &Node| {
        !node.spec.unschedulable
            && node.spec.taints.is_empty()
            && is_true(&node.status.conditions, "Ready")
    };
    snapshot.all(Kind::Node).find(|node| node.node().is_some_and(fits))
}
