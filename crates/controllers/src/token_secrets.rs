//! Secrets of type `kubernetes.io/service-account-token`: each gets a token of its account, which is
//! good as long as the Secret is there (upstream's tokens controller).

use std::collections::BTreeSet;

use model::NamespacedName;
use serde_json::{Value, json};

use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Body, Object};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

/// The type of these Secrets.
const TYPE: &str = "kubernetes.io/service-account-token";
/// Names the account.
const ACCOUNT: &str = "kubernetes.io/service-account.name";
/// Its identity, added with the token.
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// What the controller puts into the Secret.
const KEYS: [&str; 3] = ["ca.crt", "namespace", "token"];

/// Reads a Secret: of one of another type nothing is kept, and of none what it holds.
pub(crate) fn read(secret: &Value) -> Body {
    let is_ours = secret.get("type").and_then(Value::as_str) == Some(TYPE);
    let has = |key: &str| secret.pointer("/data").is_some_and(|data| data.get(key).is_some());
    if is_ours { Body::TokenSecret { is_filled: KEYS.into_iter().all(has) } } else { Body::Other }
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    match (&object.body, object.kind) {
        (Body::TokenSecret { .. }, _) => {
            keys.insert(object.key());
        }
        (_, Kind::ServiceAccount) => {
            let secrets = snapshot.in_namespace(Kind::Secret, &object.meta.namespace);
            let own = secrets.filter(|secret| account_of(secret) == Some(&object.meta.name));
            keys.extend(own.map(|secret| secret.key()));
        }
        _ => {}
    }
}

/// The account of a Secret, if it is for a token.
fn account_of(secret: &Object) -> Option<&String> {
    let is_ours = matches!(secret.body, Body::TokenSecret { .. });
    secret.meta.annotations.get(ACCOUNT).filter(|name| is_ours && !name.is_empty())
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(secret) = snapshot.get(Kind::Secret, &key.name) else { return outcome };
    let Some(name) = account_of(secret).filter(|_| !secret.is_terminating()) else {
        return outcome;
    };
    let namespace = &secret.meta.namespace;
    let known = secret.meta.annotations.get(ACCOUNT_UID).filter(|uid| !uid.is_empty());
    let account = snapshot
        .find(Kind::ServiceAccount, namespace, name)
        .filter(|account| known.is_none_or(|uid| *uid == account.meta.uid));
    let Some(account) = account else {
        // Without its account nobody may use the token, nor wait for one.
        let mut delete = secret.delete();
        if let Write::Delete { absent, .. } = &mut delete {
            let account =
                ObjectKey::new(Kind::ServiceAccount, NamespacedName::new(&**namespace, &**name));
            absent.push((account, known.cloned().unwrap_or_default()));
        }
        outcome.push(Step::quiet(delete));
        return outcome;
    };
    let is_filled = matches!(secret.body, Body::TokenSecret { is_filled: true });
    if is_filled && known.is_some() || account.is_terminating() {
        return outcome;
    }
    let body = json!({
        "metadata": {"uid": secret.meta.uid, "annotations": {ACCOUNT_UID: account.meta.uid}},
        "stringData": {"ca.crt": input.config.root_ca, "namespace": namespace},
    });
    outcome.push(Step::quiet(Write::GiveToken {
        secret: secret.key(),
        uid: secret.meta.uid.clone(),
        account: name.clone(),
        body,
    }));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{key, snapshot, with_input};

    fn secret(annotations: Value, data: Value) -> (Kind, Value) {
        let metadata = json!({"name": "s", "annotations": annotations});
        (Kind::Secret, json!({"metadata": metadata, "type": TYPE, "data": data}))
    }

    fn account() -> (Kind, Value) {
        (Kind::ServiceAccount, json!({"metadata": {"name": "robot"}}))
    }

    fn run(objects: Vec<(Kind, Value)>) -> Vec<Write> {
        let snapshot = snapshot(objects);
        let outcome =
            with_input(None, |input| reconcile(&key(Kind::Secret, "s"), &snapshot, input));
        outcome.steps.into_iter().map(|step| step.write).collect()
    }

    #[test]
    fn a_secret_gets_the_token_of_its_account_once() {
        let writes = run(vec![account(), secret(json!({ACCOUNT: "robot"}), json!({}))]);
        let body = json!({
            "metadata": {"uid": "uid-s", "annotations": {ACCOUNT_UID: "uid-robot"}},
            "stringData": {"ca.crt": "CA", "namespace": "d"},
        });
        let given = Write::GiveToken {
            secret: key(Kind::Secret, "s"),
            uid: "uid-s".into(),
            account: "robot".into(),
            body,
        };
        assert_eq!(writes, std::slice::from_ref(&given));
        let both = json!({ACCOUNT: "robot", ACCOUNT_UID: "uid-robot"});
        let part = json!({"ca.crt": "Q0E=", "namespace": "ZA=="});
        assert_eq!(run(vec![account(), secret(both.clone(), part)]), [given], "a token is wanted");
        let whole = json!({"ca.crt": "Q0E=", "namespace": "ZA==", "token": "eA=="});
        assert_eq!(run(vec![account(), secret(both, whole)]), []);
    }

    #[test]
    fn a_secret_goes_with_its_account() {
        for (annotations, uid) in [
            (json!({ACCOUNT: "gone"}), ""),
            (json!({ACCOUNT: "robot", ACCOUNT_UID: "uid-before"}), "uid-before"),
        ] {
            let name = annotations[ACCOUNT].as_str().unwrap_or_default().to_owned();
            let writes = run(vec![account(), secret(annotations, json!({}))]);
            let absent = vec![(key(Kind::ServiceAccount, &name), uid.to_owned())];
            assert!(
                matches!(&writes[..], [Write::Delete { absent: found, .. }] if *found == absent),
                "{writes:?}"
            );
        }
    }

    #[test]
    fn other_secrets_are_none_of_ours() {
        let mut opaque = secret(json!({ACCOUNT: "gone"}), json!({}));
        opaque.1["type"] = json!("Opaque");
        assert_eq!(run(vec![opaque]), []);
        assert_eq!(run(vec![secret(json!({}), json!({}))]), [], "nobody is named");
    }

    #[test]
    fn an_account_that_comes_or_goes_concerns_its_secrets() {
        let snapshot = snapshot([account(), secret(json!({ACCOUNT: "robot"}), json!({}))]);
        let account = snapshot.find(Kind::ServiceAccount, "d", "robot").cloned();
        let mut keys = BTreeSet::new();
        interested(&Change { old: account, new: None }, &snapshot, &mut keys);
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), [key(Kind::Secret, "s")]);
    }
}
