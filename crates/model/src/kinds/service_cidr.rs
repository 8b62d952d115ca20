//! networking.k8s.io/v1 ServiceCIDR, narrowed.

use serde::{Deserialize, Serialize};

use crate::meta::{ObjectMeta, null_as_default};

/// Ranges that addresses of Services come from (KEP-1880).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidr {
    /// Name.
    pub metadata: ObjectMeta,
    /// The ranges.
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidrSpec {
    /// The ranges as text, one a family: a fault in one shall not hide the other objects.
    #[serde(deserialize_with = "null_as_default")]
    pub cidrs: Vec<String>,
}
