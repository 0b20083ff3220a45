//! Tokens made here, by the RFCs, and by nobody at all.

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use serde_json::json;

use super::*;
use crate::auth::signer::{SigningError, SigningKey};
use crate::pubsub::ChannelName;

const NOW: UnixSeconds = UnixSeconds(1_000_000);
const SECRET: &str = "correct horse battery staple, and more";

fn verifier(keys: Keys) -> Verifier {
    Verifier {
        keys,
        audiences: Vec::new(),
        issuers: Vec::new(),
        leeway_seconds: 0,
        default_permissions: Permissions::default(),
    }
}

fn by_secret() -> Verifier {
    let mut keys = Keys::default();
    keys.add_secret(SECRET).expect("a secret");
    verifier(keys)
}

fn by_pem(pem: &str) -> Verifier {
    let mut keys = Keys::default();
    keys.add_pem(pem).expect("a public key");
    verifier(keys)
}

fn sign(claims: &Value) -> String {
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    key.sign(claims.as_object().expect("an object"), None, None).expect("it signs")
}

/// What becomes of a token with these claims.
fn verdict(verifier: &Verifier, claims: &Value) -> Result<Identity, TokenError> {
    verifier.verify(&sign(claims), NOW).map(|verified| verified.identity)
}

/// A token with this header and these claims, as they are, under the right HMAC.
fn sign_text(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", encode(header), encode(claims));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes()).expect("a secret");
    let algorithm = jsonwebtoken::Algorithm::HS256;
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm);
    format!("{message}.{}", signature.expect("it signs"))
}

#[test]
fn every_algorithm_verifies_what_its_key_has_signed_and_nothing_else() {
    let pair = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
    let pairs = [
        pair(&PKCS_RSA_SHA256),
        pair(&PKCS_ECDSA_P256_SHA256),
        pair(&PKCS_ECDSA_P384_SHA384),
        pair(&PKCS_ED25519),
    ];
    let claims = json!({ "sub": "alice" });
    let claims = claims.as_object().expect("an object");
    let secret = SigningKey::from_secret(SECRET).expect("a secret");
    let signers = pairs.iter().map(|pair| {
        let signer = SigningKey::from_pem(&pair.serialize_pem()).expect("a private key");
        (signer, by_pem(&pair.public_key_pem()))
    });
    let signers: Vec<_> = std::iter::once((secret, by_secret())).chain(signers).collect();
    let mut signed = Vec::new();
    for algorithm in Algorithm::ALL {
        let mut fitting = 0;
        for (index, (signer, verifier)) in signers.iter().enumerate() {
            match signer.sign(claims, Some(algorithm), None) {
                Ok(token) => {
                    let verified = verifier.verify(&token, NOW).expect("its own token");
                    assert_eq!(verified.algorithm, algorithm);
                    assert_eq!(verified.identity.user().expect("sub").as_str(), "alice");
                    signed.push((index, token));
                    fitting += 1;
                }
                Err(error) => {
                    assert!(
                        matches!(error, SigningError::Algorithm { asked, .. } if asked == algorithm)
                    );
                }
            }
        }
        assert_eq!(fitting, 1, "{} is for one kind of key", algorithm.name());
    }
    for (signed_by, token) in &signed {
        for (index, (_, verifier)) in signers.iter().enumerate() {
            if index != *signed_by {
                let refused = verifier.verify(token, NOW).map(|_| ());
                assert_eq!(refused, Err(TokenError::Algorithm));
            }
        }
        // Another signature of the right form.
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let other = if signature.starts_with('A') { "B" } else { "A" };
        let damaged = format!("{message}.{other}{}", &signature[1..]);
        let refused = signers[*signed_by].1.verify(&damaged, NOW).map(|_| ());
        assert_eq!(refused, Err(TokenError::Signature));
    }
}

#[test]
fn several_public_keys_in_one_file_are_tried_one_after_the_other() {
    let pairs = [(); 2].map(|()| KeyPair::generate_for(&PKCS_ED25519).expect("a key"));
    let verifier = by_pem(&pairs.iter().map(KeyPair::public_key_pem).collect::<String>());
    for pair in pairs {
        let key = SigningKey::from_pem(&pair.serialize_pem()).expect("a private key");
        let token = key.sign(&serde_json::Map::new(), None, None).expect("it signs");
        assert!(verifier.verify(&token, NOW).is_ok());
    }
}

#[test]
fn public_key_is_no_secret_of_an_hmac() {
    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let public = pair.public_key_pem();
    let verifier = by_pem(&public);
    let der = pair.public_key_raw().to_vec();
    for secret in [public.as_bytes(), &der] {
        let key = jsonwebtoken::EncodingKey::from_secret(secret).expect("a secret");
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        let token = jsonwebtoken::encode(&header, &json!({}), &key).expect("it signs");
        let refused = verifier.verify(&token, NOW).map(|_| ());
        assert_eq!(refused, Err(TokenError::Algorithm));
    }
}

#[test]
fn example_of_rfc_7515_appendix_a1_holds_until_its_exp() {
    let mut keys = Keys::default();
    let jwks = r#"{"keys": [{"kty": "oct", "k":
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}]}"#;
    keys.add_jwks(jwks).expect("the key of the RFC");
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                 eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
                 dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let joe = Verifier { issuers: vec!["joe".to_owned()], ..verifier(keys) };
    assert!(joe.verify(token, UnixSeconds(1_300_819_379)).is_ok());
    let late = joe.verify(token, UnixSeconds(1_300_819_380)).map(|_| ());
    assert_eq!(late, Err(TokenError::Expired));
}

#[test]
fn example_of_rfc_7515_appendix_a3_is_signed_on_p256() {
    let mut keys = Keys::default();
    let jwks = r#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "a3",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    keys.add_jwks(jwks).expect("the key of the RFC");
    let token = "eyJhbGciOiJFUzI1NiJ9.\
                 eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
                 DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    assert!(verifier(keys).verify(token, UnixSeconds(0)).is_ok());
}

#[test]
fn token_without_an_algorithm_of_ours_is_refused_however_it_is_spelt() {
    let verifier = by_secret();
    for algorithm in ["none", "None", "nOnE", "", "HS1", "hs256", "RS256", "PS256"] {
        let header = json!({ "alg": algorithm }).to_string();
        for token in [
            sign_text(&header, "{}"),
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode("{}")),
        ] {
            let refused = verifier.verify(&token, NOW).map(|_| ());
            assert_eq!(refused, Err(TokenError::Algorithm), "{algorithm}");
        }
    }
}

#[test]
fn exp_and_nbf_hold_to_the_second_and_with_the_leeway() {
    let UnixSeconds(now) = NOW;
    let verifier = by_secret();
    let strict = |claims| verdict(&verifier, &claims).map(|_| ());
    assert_eq!(strict(json!({ "exp": now + 1 })), Ok(()));
    assert_eq!(strict(json!({ "exp": now })), Err(TokenError::Expired));
    assert_eq!(strict(json!({ "exp": now as f64 + 1.5 })), Ok(()));
    assert_eq!(strict(json!({ "exp": now as f64 + 0.5 })), Err(TokenError::Expired));
    assert_eq!(strict(json!({ "exp": 0 })), Err(TokenError::Expired));
    assert_eq!(strict(json!({ "exp": u64::MAX })), Ok(()));
    assert_eq!(strict(json!({ "nbf": now })), Ok(()));
    assert_eq!(strict(json!({ "nbf": now + 1 })), Err(TokenError::NotYetValid));
    assert_eq!(strict(json!({ "nbf": u64::MAX })), Err(TokenError::NotYetValid));
    let lenient = Verifier { leeway_seconds: 10, ..by_secret() };
    let lenient = |claims| verdict(&lenient, &claims).map(|_| ());
    assert_eq!(lenient(json!({ "exp": now - 9 })), Ok(()));
    assert_eq!(lenient(json!({ "exp": now - 10 })), Err(TokenError::Expired));
    assert_eq!(lenient(json!({ "nbf": now + 10 })), Ok(()));
    assert_eq!(lenient(json!({ "nbf": now + 11 })), Err(TokenError::NotYetValid));
    assert_eq!(lenient(json!({ "exp": u64::MAX, "nbf": 0 })), Ok(()));
}

#[test]
fn audience_is_a_text_or_a_list_and_must_not_be_there_unexpected() {
    let expecting = Verifier { audiences: vec!["chat".into(), "push".into()], ..by_secret() };
    for audience in [json!("chat"), json!(["x", "push"])] {
        assert!(verdict(&expecting, &json!({ "aud": audience })).is_ok(), "{audience}");
    }
    for audience in [json!("x"), json!(["x"]), json!([]), json!(null), json!(7), json!("Chat")] {
        let refused = verdict(&expecting, &json!({ "aud": audience }));
        assert_eq!(refused, Err(TokenError::Audience), "{audience}");
    }
    assert_eq!(verdict(&expecting, &json!({})), Err(TokenError::Audience));
    assert!(verdict(&by_secret(), &json!({})).is_ok());
    assert_eq!(verdict(&by_secret(), &json!({ "aud": "x" })), Err(TokenError::Audience));
}

#[test]
fn issuer_is_compared_where_one_is_expected() {
    let expecting = Verifier { issuers: vec!["https://id.example".into()], ..by_secret() };
    assert!(verdict(&expecting, &json!({ "iss": "https://id.example" })).is_ok());
    for issuer in [json!("https://id.example/"), json!(null), json!(["https://id.example"])] {
        let refused = verdict(&expecting, &json!({ "iss": issuer }));
        assert_eq!(refused, Err(TokenError::Issuer), "{issuer}");
    }
    assert!(verdict(&by_secret(), &json!({ "iss": "anybody" })).is_ok());
}

#[test]
fn permissions_are_lists_or_texts_and_channels_are_both() {
    let may = |claims| {
        let identity = verdict(&by_secret(), &claims).expect("good claims");
        let name = |name| ChannelName::new(name).expect("a name");
        ["a", "b", "c"].map(|channel| {
            let (subscribe, publish) =
                (identity.may_subscribe(&name(channel)), identity.may_publish(&name(channel)));
            (subscribe.is_some(), publish.is_some())
        })
    };
    let claims = json!({ "subscribe": ["a"], "publish": "b", "channels": ["c"] });
    assert_eq!(may(claims), [(true, false), (false, true), (true, true)]);
    assert_eq!(may(json!({})), [(false, false); 3], "nothing is allowed that is not said");
    assert_eq!(may(json!({ "channels": "*" })), [(true, true); 3]);
}

#[test]
fn default_permissions_are_for_tokens_that_say_nothing_about_channels() {
    let all: Vec<ChannelPattern> = vec!["*".parse().expect("a pattern")];
    let default_permissions = Permissions::new(all.clone(), all).expect("one of each");
    let verifier = Verifier { default_permissions, ..by_secret() };
    let channel = ChannelName::new("a").expect("a name");
    let may = |claims| {
        let identity = verdict(&verifier, &claims).expect("good claims");
        identity.may_subscribe(&channel).is_some()
    };
    assert!(may(json!({ "sub": "alice" })));
    assert!(!may(json!({ "subscribe": [] })));
    assert!(!may(json!({ "publish": ["a"] })));
}

#[test]
fn claim_that_cannot_be_read_is_named_and_not_repeated() {
    let many = vec!["sesame"; 129];
    for (claim, value) in [
        ("sub", json!(7)),
        ("sub", json!("")),
        ("sub", json!("sesame".repeat(50))),
        ("exp", json!("sesame")),
        ("exp", json!(-1)),
        ("nbf", json!(["sesame"])),
        ("subscribe", json!({ "sesame": 1 })),
        ("publish", json!([7])),
        ("channels", json!([""])),
        ("channels", json!(["sesame".repeat(50)])),
        ("channels", json!(many)),
    ] {
        let error = verdict(&by_secret(), &json!({ claim: value })).expect_err(claim);
        let text = error.to_string();
        assert!(text.starts_with(&format!("the claim {claim} of the token")), "{text}");
        assert!(!text.contains("sesame"), "{text}");
    }
}

#[test]
fn what_has_not_the_form_of_a_token_is_refused() {
    let header = "{\"alg\":\"HS256\"}";
    let verifier = by_secret();
    let good = sign_text(header, "{}");
    assert!(verifier.verify(&good, NOW).is_ok());
    let long = sign_text(header, &format!("{{\"x\":\"{}\"}}", "x".repeat(MAX_TOKEN_BYTES)));
    for token in [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "sesame",
        &format!("{good}."),
        &format!("{good}.x"),
        &good.replacen('.', "=.", 1),
        &sign_text("[\"HS256\"]", "{}"),
        &sign_text("", "{}"),
        &sign_text("{\"alg\":\"HS256\",\"alg\":\"HS256\"}", "{}"),
        &sign_text("{\"alg\":\"HS256\",\"kid\":7}", "{}"),
        &sign_text("{\"alg\":\"HS256\",\"crit\":[\"exp\"]}", "{}"),
        &sign_text("{\"alg\":\"HS256\",\"b64\":false}", "{}"),
        &sign_text(header, "[]"),
        &sign_text(header, "\"text\""),
        &sign_text(header, "{\"exp\":1,\"exp\":2000000}"),
        &long,
    ] {
        let error = verifier.verify(token, NOW).map(|_| ()).expect_err(token);
        assert!(matches!(error, TokenError::Malformed(_)), "{error:?}: {token}");
    }
}

#[test]
fn token_of_a_key_that_is_not_known_is_told_from_one_that_is_forged() {
    let mut keys = Keys::default();
    keys.add_jwks(r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "new"}]}"#).expect("a key");
    let verifier = verifier(keys);
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    let refused = |id| {
        let token = key.sign(&serde_json::Map::new(), None, id).expect("it signs");
        verifier.verify(&token, NOW).map(|_| ()).expect_err("another key")
    };
    assert_eq!(refused(Some("old")), TokenError::UnknownKey);
    assert_eq!(refused(Some("new")), TokenError::Signature);
    assert_eq!(refused(None), TokenError::Signature);
}

#[test]
fn reasons_have_names_of_their_own() {
    let claim = TokenError::Claim { claim: "sub", problem: String::new() };
    assert_eq!(TOKEN_ERRORS[TokenError::Malformed("").index()], "malformed");
    assert_eq!(TOKEN_ERRORS[TokenError::Expired.index()], "expired");
    assert_eq!(TOKEN_ERRORS[claim.index()], "claim");
}
