//! From a path to what it names.

use store::{Resource, Subresource};

/// The subresource that is followed by a path of its own.
const PROXY: &str = Subresource::Proxy.name();

/// Finds the row of a group, a version and a plural.
pub(super) type Find<'a> = &'a dyn Fn(&str, &str, &str) -> Option<&'static Resource>;

/// What a path names.
#[derive(Debug, PartialEq)]
pub(super) enum Route {
    /// `/livez`, `/readyz`, `/healthz`, with or without a check's name.
    Health {
        /// The first part.
        endpoint: String,
        /// The check's name.
        check: Option<String>,
    },
    /// `/.well-known/openid-configuration`.
    Issuer,
    /// `/openid/v1/jwks`.
    IssuerKeys,
    /// `/version`.
    Version,
    /// `/`.
    Root,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/VERSION` and `/apis/GROUP/VERSION`.
    Resources {
        /// Empty for core.
        group: String,
        /// The version.
        version: String,
    },
    /// `/openapi/v2`.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiV3,
    /// `/openapi/v3/GROUP-VERSION-PATH`.
    OpenApiV3Group(String),
    /// A collection, an object or a subresource.
    Target(Target),
    /// Nothing.
    Unknown,
}

/// A collection (empty name), an object or a subresource of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub resource: &'static Resource,
    /// Empty for cluster-scoped kinds, and for collections over all namespaces.
    pub namespace: String,
    pub name: String,
    pub subresource: Option<Subresource>,
}

/// The route of a path's segments.
pub(super) fn route(segments: &[String], find: Find<'_>) -> Route {
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Route::Root,
        [endpoint @ ("livez" | "readyz" | "healthz"), check @ ..] => Route::Health {
            endpoint: (*endpoint).to_owned(),
            check: (!check.is_empty()).then(|| check.join("/")),
        },
        [".well-known", "openid-configuration"] => Route::Issuer,
        ["openid", "v1", "jwks"] => Route::IssuerKeys,
        ["version"] => Route::Version,
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiV3,
        ["openapi", "v3", rest @ ..] => Route::OpenApiV3Group(rest.join("/")),
        ["api"] => Route::CoreVersions,
        ["api", version] => resources("", version),
        ["api", version, rest @ ..] => target("", version, rest, find),
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).to_owned()),
        ["apis", group, version] => resources(group, version),
        ["apis", group, version, rest @ ..] => target(group, version, rest, find),
        _ => Route::Unknown,
    }
}

fn resources(group: &str, version: &str) -> Route {
    Route::Resources { group: group.to_owned(), version: version.to_owned() }
}

fn target(group: &str, version: &str, rest: &[&str], find: Find<'_>) -> Route {
    let (namespace, rest) = match rest {
        // Below a namespace stand its own subresources and everything that lives in it.
        ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, inner @ ..] if !inner.is_empty() => (*namespace, inner),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, "", None),
        [plural, name] => (plural, *name, None),
        [plural, name, subresource] => (plural, *name, Some(*subresource)),
        // What follows is the other server's.
        [plural, name, PROXY, ..] => (plural, *name, Some(PROXY)),
        _ => return Route::Unknown,
    };
    let Some(resource) = find(group, version, plural) else { return Route::Unknown };
    let namespace_fits = match (resource.namespaced, namespace.is_empty()) {
        (true, false) | (false, true) => true,
        // A collection over all namespaces.
        (true, true) => name.is_empty(),
        (false, false) => false,
    };
    let subresource = match subresource.map(|name| resource.subresource(name)) {
        Some(None) => return Route::Unknown,
        Some(found) => found,
        None => None,
    };
    if !namespace_fits {
        return Route::Unknown;
    }
    Route::Target(Target {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource,
    })
}

#[cfg(test)]
mod tests {
    use super::super::query::segments;
    use super::*;
    use store::registry;

    fn parse(path: &str) -> Route {
        route(&segments(path).expect("a path"), &registry::find)
    }

    fn describe(path: &str) -> Option<(String, String, String, Option<&'static str>)> {
        match parse(path) {
            Route::Target(target) => Some((
                target.resource.group_resource(),
                target.namespace,
                target.name,
                target.subresource.map(Subresource::name),
            )),
            _ => None,
        }
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        let cases = [
            ("/api/v1/pods", Some(("pods", "", "", None))),
            ("/api/v1/namespaces", Some(("namespaces", "", "", None))),
            ("/api/v1/namespaces/shop", Some(("namespaces", "", "shop", None))),
            ("/api/v1/namespaces/shop/status", Some(("namespaces", "", "shop", Some("status")))),
            (
                "/api/v1/namespaces/shop/finalize",
                Some(("namespaces", "", "shop", Some("finalize"))),
            ),
            ("/api/v1/namespaces/shop/pods/", Some(("pods", "shop", "", None))),
            ("/api/v1/namespaces/shop/pods/web/log", Some(("pods", "shop", "web", Some("log")))),
            (
                "/apis/apps/v1/namespaces/shop/deployments/web/scale",
                Some(("deployments.apps", "shop", "web", Some("scale"))),
            ),
            (
                "/api/v1/namespaces/shop/pods/web:80/proxy",
                Some(("pods", "shop", "web:80", Some("proxy"))),
            ),
            (
                "/api/v1/namespaces/shop/services/http:web:/proxy/status/proxy",
                Some(("services", "shop", "http:web:", Some("proxy"))),
            ),
            ("/api/v1/nodes/n1/proxy/stats/summary", Some(("nodes", "", "n1", Some("proxy")))),
            ("/api/v1/nodes/n1/status", Some(("nodes", "", "n1", Some("status")))),
            // Wrong places.
            ("/api/v1/pods/web", None),
            ("/api/v1/namespaces/shop/nodes/n1", None),
            ("/api/v1/namespaces/shop/pods/web/nope", None),
            ("/apis/apps/v2/deployments", None),
            ("/api/v1/namespaces/shop/pods/web/log/more", None),
            ("/api/v1/namespaces/shop/configmaps/web/proxy/more", None),
        ];
        for (path, expected) in cases {
            let expected = expected.map(|(resource, namespace, name, subresource)| {
                (resource.to_owned(), namespace.to_owned(), name.to_owned(), subresource)
            });
            assert_eq!(describe(path), expected, "{path}");
        }
    }

    #[test]
    fn fixed_documents_have_routes() {
        assert_eq!(parse("/apis/"), Route::Groups);
        assert_eq!(parse("/"), Route::Root);
        let health = |check: Option<&str>| Route::Health {
            endpoint: "livez".to_owned(),
            check: check.map(str::to_owned),
        };
        assert_eq!((parse("/livez"), parse("/livez/ping")), (health(None), health(Some("ping"))));
        assert_eq!(parse("/.well-known/openid-configuration"), Route::Issuer);
        assert_eq!(parse("/openid/v1/jwks"), Route::IssuerKeys);
        assert_eq!(
            parse("/openapi/v3/apis/apps/v1"),
            Route::OpenApiV3Group("apis/apps/v1".to_owned())
        );
        assert_eq!(parse("/nope"), Route::Unknown);
    }
}
