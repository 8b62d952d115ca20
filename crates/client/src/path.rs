//! Where a resource lives on an API server.

use std::borrow::Cow;
use std::fmt;

/// The path of a collection, an object or a subresource, built from its parts.
///
/// A namespaced collection without a namespace is that collection over all namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcePath {
    group_version: Cow<'static, str>,
    plural: Cow<'static, str>,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<Cow<'static, str>>,
}

impl ResourcePath {
    /// A collection: `group_version` as `apiVersion` has it (`v1`, `apps/v1`), and the plural.
    pub fn new(
        group_version: impl Into<Cow<'static, str>>,
        plural: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            group_version: group_version.into(),
            plural: plural.into(),
            namespace: None,
            name: None,
            subresource: None,
        }
    }

    /// The same within a namespace. An empty namespace means none.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        let namespace = namespace.into();
        self.namespace = (!namespace.is_empty()).then_some(namespace);
        self
    }

    /// One object of the collection.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A subresource of the object: `status`, `scale`, `binding`, `log`…
    pub fn subresource(mut self, subresource: impl Into<Cow<'static, str>>) -> Self {
        self.subresource = Some(subresource.into());
        self
    }
}

impl fmt::Display for ResourcePath {
    /// The absolute path, with every part percent-encoded: a name from outside cannot change
    /// which resource is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = if self.group_version.contains('/') { "apis" } else { "api" };
        write!(f, "/{root}/{}", self.group_version)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "/namespaces/{}", Encoded(namespace))?;
        }
        write!(f, "/{}", Encoded(&self.plural))?;
        for part in [self.name.as_deref(), self.subresource.as_deref()].into_iter().flatten() {
            write!(f, "/{}", Encoded(part))?;
        }
        Ok(())
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub struct Encoded<'a>(pub &'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    write!(f, "{}", char::from(byte))?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// Appends `?name=value&…` to a path, leaving out empty values.
pub(crate) fn with_query(path: &ResourcePath, parameters: &[(&str, &str)]) -> String {
    let mut text = path.to_string();
    let mut separator = '?';
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(separator);
        text.push_str(&format!("{name}={}", Encoded(value)));
        separator = '&';
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_what_kubectl_sends() {
        let pods = ResourcePath::new("v1", "pods");
        let cases = [
            (pods.clone(), "/api/v1/pods"),
            (pods.clone().namespace("shop"), "/api/v1/namespaces/shop/pods"),
            (
                pods.namespace("shop").name("web").subresource("log"),
                "/api/v1/namespaces/shop/pods/web/log",
            ),
            (
                ResourcePath::new("apps/v1", "deployments").namespace("").name("web"),
                "/apis/apps/v1/deployments/web",
            ),
        ];
        for (path, text) in cases {
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn a_name_cannot_leave_its_place() {
        let path = ResourcePath::new("v1", "secrets").namespace("a").name("../../nodes?x=1");
        assert_eq!(path.to_string(), "/api/v1/namespaces/a/secrets/..%2F..%2Fnodes%3Fx%3D1");
    }

    #[test]
    fn query_values_are_encoded_and_empty_ones_left_out() {
        let text = with_query(
            &ResourcePath::new("v1", "pods"),
            &[("labelSelector", "a in (b)"), ("continue", "")],
        );
        assert_eq!(text, "/api/v1/pods?labelSelector=a%20in%20%28b%29");
    }
}
