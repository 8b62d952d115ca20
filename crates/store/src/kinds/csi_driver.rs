//! storage.k8s.io/v1 CSIDriver: what drivers of volumes say of themselves when they are installed.
//! Nothing here calls them: volumes are provisioned by directories alone.

use std::collections::BTreeSet;

use serde_json::{Value, json as tree};

use crate::json;
use crate::resource::Resource;
use crate::table::Column;
use crate::validate::{FieldErrors, immutable, one_of};

/// The shortest and the longest life of a token that a driver asks for, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

/// storage.k8s.io/v1 CSIDriver.
pub(crate) static CSI_DRIVER: Resource = Resource {
    group: "storage.k8s.io",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    namespaced: false,
    storage: "csidrivers.storage.k8s.io",
    returns_deleted: true,
    columns: &[
        Column::NAME,
        Column::boolean("AttachRequired", |value, _| {
            json::flag(value, "/spec/attachRequired").into()
        }),
        Column::boolean("PodInfoOnMount", |value, _| {
            json::flag(value, "/spec/podInfoOnMount").into()
        }),
        Column::boolean("StorageCapacity", |value, _| {
            json::flag(value, "/spec/storageCapacity").into()
        }),
        Column::text("TokenRequests", |value, _| audiences(value).into()),
        Column::boolean("RequiresRepublish", |value, _| {
            json::flag(value, "/spec/requiresRepublish").into()
        }),
        Column::text("Modes", |value, _| {
            json::texts(value, "/spec/volumeLifecycleModes").join(",").into()
        }),
        Column::AGE,
    ],
    default,
    validate,
    ..Resource::BASE
};

fn default(driver: &mut Value) {
    json::set_default(driver, "/spec/attachRequired", true);
    let flags = ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"];
    for name in flags {
        json::set_default(driver, &format!("/spec/{name}"), false);
    }
    json::set_default_text(driver, "/spec/fsGroupPolicy", "ReadWriteOnceWithFSType");
    json::set_default(driver, "/spec/volumeLifecycleModes", tree!(["Persistent"]));
}

fn validate(driver: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    one_of(errors, "spec.fsGroupPolicy", json::at(driver, "/spec/fsGroupPolicy"), &policies);
    for (index, mode) in json::items(driver, "/spec/volumeLifecycleModes").iter().enumerate() {
        let field = format!("spec.volumeLifecycleModes[{index}]");
        one_of(errors, &field, Some(mode), &["Ephemeral", "Persistent"]);
    }
    validate_tokens(driver, errors);
    let Some(old) = old else { return };
    // The real server spells the first so.
    for (field, name) in [
        ("spec.attachedRequired", "/spec/attachRequired"),
        ("spec.volumeLifecycleModes", "/spec/volumeLifecycleModes"),
    ] {
        immutable(errors, field, json::at(driver, name), json::at(old, name));
    }
}

fn validate_tokens(driver: &Value, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, request) in json::items(driver, "/spec/tokenRequests").iter().enumerate() {
        let field = format!("spec.tokenRequests[{index}]");
        let audience = json::text(request, "/audience");
        if !seen.insert(audience) {
            errors.duplicate(format!("{field}.audience"), audience);
        }
        let Some(seconds) = json::at(request, "/expirationSeconds").and_then(Value::as_i64) else {
            continue;
        };
        let (shortest, longest) = TOKEN_SECONDS;
        let field = format!("{field}.expirationSeconds");
        if seconds < shortest {
            errors.invalid(field, seconds, "may not specify a duration less than 10 minutes");
        } else if seconds > longest {
            errors.invalid(field, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

fn audiences(driver: &Value) -> String {
    match json::at(driver, "/spec/tokenRequests") {
        None => "<unset>".into(),
        Some(_) => {
            let requests = json::items(driver, "/spec/tokenRequests");
            let audiences = requests.iter().map(|request| json::text(request, "/audience"));
            audiences.collect::<Vec<_>>().join(",")
        }
    }
}
