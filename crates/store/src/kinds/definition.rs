//! apiextensions.k8s.io/v1: CustomResourceDefinition.

use serde_json::{Value, json as tree};

use crate::definitions;
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::Column;

/// apiextensions.k8s.io/v1 CustomResourceDefinition.
pub(crate) static DEFINITION: Resource = Resource {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    storage: "customresourcedefinitions.apiextensions.k8s.io",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Created At", |value, _| {
            json::text(value, "/metadata/creationTimestamp").into()
        }),
    ],
    default,
    validate: definitions::validate,
    ..Resource::BASE
};

fn default(value: &mut Value) {
    json::set_default(value, "/spec/conversion", tree!({"strategy": "None"}));
    json::set_default_text(value, "/spec/conversion/strategy", "None");
    let service = "/spec/conversion/webhook/clientConfig/service";
    if json::at(value, service).is_some() {
        json::set_default(value, &format!("{service}/port"), 443);
    }
    let kind = json::text(value, "/spec/names/kind").to_owned();
    if !kind.is_empty() {
        json::set_default_text(value, "/spec/names/singular", &kind.to_lowercase());
        json::set_default_text(value, "/spec/names/listKind", &format!("{kind}List"));
    }
    // What means nothing is not kept.
    if !json::flag(value, "/spec/preserveUnknownFields") {
        json::remove(value, "/spec/preserveUnknownFields");
    }
}
