//! `/livez`, `/readyz` and `/healthz`: whether the server can be used, in the real server's form
//! (`k8s.io/apiserver/pkg/server/healthz`).

use client::Body;
use hyper::{Response, StatusCode};
use store::Status;

use super::answer;
use super::query::Query;

/// The checks, by the names that tools ask for; the store is what etcd is elsewhere. Both hold
/// whenever there is an answer: the server listens once it has read its store, and serves from it.
const CHECKS: [&str; 2] = ["ping", "etcd"];

/// Answers `/ENDPOINT` and `/ENDPOINT/CHECK`.
///
/// # Errors
/// 404 for a check that there is not.
pub(super) fn answer(
    endpoint: &str,
    check: Option<&str>,
    query: &Query,
) -> Result<Response<Body>, Status> {
    if check.is_some_and(|name| !CHECKS.contains(&name)) {
        return Err(Status::unknown_path());
    }
    let text = match check {
        None if query.find("verbose").is_some() => listing(endpoint, query),
        _ => "ok".to_owned(),
    };
    Ok(answer::text(StatusCode::OK, text))
}

/// Every check with its result, as `?verbose` shows them.
fn listing(endpoint: &str, query: &Query) -> String {
    let line = |name: &str| match query.all("exclude").any(|excluded| excluded == name) {
        true => format!("[+]{name} excluded: ok\n"),
        false => format!("[+]{name} ok\n"),
    };
    let lines: String = CHECKS.into_iter().map(line).collect();
    format!("{lines}{endpoint} check passed\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_listed_for_those_who_ask() {
        let listed = |query| listing("readyz", &Query::parse(query));
        assert_eq!(listed("verbose"), "[+]ping ok\n[+]etcd ok\nreadyz check passed\n");
        assert_eq!(
            listed("verbose&exclude=etcd"),
            "[+]ping ok\n[+]etcd excluded: ok\nreadyz check passed\n"
        );
        let found = |check| answer("livez", Some(check), &Query::default()).is_ok();
        assert!(found("ping") && found("etcd") && !found("nope"));
    }
}
