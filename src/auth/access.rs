//! Who is let in? The verdict on one opening handshake, out of what it presents and what the operator
//! wants.

use std::sync::Arc;

use http::HeaderMap;
use thiserror::Error;

use crate::auth::bearer::{PresentationError, Presented, presented};
use crate::auth::identity::{Identity, UnixSeconds, User};
use crate::auth::pattern::Permissions;
use crate::auth::token::{TokenError, Verified, Verifier};

/// What the operator has decided about tokens and those who have none.
#[derive(Clone, Debug)]
pub struct Access {
    /// `None`: there is no key, and tokens are not looked at.
    verifier: Option<Verifier>,
    /// Whoever comes without a token is this. `None`: nobody may. One for all of them, so that none of
    /// them takes memory for it.
    anonymous: Option<Arc<Identity>>,
}

/// Who comes in.
#[derive(Debug)]
pub struct Entrant {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// The subprotocol `bearer` is to be selected.
    pub by_subprotocol: bool,
}

/// Why somebody is not let in. Holds nothing of a token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// 401: there is none, and anonymous clients are not let in.
    #[error(
        "a token is needed here; send it as Authorization: Bearer, as ?token=, or as the \
         subprotocols bearer and the token"
    )]
    NoToken,
    /// 401.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// 400.
    #[error("{0}")]
    Presentation(#[from] PresentationError),
}

/// Why a token is of no use to a connection that is open.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenewalError {
    /// There is no key.
    #[error("this gateway has no key to check tokens with")]
    NoKey,
    /// Is not believed.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// Somebody else's.
    #[error("the token is for another user (sub) than the connection")]
    OtherUser,
}

impl Access {
    /// Lets in whoever `verifier` believes and, if there is something that those without a token may
    /// do, them too.
    pub fn new(verifier: Option<Verifier>, anonymous: Option<Permissions>) -> Self {
        let anonymous = anonymous.map(|permissions| Arc::new(Identity::anonymous(permissions)));
        Self { verifier, anonymous }
    }

    /// Lets everybody do everything: there is no key.
    pub fn open() -> Self {
        let all = || vec!["*".parse().expect("a pattern")];
        Self::new(None, Some(Permissions::new(all(), all()).expect("one of each")))
    }

    /// What believes tokens.
    pub fn verifier(&self) -> Option<&Verifier> {
        self.verifier.as_ref()
    }

    /// Whether somebody without a token is let in.
    pub fn lets_in_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Judges a handshake with these headers and this query at the time `now`.
    ///
    /// A token that is not believed is no reason to let its bearer in as somebody without one.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub fn judge(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        now: UnixSeconds,
    ) -> Result<Entrant, AccessError> {
        let presented = presented(headers, query);
        let by_subprotocol = match &self.verifier {
            Some(verifier) => {
                if let Some(Presented { token, by_subprotocol }) = presented? {
                    let Verified { identity, .. } = verifier.verify(&token, now)?;
                    return Ok(Entrant { identity: Arc::new(identity), by_subprotocol });
                }
                false
            }
            // Nobody looks at the token; but a browser that offers some and is told of none gives up.
            None => presented.is_ok_and(|found| found.is_some_and(|found| found.by_subprotocol)),
        };
        let identity = self.anonymous.as_ref().ok_or(AccessError::NoToken)?;
        Ok(Entrant { identity: Arc::clone(identity), by_subprotocol })
    }

    /// Judges a new token for connections of `user`: it has to be that user's, or, where the one before
    /// names none, again one that names none.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub fn renew(
        &self,
        user: Option<&User>,
        token: &str,
        now: UnixSeconds,
    ) -> Result<Identity, RenewalError> {
        let verifier = self.verifier.as_ref().ok_or(RenewalError::NoKey)?;
        let Verified { identity, .. } = verifier.verify(token, now)?;
        if identity.user() != user {
            return Err(RenewalError::OtherUser);
        }
        Ok(identity)
    }

    /// When a connection of `identity` ends, if it does.
    pub fn end_of(&self, identity: &Identity) -> Option<UnixSeconds> {
        let expires_at = identity.expires_at()?;
        Some(self.verifier.as_ref().map_or(expires_at, |verifier| verifier.end_of(expires_at)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
    use serde_json::json;

    use super::*;
    use crate::auth::keys::Keys;
    use crate::auth::signer::SigningKey;

    const NOW: UnixSeconds = UnixSeconds(1_000);

    fn verifier() -> Verifier {
        let mut keys = Keys::default();
        keys.add_secret("secret").expect("a secret");
        Verifier {
            keys,
            audiences: Vec::new(),
            issuers: Vec::new(),
            leeway_seconds: 5,
            default_permissions: Permissions::default(),
        }
    }

    fn token(claims: serde_json::Value) -> String {
        let key = SigningKey::from_secret("secret").expect("a secret");
        key.sign(claims.as_object().expect("an object"), None, None).expect("it signs")
    }

    fn bearer(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("ASCII");
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    #[test]
    fn bearer_of_a_good_token_is_who_it_says() {
        let access = Access::new(Some(verifier()), None);
        let headers = bearer(&token(json!({ "sub": "alice", "exp": 2_000 })));
        let Entrant { identity, by_subprotocol } =
            access.judge(&headers, None, NOW).expect("let in");
        assert_eq!(identity.user().map(|user| user.as_str()), Some("alice"));
        assert_eq!(access.end_of(&identity), Some(UnixSeconds(2_005)), "the leeway counts");
        assert!(!by_subprotocol && !identity.is_anonymous());
    }

    #[test]
    fn whoever_has_no_token_is_let_in_only_where_anonymous_clients_are() {
        let none = HeaderMap::new();
        let closed = Access::new(Some(verifier()), None);
        assert_eq!(closed.judge(&none, None, NOW).unwrap_err(), AccessError::NoToken);
        let open = Access::new(Some(verifier()), Some(Permissions::default()));
        let first = open.judge(&none, None, NOW).expect("let in").identity;
        let second = open.judge(&none, None, NOW).expect("let in").identity;
        assert!(first.is_anonymous() && Arc::ptr_eq(&first, &second), "one for all of them");
    }

    #[test]
    fn bad_token_does_not_make_its_bearer_anonymous() {
        let open = Access::new(Some(verifier()), Some(Permissions::default()));
        let expired = bearer(&token(json!({ "exp": 995 })));
        let refused = AccessError::Token(TokenError::Expired);
        assert_eq!(open.judge(&expired, None, NOW).unwrap_err(), refused);
    }

    #[test]
    fn token_is_not_looked_at_where_there_is_no_key() {
        let headers = bearer("no token at all");
        assert!(Access::open().judge(&headers, Some("token=x"), NOW).is_ok());
    }

    #[test]
    fn browser_that_offers_a_token_is_told_so_where_there_is_no_key_too() {
        let value = HeaderValue::from_static("bearer, some-token");
        let headers = HeaderMap::from_iter([(SEC_WEBSOCKET_PROTOCOL, value)]);
        let entrant = Access::open().judge(&headers, None, NOW).expect("let in");
        assert!(entrant.by_subprotocol && entrant.identity.is_anonymous());
    }

    #[test]
    fn token_renews_a_connection_of_the_same_user_only() {
        let access = Access::new(Some(verifier()), None);
        let headers = bearer(&token(json!({ "sub": "alice", "exp": 2_000 })));
        let alice = access.judge(&headers, None, NOW).expect("let in").identity;
        let later = token(json!({ "sub": "alice", "exp": 3_000, "channels": "a" }));
        let renewed = access.renew(alice.user(), &later, NOW).expect("hers");
        assert_eq!(renewed.expires_at(), Some(UnixSeconds(3_000)));
        for claims in [json!({ "sub": "bob" }), json!({})] {
            let other = access.renew(alice.user(), &token(claims), NOW);
            assert_eq!(other, Err(RenewalError::OtherUser));
        }
        let old = access.renew(alice.user(), &token(json!({ "sub": "alice", "exp": 1 })), NOW);
        assert_eq!(old, Err(RenewalError::Token(TokenError::Expired)));
        assert_eq!(Access::open().renew(alice.user(), &later, NOW), Err(RenewalError::NoKey));
    }
}
