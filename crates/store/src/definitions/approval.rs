//! Definitions in groups of Kubernetes itself, which somebody has to have approved.
//!
//! Source: apiextensions.k8s.io/v1, condition `KubernetesAPIApprovalPolicyConformant`; KEP-1111.

use model::Timestamp;
use serde_json::Value;

use super::set_condition;
use crate::json;
use crate::validate::FieldErrors;

/// Where a definition says who approved it.
const ANNOTATION: &str = "api-approved.kubernetes.io";
/// The condition that tells.
const CONDITION: &str = "KubernetesAPIApprovalPolicyConformant";
/// Domains whose groups are those of Kubernetes itself.
const PROTECTED: [&str; 2] = ["k8s.io", "kubernetes.io"];
/// Where people read about it.
const EXPLAINED: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// What the annotation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Approval {
    /// Nothing.
    Missing,
    /// That nobody approved it, and why that may be.
    Bypassed,
    /// Where it was approved.
    Approved,
    /// Something else.
    Invalid,
}

/// Sets the condition of a definition in a protected group.
pub(super) fn judge(definition: &mut Value, now: Timestamp) {
    if !is_protected(definition) {
        return;
    }
    let (approval, message) = approval(definition);
    let reason = match approval {
        Approval::Missing => "MissingAnnotation",
        Approval::Bypassed => "UnapprovedAnnotation",
        Approval::Approved => "ApprovedAnnotation",
        Approval::Invalid => "InvalidAnnotation",
    };
    let is_approved = approval == Approval::Approved;
    set_condition(definition, CONDITION, is_approved, (reason, &message), now);
}

/// Refuses a definition in a protected group that does not say who approved it; one that was let in
/// stays as it is.
pub(super) fn validate(definition: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let (found, why) = approval(definition);
    if !is_protected(definition) || old.is_some_and(|old| approval(old).0 == found) {
        return;
    }
    let field = format!("metadata.annotations[{ANNOTATION}]");
    match found {
        Approval::Missing => errors.required(field, &why),
        Approval::Invalid => errors.invalid(field, annotation(definition), &why),
        Approval::Approved | Approval::Bypassed => {}
    }
}

fn is_protected(definition: &Value) -> bool {
    let group = json::text(definition, "/spec/group");
    PROTECTED.iter().any(|domain| {
        group.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    })
}

fn annotation(definition: &Value) -> &str {
    json::text(definition, "/metadata/annotations/api-approved.kubernetes.io")
}

/// What the annotation says, and that for people.
fn approval(definition: &Value) -> (Approval, String) {
    let text = annotation(definition);
    let wanted = format!("protected groups must have approval annotation {ANNOTATION:?}");
    if text.is_empty() {
        (Approval::Missing, format!("{wanted}, {EXPLAINED}"))
    } else if text.starts_with("unapproved") {
        (Approval::Bypassed, format!("not approved: {text:?}"))
    } else if is_url(text) {
        (Approval::Approved, format!("approved in {text}"))
    } else {
        let how = "with either a URL or a reason starting with \"unapproved\"";
        (Approval::Invalid, format!("{wanted} {how}, {EXPLAINED}"))
    }
}

/// Whether a text is a URL with a scheme and a host.
fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let is_of_scheme = |one: char| one.is_ascii_alphanumeric() || "+-.".contains(one);
    scheme.starts_with(|one: char| one.is_ascii_alphabetic())
        && scheme.chars().all(is_of_scheme)
        && !host.is_empty()
        && !text.contains(|one: char| one.is_ascii_control())
        && !host.contains(|one: char| one.is_whitespace() || "<>\"".contains(one))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(group: &str, annotation: &str) -> Value {
        let mut annotations = json!({});
        if !annotation.is_empty() {
            annotations[ANNOTATION] = annotation.into();
        }
        json!({"metadata": {"annotations": annotations}, "spec": {"group": group}})
    }

    #[test]
    fn groups_of_kubernetes_itself_say_who_approved_them() {
        let none = "protected groups must have approval annotation \
                    \"api-approved.kubernetes.io\"";
        let url = "https://github.com/kubernetes/enhancements/pull/1";
        let missing = Some(("False", "MissingAnnotation"));
        let invalid = Some(("False", "InvalidAnnotation"));
        let bypassed = Some(("False", "UnapprovedAnnotation"));
        let cases = [
            ("example.com", "", None, ""),
            ("myk8s.io", "", None, ""),
            ("k8s.io", "", missing, none),
            ("a.kubernetes.io", "", missing, none),
            ("a.k8s.io", "because", invalid, none),
            ("a.k8s.io", "https:///path", invalid, none),
            ("a.k8s.io", "unapproved, a test", bypassed, ""),
            ("a.k8s.io", url, Some(("True", "ApprovedAnnotation")), ""),
        ];
        for (group, annotation, condition, refused) in cases {
            let mut crd = definition(group, annotation);
            let mut errors = FieldErrors::default();
            validate(&crd, None, &mut errors);
            let told = errors.summary();
            assert_eq!(refused.is_empty(), errors.is_empty(), "{group} {annotation}: {told}");
            assert!(told.contains(refused), "{group} {annotation}: {told}");
            let mut errors = FieldErrors::default();
            validate(&crd, Some(&crd), &mut errors);
            assert!(errors.is_empty(), "what stays as it is is let be");
            judge(&mut crd, Timestamp::from_seconds(1));
            let found = crd.pointer("/status/conditions/0");
            let found = found.map(|one| (json::text(one, "/status"), json::text(one, "/reason")));
            assert_eq!(found, condition, "{group} {annotation}");
        }
        let mut crd = definition("a.k8s.io", url);
        judge(&mut crd, Timestamp::from_seconds(1));
        assert_eq!(crd["status"]["conditions"][0]["message"], format!("approved in {url}"));
        let mut errors = FieldErrors::default();
        validate(&definition("a.k8s.io", ""), Some(&crd), &mut errors);
        let told = errors.summary();
        let field = "metadata.annotations[api-approved.kubernetes.io]: Required value: ";
        assert_eq!(told, format!("{field}{none}, {EXPLAINED}"));
    }
}
