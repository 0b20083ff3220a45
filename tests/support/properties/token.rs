//! Tokens, and the keys that they are checked with.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use wsgate::auth::bearer::presented;
use wsgate::auth::identity::UnixSeconds;
use wsgate::auth::keys::Keys;
use wsgate::auth::pattern::Permissions;
use wsgate::auth::token::Verifier;

use super::input::Input;

const NOW: u64 = 1_000_000;
const SECRET: &str = "nobody guesses this one in a search";

/// Knows this secret, and the public keys of RFC 7515 appendix A.3 and RFC 8037 appendix A.
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let mut keys = Keys::default();
    keys.add_secret(SECRET).expect("a secret");
    let jwks = r#"{"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "ec",
         "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    ]}"#;
    assert_eq!(keys.add_jwks(jwks), Ok(0));
    Verifier {
        keys,
        audiences: Vec::new(),
        issuers: Vec::new(),
        leeway_seconds: 0,
        default_permissions: Permissions::default(),
    }
});

/// Checks all that reads tokens with one input: a byte that says what the rest is.
///
/// - A token: it is refused, in a short text that does not repeat it.
/// - The claims of a token under the right signature: refused, or believed for what their JSON says.
/// - The header of such a token: refused unless it names the algorithm of the signature.
/// - A value of the headers in which tokens come: read or refused.
/// - A file of keys, PEM or JWKS: read or refused.
pub fn token(data: &[u8]) {
    let mut input = Input::new(data);
    match (input.below(5), input.rest()) {
        (0, token) => refuse(&String::from_utf8_lossy(token)),
        (1, claims) => believe(claims),
        (2, header) => {
            let signed = sign(header, b"{}");
            let is_taken = VERIFIER.verify(&signed, UnixSeconds(NOW)).is_ok();
            let algorithm =
                serde_json::from_slice(header).map(|header: Value| header["alg"].clone());
            assert!(!is_taken || algorithm.is_ok_and(|algorithm| algorithm == "HS256"));
        }
        (3, value) => {
            let Ok(value) = HeaderValue::from_bytes(value) else { return };
            let names = [AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL];
            let headers: HeaderMap = names.map(|name| (name, value.clone())).into_iter().collect();
            let query = String::from_utf8_lossy(value.as_bytes()).into_owned();
            _ = presented(&headers, Some(&query));
        }
        (_, text) => {
            let text = String::from_utf8_lossy(text);
            for error in
                [Keys::default().add_pem(&text).err(), Keys::default().add_jwks(&text).err()]
            {
                assert!(error.is_none_or(|error| error.to_string().len() < 400));
            }
        }
    }
}

fn refuse(token: &str) {
    let verdict = VERIFIER.verify(token, UnixSeconds(NOW));
    let error = verdict.map(|_| ()).expect_err("nobody has signed it").to_string();
    assert!(error.len() < 256, "{error}");
    assert!(token.len() < 16 || !error.contains(token), "{error}");
}

fn believe(claims: &[u8]) {
    let signed = sign(b"{\"alg\":\"HS256\"}", claims);
    match VERIFIER.verify(&signed, UnixSeconds(NOW)) {
        Err(error) => assert!(error.to_string().len() < 256, "{error}"),
        Ok(verified) => {
            let identity = verified.identity;
            let said: Value = serde_json::from_slice(claims).expect("it was read before");
            assert_eq!(identity.user().map(|user| user.as_str()), said["sub"].as_str());
            assert!(identity.expires_at().is_none_or(|UnixSeconds(seconds)| seconds > NOW));
            assert_eq!(identity.expires_at().is_some(), !said["exp"].is_null());
            assert!(said["aud"].is_null(), "none is expected");
            let patterns = |name: &str| match &said[name] {
                Value::Null => 0,
                Value::Array(patterns) => patterns.len(),
                _ => 1,
            };
            let (both, permissions) = (patterns("channels"), identity.permissions());
            assert_eq!(permissions.subscribe().len(), patterns("subscribe") + both);
            assert_eq!(permissions.publish().len(), patterns("publish") + both);
        }
    }
}

/// A token of these parts under the HMAC that [`VERIFIER`] knows.
fn sign(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes()).expect("a secret");
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    format!("{message}.{}", signature.expect("it signs"))
}
