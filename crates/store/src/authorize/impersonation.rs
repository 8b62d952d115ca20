//! What the verb `impersonate` is asked for: users, groups and what else says who somebody is.
//! Roles name them as resources, which no path serves.
//!
//! Source: kubernetes.io, "User impersonation".

use crate::Resource;
use crate::kinds::core::SERVICE_ACCOUNT;

/// Users by name.
pub static USERS: Resource = Resource { plural: "users", namespaced: false, ..Resource::BASE };
/// Groups by name.
pub static GROUPS: Resource = Resource { plural: "groups", namespaced: false, ..Resource::BASE };
/// Users' uids.
pub static UIDS: Resource =
    Resource { group: AUTHENTICATION, plural: "uids", namespaced: false, ..Resource::BASE };
/// Extra values; their keys stand as subresources.
pub static USER_EXTRAS: Resource =
    Resource { group: AUTHENTICATION, plural: "userextras", namespaced: false, ..Resource::BASE };

const AUTHENTICATION: &str = "authentication.k8s.io";

/// ServiceAccounts, which are impersonated by namespace and name.
pub fn accounts() -> &'static Resource {
    &SERVICE_ACCOUNT
}
