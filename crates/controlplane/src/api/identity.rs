//! Who asks: by certificate, by token, and in whose name (impersonation).
//!
//! Source: kubernetes.io, "Authenticating", "User impersonation".

use std::collections::BTreeMap;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use store::authorize::{AUTHENTICATED, Request, SERVICE_ACCOUNT_PREFIX, impersonation};
use store::{Resource, Status};

use super::query::decode;
use super::{Api, Call};
use crate::tls::User;
use crate::tokens::account_groups;
use crate::writer::now;

const IMPERSONATE_USER: &str = "impersonate-user";
const IMPERSONATE_UID: &str = "impersonate-uid";
const IMPERSONATE_GROUP: &str = "impersonate-group";
const IMPERSONATE_EXTRA: &str = "impersonate-extra-";
/// The user that is nobody, and the group of such.
const ANONYMOUS: (&str, &str) = ("system:anonymous", "system:unauthenticated");

/// What a request says of whose name it is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    user: String,
    uid: String,
    groups: Vec<String>,
    /// Keys and values, one entry a value.
    extra: Vec<(String, String)>,
}

impl Api {
    /// Who sends a request; `None` for nobody that is known.
    pub(super) fn authenticate(&self, call: &Call) -> Option<User> {
        let mut user = match &call.user {
            Some(user) => user.clone(),
            None => self.user_of_token(&call.headers)?,
        };
        add(&mut user.groups, AUTHENTICATED);
        Some(user)
    }

    /// In whose name a request is; `None` when in the sender's own.
    ///
    /// # Errors
    /// 403 when the sender may not, 500 for groups without a user, as the real server answers.
    pub(super) fn impersonated(
        &self,
        sender: &User,
        headers: &HeaderMap,
    ) -> Result<Option<User>, Status> {
        let Some(asked) = asked(headers)? else { return Ok(None) };
        let account =
            asked.user.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
        let (resource, namespace, name) = match account {
            Some((namespace, name)) => (impersonation::accounts(), namespace, name),
            None => (&impersonation::USERS, "", asked.user.as_str()),
        };
        self.may_impersonate(sender, resource, "", namespace, name)?;
        for group in &asked.groups {
            self.may_impersonate(sender, &impersonation::GROUPS, "", "", group)?;
        }
        if !asked.uid.is_empty() {
            self.may_impersonate(sender, &impersonation::UIDS, "", "", &asked.uid)?;
        }
        for (key, value) in &asked.extra {
            self.may_impersonate(sender, &impersonation::USER_EXTRAS, key, "", value)?;
        }
        let mut groups = asked.groups;
        if let (true, Some((namespace, _))) = (groups.is_empty(), account) {
            groups = account_groups(namespace);
        }
        if asked.user == ANONYMOUS.0 {
            add(&mut groups, ANONYMOUS.1);
        } else if !groups.iter().any(|group| group == ANONYMOUS.1) {
            add(&mut groups, AUTHENTICATED);
        }
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in asked.extra {
            extra.entry(key).or_default().push(value);
        }
        Ok(Some(User { name: asked.user, uid: asked.uid, groups, extra }))
    }

    fn may_impersonate(
        &self,
        sender: &User,
        resource: &'static Resource,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let (group, plural) = (resource.group, resource.plural);
        let verb = "impersonate";
        let request = Request::Resource { verb, group, plural, subresource, namespace, name };
        self.shared.read().authorize(sender.subject(), &request)
    }

    fn user_of_token(&self, headers: &HeaderMap) -> Option<User> {
        let shown = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = shown.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.tokens.user_of(&self.shared.read(), token.trim(), now())
    }
}

fn add(groups: &mut Vec<String>, group: &str) {
    if !groups.iter().any(|one| one == group) {
        groups.push(group.to_owned());
    }
}

/// The headers of a request that change its name, if it has any.
fn asked(headers: &HeaderMap) -> Result<Option<Asked>, Status> {
    let mut asked = Asked::default();
    let mut any = false;
    for (header, value) in headers {
        let header = header.as_str();
        if !header.starts_with("impersonate-") {
            continue;
        }
        let text = value.to_str().map_err(|_| {
            Status::bad_request(format!("the header {header} is not printable text"))
        })?;
        any = true;
        match header {
            IMPERSONATE_USER => text.clone_into(&mut asked.user),
            IMPERSONATE_UID => text.clone_into(&mut asked.uid),
            IMPERSONATE_GROUP => asked.groups.push(text.to_owned()),
            _ => match header.strip_prefix(IMPERSONATE_EXTRA) {
                Some(key) if !key.is_empty() => {
                    // Keys may be of any characters, percent-encoded.
                    let decoded = decode(key, false);
                    let key = decoded.map_or_else(|| key.to_owned(), |key| key.into_owned());
                    asked.extra.push((key, text.to_owned()));
                }
                // A header that means nothing must not be passed over: it may mean less rights.
                _ => {
                    let why = format!("the header {header} is not one of impersonation");
                    return Err(Status::bad_request(why));
                }
            },
        }
    }
    if !any {
        return Ok(None);
    }
    if asked.user.is_empty() {
        return Err(Status::internal(
            "requested groups, a uid or extra values without impersonating a user: \
             Impersonate-User is missing",
        ));
    }
    Ok(Some(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)]) -> Result<Option<Asked>, Status> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: hyper::header::HeaderName = name.parse().expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        asked(&map)
    }

    #[test]
    fn headers_say_in_whose_name() {
        assert_eq!(of(&[("accept", "*/*")]), Ok(None));
        let expected = Asked {
            user: "jane".to_owned(),
            uid: "7".to_owned(),
            groups: vec!["a".to_owned(), "b".to_owned()],
            extra: vec![("acme.com/project".to_owned(), "x".to_owned())],
        };
        let found = of(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-acme.com%2fproject", "x"),
        ]);
        assert_eq!(found, Ok(Some(expected)));
    }

    #[test]
    fn what_is_half_said_is_refused_and_not_passed_over() {
        for headers in [
            [("Impersonate-Group", "system:masters")],
            [("Impersonate-Users", "jane")],
            [("Impersonate-Extra-", "x")],
        ] {
            assert!(of(&headers).is_err(), "{headers:?}");
        }
    }
}
