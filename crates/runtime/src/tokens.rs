//! Tokens of ServiceAccounts in volumes of pods: asked for, kept while they are good, renewed before
//! they end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{ClientError, ResourcePath};
use model::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::context::now;
use crate::tasks::Task;
use crate::volumes::{self, TokenRequest};

/// The part of its life after which a token is renewed, percent (the kubelet's).
const RENEWED_AT_PERCENT: u64 = 80;
/// A token is renewed at this age whatever its life, seconds (the kubelet's).
const RENEWED_AT_S: u64 = 24 * 3600;

/// The tokens of a node's pods.
#[derive(Default)]
pub struct Tokens {
    /// By the pod's identity.
    kept: Mutex<BTreeMap<String, BTreeMap<TokenRequest, Token>>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

impl Tokens {
    /// A pod is gone, and with it its tokens.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn find(&self, uid: &str, request: &TokenRequest) -> Option<Token> {
        self.lock().get(uid)?.get(request).cloned()
    }

    fn keep(&self, uid: &str, request: &TokenRequest, token: Token) {
        self.lock().entry(uid.to_owned()).or_default().insert(request.clone(), token);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<TokenRequest, Token>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    fn new(text: String, issued_at: Timestamp, expires_at: Timestamp) -> Self {
        let life_s = expires_at.since(issued_at).as_secs();
        let wait_s = (life_s * RENEWED_AT_PERCENT / 100).min(RENEWED_AT_S);
        let renew_at = issued_at.after(Duration::from_secs(wait_s));
        Self { text, renew_at, expires_at }
    }
}

impl Task {
    /// The tokens that the pod's volumes show. While the API server is away, those that are still
    /// good go on to be shown.
    ///
    /// # Errors
    /// In the kubelet's words.
    pub async fn tokens(&self) -> Result<BTreeMap<TokenRequest, String>, String> {
        let mut tokens = BTreeMap::new();
        for request in volumes::token_requests(&self.pod) {
            let kept = self.context.tokens.find(&self.pod.metadata.uid, &request);
            let token = match kept {
                Some(token) if now() < token.renew_at => token,
                kept => match self.ask_for_token(&request).await {
                    Ok(token) => {
                        self.context.tokens.keep(&self.pod.metadata.uid, &request, token.clone());
                        token
                    }
                    Err(error) => match kept.filter(|token| now() < token.expires_at) {
                        Some(token) => token,
                        None => return Err(format!("failed to fetch token: {error}")),
                    },
                },
            };
            tokens.insert(request, token.text);
        }
        Ok(tokens)
    }

    /// The token ends with the pod, whatever else it says.
    async fn ask_for_token(&self, (audience, life_s): &TokenRequest) -> Result<Token, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            status: Status,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Status {
            token: String,
            expiration_timestamp: Timestamp,
        }
        let metadata = &self.pod.metadata;
        let path = ResourcePath::new("v1", "serviceaccounts")
            .namespace(metadata.namespace.as_str())
            .name(self.pod.spec.service_account_name.as_str())
            .subresource("token");
        let audiences: Vec<&str> =
            Some(audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": life_s,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod",
                    "name": metadata.name, "uid": metadata.uid},
            },
        });
        let asked_at = now();
        let answer: Answer = self.context.client.create(&path, &body).await?;
        Ok(Token::new(answer.status.token, asked_at, answer.status.expiration_timestamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends_and_at_least_daily() {
        let at = Timestamp::from_seconds;
        let renewed = |life_s: i64| {
            Token::new(String::new(), at(1_000), at(1_000 + life_s)).renew_at.seconds() - 1_000
        };
        assert_eq!(renewed(3_600), 2_880);
        assert_eq!(renewed(600), 480);
        assert_eq!(renewed(7 * 24 * 3_600), 24 * 3_600);
        assert_eq!(renewed(-5), 0, "the clocks differ");
    }
}
