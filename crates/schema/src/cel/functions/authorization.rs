//! Who may do what: the `authorizer` of admission (kubernetes.io, "CEL libraries", "Kubernetes
//! authorizer library"). Selectors are not offered: no rule of ours looks at them.
//!
//! Expressions put a question together; whoever runs them hands in who decides.

use std::fmt;
use std::rc::Rc;

use super::Said;
use crate::cel::Error;
use crate::cel::cost::{CHECK, Meter};
use crate::cel::value::{Text, Value};
use crate::names::{label_faults, subdomain_faults};

/// Decides whether somebody may do something.
pub trait Authorizer {
    /// `account` asks, and where there is none whoever makes the request.
    fn decide(&self, account: Option<Account<'_>>, question: &Question<'_>) -> Decision;
}

/// A ServiceAccount that an expression names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// About a document, such as `/healthz`.
    Path {
        /// The HTTP method in lower case.
        verb: &'a str,
        /// The URL's path.
        path: &'a str,
    },
    /// About an object, a collection, or a part of an object.
    Resource {
        /// The API's verb.
        verb: &'a str,
        /// The API group; empty for core.
        group: &'a str,
        /// The resource's plural.
        resource: &'a str,
        /// The subresource's name; empty for the object itself.
        subresource: &'a str,
        /// Empty for cluster-scoped ones, and for all namespaces.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
    },
}

/// What comes of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub is_allowed: bool,
    /// Why; may be empty.
    pub reason: String,
    /// Why nothing could be decided; empty where it could.
    pub error: String,
}

/// A value of the library: a question as far as it is put, or what came of it.
#[derive(Clone, Debug)]
pub enum Authorization<'a> {
    /// Who asks.
    Asker(Asker<'a>),
    /// About a path.
    Path(Asker<'a>, Text<'a>),
    /// About what is in an API group.
    Group(Asker<'a>, Text<'a>),
    /// About a resource.
    Resource(Asker<'a>, Target<'a>),
    /// The answer.
    Decision(Decision),
}

/// Who asks, and who decides.
#[derive(Clone)]
pub struct Asker<'a> {
    authorizer: &'a dyn Authorizer,
    /// Namespace and name of a ServiceAccount; `None` for whoever makes the request.
    account: Option<(Text<'a>, Text<'a>)>,
}

/// A resource that is asked about.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The API group.
    pub group: Text<'a>,
    /// The plural.
    pub resource: Text<'a>,
    /// The subresource.
    pub subresource: Text<'a>,
    /// The namespace.
    pub namespace: Text<'a>,
    /// The name.
    pub name: Text<'a>,
}

impl fmt::Debug for Asker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("account", &self.account).finish_non_exhaustive()
    }
}

impl<'a> Value<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Self {
        Self::of_authorization(Authorization::Asker(Asker { authorizer, account: None }))
    }

    /// The variable `authorizer.requestResource`.
    pub fn resource_check(authorizer: &'a dyn Authorizer, target: Target<'a>) -> Self {
        Self::of_authorization(Authorization::Resource(Asker { authorizer, account: None }, target))
    }

    fn of_authorization(authorization: Authorization<'a>) -> Self {
        Self::Authorization(Rc::new(authorization))
    }
}

impl Authorization<'_> {
    pub(in crate::cel) fn type_name(&self) -> &'static str {
        match self {
            Self::Asker(_) => "kubernetes.authorization.Authorizer",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
}

/// Calls a function of the library. What it costs beside one step is charged here: texts are handed
/// on as they are.
pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>], meter: &mut Meter) -> Option<Said<'a>> {
    let (Value::Authorization(of), rest) = arguments.split_first()? else { return None };
    let made = match (&**of, rest) {
        (Authorization::Decision(decision), []) => return of_decision(name, decision),
        (Authorization::Asker(asker), [Value::Text(namespace), Value::Text(account)]) => {
            if name != "serviceAccount" {
                return None;
            }
            if !subdomain_faults(account).is_empty() {
                return Some(Err(Error::new("Invalid service account name")));
            }
            if !label_faults(namespace).is_empty() {
                return Some(Err(Error::new("Invalid service account namespace")));
            }
            let account = Some((namespace.clone(), account.clone()));
            Authorization::Asker(Asker { account, ..asker.clone() })
        }
        (asked, [Value::Text(text)]) => match put(name, asked, text, meter)? {
            Ok(made) => made,
            Err(error) => return Some(Err(error)),
        },
        _ => return None,
    };
    Some(Ok(Value::of_authorization(made)))
}

/// A question with one text more, or its answer.
fn put<'a>(
    name: &str,
    asked: &Authorization<'a>,
    text: &Text<'a>,
    meter: &mut Meter,
) -> Option<Result<Authorization<'a>, Error>> {
    let is_empty = text.trim().is_empty();
    Some(Ok(match (name, asked) {
        ("path" | "resource", Authorization::Asker(_) | Authorization::Group(..)) if is_empty => {
            return Some(Err(Error::new(format!("{name} must not be empty"))));
        }
        ("path", Authorization::Asker(asker)) => Authorization::Path(asker.clone(), text.clone()),
        ("group", Authorization::Asker(asker)) => Authorization::Group(asker.clone(), text.clone()),
        ("resource", Authorization::Group(asker, group)) => {
            let none = || Text::Given("");
            let (group, resource) = (group.clone(), text.clone());
            let (subresource, namespace, name) = (none(), none(), none());
            let target = Target { group, resource, subresource, namespace, name };
            Authorization::Resource(asker.clone(), target)
        }
        ("subresource" | "namespace" | "name", Authorization::Resource(asker, target)) => {
            let mut target = target.clone();
            let part = match name {
                "subresource" => &mut target.subresource,
                "namespace" => &mut target.namespace,
                _ => &mut target.name,
            };
            *part = text.clone();
            Authorization::Resource(asker.clone(), target)
        }
        ("check", Authorization::Path(asker, path)) => {
            return Some(asker.ask(&Question::Path { verb: text, path }, meter));
        }
        ("check", Authorization::Resource(asker, target)) => {
            return Some(asker.ask(&target.question(text), meter));
        }
        _ => return None,
    }))
}

impl<'a> Asker<'a> {
    fn ask(&self, question: &Question<'_>, meter: &mut Meter) -> Result<Authorization<'a>, Error> {
        meter.charge(CHECK)?;
        let account = self.account.as_ref();
        let account = account.map(|(namespace, name)| Account { namespace, name });
        Ok(Authorization::Decision(self.authorizer.decide(account, question)))
    }
}

impl Target<'_> {
    fn question<'q>(&'q self, verb: &'q str) -> Question<'q> {
        let Self { group, resource, subresource, namespace, name } = self;
        Question::Resource { verb, group, resource, subresource, namespace, name }
    }
}

fn of_decision<'a>(name: &str, decision: &Decision) -> Option<Said<'a>> {
    let value = match name {
        "allowed" => Value::Bool(decision.is_allowed),
        "reason" => Value::text(decision.reason.clone()),
        "errored" => Value::Bool(!decision.error.is_empty()),
        "error" => Value::text(decision.error.clone()),
        _ => return None,
    };
    Some(Ok(value))
}

#[cfg(test)]
mod tests;
