//! core/v1 PersistentVolume and PersistentVolumeClaim, storage.k8s.io/v1 StorageClass.

use serde_json::{Value, json as tree};

use super::limits::{amounts, quantity};
use crate::json;
use crate::names::subdomain_faults;
use crate::resource::{Resource, Subresource};
use crate::table::Column;
use crate::validate::{FieldErrors, immutable, one_of};

/// The annotation of the class of claims that name none.
pub(crate) const IS_DEFAULT_CLASS: &str =
    "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";
/// How the nodes may have a volume, with the words of columns.
const ACCESS_MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
/// Members of a PersistentVolume's spec that are no kind of volume.
const COMMON: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// core/v1 PersistentVolume.
pub(crate) static PERSISTENT_VOLUME: Resource = Resource {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    storage: "persistentvolumes",
    returns_deleted: true,
    columns: &[
        Column::NAME,
        Column::text("Capacity", |value, _| storage(value, "/spec/capacity").into()),
        Column::text("Access Modes", |value, _| modes(value, "/spec/accessModes").into()),
        Column::text("Reclaim Policy", |value, _| {
            json::text(value, "/spec/persistentVolumeReclaimPolicy").into()
        }),
        Column::text("Status", |value, _| phase(value).into()),
        Column::text("Claim", |value, _| claim_of(value).into()),
        Column::text("StorageClass", |value, _| class(value).into()),
        Column::text("VolumeAttributesClass", |value, _| attributes_class(value).into()),
        Column::text("Reason", |value, _| json::text(value, "/status/reason").into()),
        Column::AGE,
        Column::text("VolumeMode", |value, _| volume_mode(value).into()).wide(),
    ],
    default: |value| {
        json::set_default_text(value, "/spec/persistentVolumeReclaimPolicy", "Retain");
        json::set_default_text(value, "/spec/volumeMode", "Filesystem");
        if json::at(value, "/spec/hostPath").is_some() {
            json::set_default(value, "/spec/hostPath/type", "");
        }
    },
    prepare_create: |value| json::set(value, "/status", tree!({"phase": "Pending"})),
    validate: validate_volume,
    ..Resource::BASE
};

/// core/v1 PersistentVolumeClaim.
pub(crate) static PERSISTENT_VOLUME_CLAIM: Resource = Resource {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    storage: "persistentvolumeclaims",
    returns_deleted: true,
    columns: &[
        Column::NAME,
        Column::text("Status", |value, _| phase(value).into()),
        Column::text("Volume", |value, _| json::text(value, "/spec/volumeName").into()),
        Column::text("Capacity", |value, _| {
            if is_bound(value) { storage(value, "/status/capacity").into() } else { "".into() }
        }),
        Column::text("Access Modes", |value, _| {
            if is_bound(value) { modes(value, "/status/accessModes").into() } else { "".into() }
        }),
        Column::text("StorageClass", |value, _| class(value).into()),
        Column::text("VolumeAttributesClass", |value, _| attributes_class(value).into()),
        Column::AGE,
        Column::text("VolumeMode", |value, _| volume_mode(value).into()).wide(),
    ],
    default: default_claim,
    prepare_create: |value| json::set(value, "/status", tree!({"phase": "Pending"})),
    validate: validate_claim,
    ..Resource::BASE
};

/// storage.k8s.io/v1 StorageClass.
pub(crate) static STORAGE_CLASS: Resource = Resource {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    storage: "storageclasses.storage.k8s.io",
    returns_deleted: true,
    columns: &[
        Column::titled(|value, _| {
            let mark = if is_default(value) { " (default)" } else { "" };
            format!("{}{mark}", json::text(value, "/metadata/name")).into()
        }),
        Column::text("Provisioner", |value, _| json::text(value, "/provisioner").into()),
        Column::text("ReclaimPolicy", |value, _| json::text(value, "/reclaimPolicy").into()),
        Column::text("VolumeBindingMode", |value, _| {
            json::text(value, "/volumeBindingMode").into()
        }),
        Column::boolean("AllowVolumeExpansion", |value, _| {
            json::flag(value, "/allowVolumeExpansion").into()
        }),
        Column::AGE,
    ],
    default: |value| {
        json::set_default_text(value, "/reclaimPolicy", "Delete");
        json::set_default_text(value, "/volumeBindingMode", "Immediate");
    },
    validate: validate_class,
    ..Resource::BASE
};

/// Fills in a claim, or a template of claims.
pub(crate) fn default_claim(claim: &mut Value) {
    json::set_default_text(claim, "/spec/volumeMode", "Filesystem");
}

/// Whether claims that name no class get this one.
pub(crate) fn is_default(class: &Value) -> bool {
    json::text(class, IS_DEFAULT_CLASS) == "true"
}

/// Whether a claim has its volume.
fn is_bound(claim: &Value) -> bool {
    !json::text(claim, "/spec/volumeName").is_empty()
}

fn phase(value: &Value) -> &str {
    match json::at(value, "/metadata/deletionTimestamp") {
        Some(_) => "Terminating",
        None => json::text(value, "/status/phase"),
    }
}

fn storage(value: &Value, pointer: &str) -> String {
    amounts(value, pointer).get("storage").map(ToString::to_string).unwrap_or_default()
}

fn modes(value: &Value, pointer: &str) -> String {
    let given = json::texts(value, pointer);
    let known = ACCESS_MODES.iter().filter(|(mode, _)| given.contains(mode));
    known.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn claim_of(volume: &Value) -> String {
    match json::text(volume, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", json::text(volume, "/spec/claimRef/namespace")),
    }
}

fn class(value: &Value) -> &str {
    json::text(value, "/spec/storageClassName")
}

fn attributes_class(value: &Value) -> &str {
    match json::text(value, "/spec/volumeAttributesClassName") {
        "" => "<unset>",
        name => name,
    }
}

fn volume_mode(value: &Value) -> &str {
    match json::text(value, "/spec/volumeMode") {
        "" => "<unset>",
        mode => mode,
    }
}

fn validate_volume(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let capacity = json::members(value, "/spec/capacity").map(|(name, _)| name);
    match capacity.collect::<Vec<_>>().as_slice() {
        [] => errors.required("spec.capacity", ""),
        ["storage"] => validate_storage(value, "capacity", "/spec/capacity/storage", errors),
        names => errors.unsupported("spec.capacity", &names.join(","), &["storage"]),
    }
    validate_modes(value, errors);
    let sources: Vec<&str> = sources(value).map(|(name, _)| name).collect();
    match sources.as_slice() {
        [] => errors.required("spec", "must specify a volume type"),
        [_] => {}
        [_, second, ..] => {
            let why = "may not specify more than 1 volume type";
            errors.forbidden(format!("spec.{second}"), why);
        }
    }
    for (kind, needed) in [("hostPath", "/spec/hostPath"), ("local", "/spec/local")] {
        if json::at(value, needed).is_none() {
            continue;
        }
        let path = json::text(value, &format!("{needed}/path"));
        if path.is_empty() {
            errors.required(format!("spec.{kind}.path"), "");
        } else if path.split('/').any(|part| part == "..") {
            errors.invalid(format!("spec.{kind}.path"), path, "must not contain '..'");
        }
    }
    let has_affinity = json::at(value, "/spec/nodeAffinity/required").is_some();
    if json::at(value, "/spec/local").is_some() && !has_affinity {
        errors.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let policy = json::at(value, "/spec/persistentVolumeReclaimPolicy");
    one_of(errors, "spec.persistentVolumeReclaimPolicy", policy, &policies);
    validate_common(value, errors);
    let Some(old) = old else { return };
    if !self::sources(value).eq(self::sources(old)) {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.forbidden("spec.persistentvolumesource", why);
    }
    let member = |object, name: &str| json::at(object, &format!("/spec/{name}"));
    immutable(errors, "spec.volumeMode", member(value, "volumeMode"), member(old, "volumeMode"));
    if member(old, "nodeAffinity").is_some() {
        let affinity = member(value, "nodeAffinity");
        immutable(errors, "spec.nodeAffinity", affinity, member(old, "nodeAffinity"));
    }
}

/// What a PersistentVolume is made of: one member that names its kind.
fn sources(volume: &Value) -> impl Iterator<Item = (&str, &Value)> {
    json::members(volume, "/spec").filter(|(name, _)| !COMMON.contains(name))
}

fn validate_claim(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    validate_modes(value, errors);
    let pointer = "/spec/resources/requests/storage";
    if json::at(value, pointer).is_none() {
        errors.required("spec.resources[storage]", "");
    } else {
        validate_storage(value, "resources.requests", pointer, errors);
    }
    validate_common(value, errors);
    if let Some(selector) = json::at(value, "/spec/selector") {
        super::apps::validate_label_selector("spec.selector", Some(selector), errors);
    }
    let Some(old) = old else { return };
    let settled = |claim: &Value| {
        let mut spec = json::at(claim, "/spec").cloned().unwrap_or_default();
        if is_bound(old) {
            json::remove(&mut spec, pointer.trim_start_matches("/spec"));
        } else {
            // The binder gives a claim its volume once, and a claim without a class may get one.
            json::remove(&mut spec, "/volumeName");
        }
        if json::at(old, "/spec/storageClassName").is_none() {
            json::remove(&mut spec, "/storageClassName");
        }
        json::remove(&mut spec, "/volumeAttributesClassName");
        spec
    };
    if settled(value) != settled(old) {
        let why = "spec is immutable after creation except resources.requests and \
                   volumeAttributesClassName for bound claims";
        errors.forbidden("spec", why);
    }
    let asked = |claim: &Value| json::at(claim, pointer).and_then(quantity);
    if let (Some(new), Some(old)) = (asked(value), asked(old))
        && new < old
    {
        let why = "field can not be less than status.capacity";
        errors.forbidden("spec.resources.requests.storage", why);
    }
}

fn validate_modes(value: &Value, errors: &mut FieldErrors) {
    let given = json::texts(value, "/spec/accessModes");
    if given.is_empty() {
        let why = "at least 1 access mode is required";
        errors.required("spec.accessModes", why);
    }
    let known = ACCESS_MODES.map(|(mode, _)| mode);
    let mut sorted = known;
    sorted.sort_unstable();
    for mode in given.iter().filter(|mode| !known.contains(mode)) {
        errors.unsupported("spec.accessModes", mode, &sorted);
    }
    if given.len() > 1 && given.contains(&"ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.forbidden("spec.accessModes", why);
    }
}

fn validate_storage(value: &Value, list: &str, pointer: &str, errors: &mut FieldErrors) {
    let Some(amount) = json::at(value, pointer) else { return };
    let field = format!("spec.{list}[storage]");
    match quantity(amount) {
        None => errors.invalid(field, amount.clone(), "must be a quantity"),
        Some(given) if given.is_negative() || given.is_zero() => {
            errors.invalid(field, amount.clone(), "must be greater than zero");
        }
        Some(_) => {}
    }
}

fn validate_common(value: &Value, errors: &mut FieldErrors) {
    let mode = json::at(value, "/spec/volumeMode");
    one_of(errors, "spec.volumeMode", mode, &["Block", "Filesystem"]);
    let class = class(value);
    if !class.is_empty() {
        for fault in subdomain_faults(class) {
            errors.invalid("spec.storageClassName", class, &fault);
        }
    }
}

fn validate_class(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    if json::text(value, "/provisioner").is_empty() {
        errors.required("provisioner", "");
    }
    let policy = json::at(value, "/reclaimPolicy");
    one_of(errors, "reclaimPolicy", policy, &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    one_of(errors, "volumeBindingMode", json::at(value, "/volumeBindingMode"), &modes);
    let Some(old) = old else { return };
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if value.get(name) != old.get(name) {
            errors.forbidden(name, &format!("updates to {name} are forbidden."));
        }
    }
    immutable(
        errors,
        "volumeBindingMode",
        value.get("volumeBindingMode"),
        old.get("volumeBindingMode"),
    );
}
