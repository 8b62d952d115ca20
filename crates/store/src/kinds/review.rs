//! authorization.k8s.io and authentication.k8s.io: questions that are answered and never stored.
//! What they answer is [`crate::reviews`].

use crate::resource::Resource;

/// authorization.k8s.io/v1 LocalSubjectAccessReview.
pub(crate) static LOCAL_SUBJECT_ACCESS: Resource = Resource {
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    namespaced: true,
    ..AUTHORIZATION
};

/// authorization.k8s.io/v1 SelfSubjectAccessReview.
pub(crate) static SELF_SUBJECT_ACCESS: Resource = Resource {
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    ..AUTHORIZATION
};

/// authorization.k8s.io/v1 SelfSubjectRulesReview.
pub(crate) static SELF_SUBJECT_RULES: Resource = Resource {
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    ..AUTHORIZATION
};

/// authorization.k8s.io/v1 SubjectAccessReview.
pub(crate) static SUBJECT_ACCESS: Resource = Resource {
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    ..AUTHORIZATION
};

/// authentication.k8s.io/v1 SelfSubjectReview.
pub(crate) static SELF_SUBJECT: Resource = Resource {
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    ..AUTHENTICATION
};

/// authentication.k8s.io/v1 TokenReview.
pub(crate) static TOKEN: Resource = Resource {
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    ..AUTHENTICATION
};

/// authentication.k8s.io/v1 TokenRequest: the body of `serviceaccounts/token`, on no path of its
/// own.
pub(crate) static TOKEN_REQUEST: Resource =
    Resource { kind: "TokenRequest", namespaced: true, ..AUTHENTICATION };

const AUTHORIZATION: Resource = Resource { group: "authorization.k8s.io", ..REVIEW };

const AUTHENTICATION: Resource = Resource { group: "authentication.k8s.io", ..REVIEW };

const REVIEW: Resource = Resource { namespaced: false, verbs: &["create"], ..Resource::BASE };
