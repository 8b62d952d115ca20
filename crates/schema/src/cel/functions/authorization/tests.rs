use super::*;
use crate::cel::{Program, Type};

/// Allows `get` alone, and tells what it was asked as the reason.
struct Getters;

impl Authorizer for Getters {
    fn decide(&self, account: Option<Account<'_>>, question: &Question<'_>) -> Decision {
        let who = account.map_or("me".to_owned(), |one| format!("{}/{}", one.namespace, one.name));
        let (verb, what) = match *question {
            Question::Path { verb, path } => (verb, path.to_owned()),
            Question::Resource { verb, group, resource, subresource, namespace, name } => {
                (verb, [group, resource, subresource, namespace, name].join("|"))
            }
        };
        let error = if verb == "fail" { "nobody knows" } else { "" }.to_owned();
        Decision { is_allowed: verb == "get", reason: format!("{who} {verb} {what}"), error }
    }
}

fn variables() -> [(&'static str, Type); 2] {
    [("authorizer", Type::AUTHORIZER), ("authorizer.requestResource", Type::RESOURCE_CHECK)]
}

/// What an expression comes to, or why it has no value, and what it costs.
fn said(text: &str) -> (String, u64) {
    let text_of = |text| Text::Given(text);
    let target = Target {
        group: text_of("apps"),
        resource: text_of("deployments"),
        subresource: text_of("scale"),
        namespace: text_of("shop"),
        name: text_of("web"),
    };
    let values = [
        ("authorizer", Value::authorizer(&Getters)),
        ("authorizer.requestResource", Value::resource_check(&Getters, target)),
    ];
    let program = match Program::compile(text, &variables()) {
        Ok(program) => program,
        Err(error) => return (error, 0),
    };
    let (value, cost) = program.run(&values);
    let shown = match value {
        Ok(Value::Bool(truth)) => truth.to_string(),
        Ok(Value::Text(text)) => text.to_string(),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    };
    (shown, cost)
}

#[test]
fn questions_are_put_together_and_asked() {
    for (text, expected) in [
        ("authorizer.path('/healthz').check('get').allowed()", "true"),
        ("authorizer.path('/healthz').check('post').allowed()", "false"),
        ("authorizer.path('/healthz').check('get').reason()", "me get /healthz"),
        (
            "authorizer.group('apps').resource('deployments').check('create').reason()",
            "me create apps|deployments|||",
        ),
        (
            "authorizer.group('').resource('pods').name('p').subresource('exec').namespace('n')\
             .check('get').reason()",
            "me get |pods|exec|n|p",
        ),
        // Each step leaves the question that it began with as it was.
        (
            "[authorizer.group('').resource('pods')].map(r, r.namespace('a').check('x').reason() + \
             ' ' + r.check('x').reason())[0]",
            "me x |pods||a| me x |pods|||",
        ),
        (
            "authorizer.serviceAccount('shop', 'seller').group('').resource('pods').check('get')\
             .reason()",
            "shop/seller get |pods|||",
        ),
        (
            "authorizer.requestResource.check('scale').reason()",
            "me scale apps|deployments|scale|shop|web",
        ),
        ("authorizer.requestResource.name('x').check('get').allowed()", "true"),
        ("authorizer.path('/x').check('fail').errored()", "true"),
        ("authorizer.path('/x').check('fail').error()", "nobody knows"),
        ("authorizer.path('/x').check('get').errored()", "false"),
        ("authorizer.path('/x').check('get').error() == ''", "true"),
        // A macro's own variable of the name is that one.
        ("[{'requestResource': 'own'}].map(authorizer, authorizer.requestResource)[0]", "own"),
    ] {
        assert_eq!(said(text).0, expected, "{text}");
    }
}

#[test]
fn questions_that_mean_nothing_are_refused() {
    for (text, expected) in [
        ("authorizer.path(' ').check('get').allowed()", "path must not be empty"),
        ("authorizer.group('').resource('').check('get').allowed()", "resource must not be empty"),
        (
            "authorizer.serviceAccount('n', 'A').path('/').check('get').allowed()",
            "Invalid service account name",
        ),
        (
            "authorizer.serviceAccount('a.b', 'a').path('/').check('get').allowed()",
            "Invalid service account namespace",
        ),
    ] {
        assert_eq!(said(text).0, expected, "{text}");
    }
    let prefix = "kubernetes.authorization.";
    for (text, expected) in [
        ("authorizer.allowed()", format!("'allowed' applied to '{prefix}Authorizer.()'")),
        ("authorizer.check('get')", format!("'check' applied to '{prefix}Authorizer.(string)'")),
        ("authorizer.path(1)", format!("'path' applied to '{prefix}Authorizer.(int)'")),
        ("authorizer.nothing", format!("'{prefix}Authorizer' does not support field selection")),
        (
            "authorizer.group('').resource('pods').fieldSelector('a=b')",
            "undeclared reference to 'fieldSelector'".to_owned(),
        ),
    ] {
        let found = said(text).0;
        assert!(found.contains(&expected), "{text}: {found}");
    }
}

/// One expression may ask twice (apiserver's `authz` cost), and no more.
#[test]
fn a_check_costs_as_much_as_a_third_of_an_expression() {
    let check = "authorizer.path('/x').check('get').allowed()";
    let (_, cost) = said(check);
    // The variable, two builders, the check and the accessor.
    assert_eq!(cost, 350_003);
    assert_eq!(said(&format!("{check} && {check}")).0, "true");
    let limit = "operation cancelled: actual cost limit exceeded";
    assert_eq!(said(&format!("{check} && {check} && {check}")).0, limit);
    let long = "x".repeat(10_000);
    assert_eq!(said(&format!("authorizer.path('{long}').check('get').allowed()")).1, 350_003);
    let program = Program::compile(check, &variables()).expect("an expression");
    assert_eq!(program.estimate(&[]), 350_003);
}
