//! What is a token's signature checked with?
//!
//! - [`Keys`]: every key that the operator has given, read once: a secret, public keys in PEM, a JWKS
//!   file (RFC 7517).
//! - [`Algorithm`]: those that are taken, each for its own kind of key. That is what keeps a public key
//!   from being used as the secret of an HMAC (RFC 8725 section 2.1); `none` is no algorithm.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm as Signature, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Most keys of all sources together: a token that names none of them is tried with each that fits.
pub const MAX_KEYS: usize = 32;

/// The fewest bits of an RSA key: RFC 7518 section 3.3.
const MIN_RSA_BITS: usize = 2_048;

/// How a token is signed (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "these are the names of the RFCs")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 9] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// The one that a token calls `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// What a token calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }

    /// The kind of key that it takes.
    fn kind(self) -> Kind {
        match self {
            Self::HS256 | Self::HS384 | Self::HS512 => Kind::Secret,
            Self::RS256 | Self::RS384 | Self::RS512 => Kind::Rsa,
            Self::ES256 => Kind::P256,
            Self::ES384 => Kind::P384,
            Self::EdDSA => Kind::Ed25519,
        }
    }

    pub(super) fn signature(self) -> Signature {
        match self {
            Self::HS256 => Signature::HS256,
            Self::HS384 => Signature::HS384,
            Self::HS512 => Signature::HS512,
            Self::RS256 => Signature::RS256,
            Self::RS384 => Signature::RS384,
            Self::RS512 => Signature::RS512,
            Self::ES256 => Signature::ES256,
            Self::ES384 => Signature::ES384,
            Self::EdDSA => Signature::EdDSA,
        }
    }
}

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// One key.
#[derive(Clone)]
pub(super) struct Key {
    /// `kid`; only a JWKS file names keys.
    id: Option<Box<str>>,
    kind: Kind,
    /// The one algorithm that it is for, where its JWK says so.
    only: Option<Algorithm>,
    decoding: DecodingKey,
}

impl Key {
    /// Whether `algorithm` may be checked with it.
    fn fits(&self, algorithm: Algorithm) -> bool {
        algorithm.kind() == self.kind && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether `signature`, in base64url, is that of `message`.
    ///
    /// # Errors
    ///
    /// It is not base64url, or nothing that the algorithm could have made.
    pub(super) fn verifies(
        &self,
        algorithm: Algorithm,
        message: &str,
        signature: &str,
    ) -> jsonwebtoken::errors::Result<bool> {
        debug_assert!(self.fits(algorithm));
        let (message, algorithm) = (message.as_bytes(), algorithm.signature());
        jsonwebtoken::crypto::verify(signature, message, &self.decoding, algorithm)
    }
}

/// Why a text holds no keys that tokens can be checked with. Says what to do; shows nothing of a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// An HMAC cannot have it.
    #[error("the secret is empty. Write at least 32 random bytes")]
    NoSecret,
    /// No block of it is PEM.
    #[error("it holds no key in PEM. Write one that begins with -----BEGIN PUBLIC KEY-----")]
    NoPem,
    /// It is the other half.
    #[error(
        "it holds a private key, with which others could make tokens. Write its public half: \
         openssl pkey -in FILE -pubout"
    )]
    Private,
    /// A certificate has more in it than a key.
    #[error("it holds a certificate. Write its public key: openssl x509 -in FILE -pubkey -noout")]
    Certificate,
    /// What it is called is none of what is read.
    #[error(
        "it holds a block that is no public key in PEM. Write blocks that begin with \
         -----BEGIN PUBLIC KEY-----"
    )]
    OtherPem,
    /// The key itself cannot be read, or is of another kind.
    #[error(
        "a key cannot be read, or is of a kind that no algorithm takes. Write RSA keys of 2048 bits \
         or more, EC keys on P-256 or P-384, or Ed25519 keys"
    )]
    Unfit,
    /// Too easy to break.
    #[error(
        "an RSA key has {bits} bits. Write one of {MIN_RSA_BITS} or more (RFC 7518 section 3.3)"
    )]
    ShortRsa {
        /// How many it has.
        bits: usize,
    },
    /// It is no JWKS; the data is what the parser says, which repeats nothing.
    #[error(
        "it is not a JWK Set ({0}). Write JSON such as {{\"keys\": [...]}} (RFC 7517 section 5)"
    )]
    NotJwks(String),
    /// None of it can be used.
    #[error(
        "none of its {count} keys can check a token. Write keys of kty RSA, EC (P-256, P-384), OKP \
         (Ed25519) or oct, whose use is not enc, for one of the algorithms HS, RS and ES with 256, \
         384 or 512, or EdDSA"
    )]
    NoUsableKey {
        /// How many there are.
        count: usize,
    },
    /// Each costs time when a token names none.
    #[error("there are more than {MAX_KEYS} keys. Take out those that no token is signed with")]
    TooMany,
}

/// All keys. Never shown.
#[derive(Clone, Default)]
pub struct Keys {
    all: Vec<Key>,
}

impl Keys {
    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds the secret that both sides of an HMAC share: the bytes of `secret` as they are.
    ///
    /// # Errors
    ///
    /// It is empty, or one key too many.
    pub fn add_secret(&mut self, secret: &str) -> Result<(), KeyError> {
        let decoding = DecodingKey::from_secret(secret.as_bytes());
        let decoding = decoding.map_err(|_| KeyError::NoSecret)?;
        self.add(Key { id: None, kind: Kind::Secret, only: None, decoding })
    }

    /// Adds every public key in `pem`, which has at least one.
    ///
    /// # Errors
    ///
    /// A block of it is no such key, or there are too many.
    pub fn add_pem(&mut self, pem: &str) -> Result<(), KeyError> {
        const BEGIN: &str = "-----BEGIN ";
        let starts: Vec<usize> = pem.match_indices(BEGIN).map(|(at, _)| at).collect();
        if starts.is_empty() {
            return Err(KeyError::NoPem);
        }
        for (index, start) in starts.iter().enumerate() {
            let block = &pem[*start..starts.get(index + 1).copied().unwrap_or(pem.len())];
            let label = block[BEGIN.len()..].split_once("-----").map(|(label, _)| label);
            match label {
                Some("PUBLIC KEY" | "RSA PUBLIC KEY") => {}
                Some("CERTIFICATE") => return Err(KeyError::Certificate),
                Some(label) if label.ends_with("PRIVATE KEY") => return Err(KeyError::Private),
                Some(_) | None => return Err(KeyError::OtherPem),
            }
            let block = block.as_bytes();
            let decoding = DecodingKey::from_ec_pem(block)
                .or_else(|_| DecodingKey::from_ed_pem(block))
                .or_else(|_| DecodingKey::from_rsa_pem(block))
                .map_err(|_| KeyError::Unfit)?;
            let kind = kind_of(&decoding)?;
            self.add(Key { id: None, kind, only: None, decoding })?;
        }
        Ok(())
    }

    /// Adds the keys of a JWK Set that can check a token, and returns how many others there are: they
    /// are left out, as RFC 7517 section 5 wants it.
    ///
    /// # Errors
    ///
    /// It is no JWK Set, has no key that can be used, or too many.
    pub fn add_jwks(&mut self, text: &str) -> Result<usize, KeyError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set =
            serde_json::from_str(text).map_err(|error| KeyError::NotJwks(category(&error)))?;
        let count = set.keys.len();
        let usable: Vec<Key> = set.keys.into_iter().filter_map(from_jwk).collect();
        if usable.is_empty() {
            return Err(KeyError::NoUsableKey { count });
        }
        let left_out = count - usable.len();
        usable.into_iter().try_for_each(|key| self.add(key))?;
        Ok(left_out)
    }

    fn add(&mut self, key: Key) -> Result<(), KeyError> {
        if self.all.len() == MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        self.all.push(key);
        Ok(())
    }

    /// Those that a token of this algorithm may have been signed with. One that names its key by `id`
    /// is checked with keys of that name, or, where there are none, with keys that have no name.
    pub(super) fn candidates(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> impl Iterator<Item = &Key> {
        let is_known =
            id.is_some_and(|id| self.all.iter().any(|key| key.id.as_deref() == Some(id)));
        self.all.iter().filter(move |key| {
            let is_meant = match id {
                Some(id) if is_known => key.id.as_deref() == Some(id),
                Some(_) => key.id.is_none(),
                None => true,
            };
            is_meant && key.fits(algorithm)
        })
    }

    /// Whether some key is for `algorithm`, whatever its name.
    pub(super) fn take(&self, algorithm: Algorithm) -> bool {
        self.all.iter().any(|key| key.fits(algorithm))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|key| key.kind)).finish()
    }
}

/// What the parser says, in words that hold nothing of what it has read.
fn category(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "it has no list of keys" } else { "it is not JSON" };
    format!("{what}: line {}, column {}", error.line(), error.column())
}

/// The kind of a public key.
fn kind_of(key: &DecodingKey) -> Result<Kind, KeyError> {
    match Jwk::from_decoding_key(key, None).map_err(|_| KeyError::Unfit)?.algorithm {
        AlgorithmParameters::RSA(_) => {
            let bits = rsa_bits(key).ok_or(KeyError::Unfit)?;
            if bits < MIN_RSA_BITS { Err(KeyError::ShortRsa { bits }) } else { Ok(Kind::Rsa) }
        }
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => Ok(Kind::P256),
            EllipticCurve::P384 => Ok(Kind::P384),
            _ => Err(KeyError::Unfit),
        },
        AlgorithmParameters::OctetKeyPair(_) => Ok(Kind::Ed25519),
        AlgorithmParameters::OctetKey(_) => Ok(Kind::Secret),
        _ => Err(KeyError::Unfit),
    }
}

/// How many bits the modulus of an RSA key has.
fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    use base64::Engine;
    let jwk = Jwk::from_decoding_key(key, None).ok()?;
    let AlgorithmParameters::RSA(parameters) = jwk.algorithm else {
        return None;
    };
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let modulus = engine.decode(parameters.n).ok()?;
    let first = modulus.iter().position(|byte| *byte != 0)?;
    Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
}

/// The key of one JWK, if it can check a token.
fn from_jwk(value: Value) -> Option<Key> {
    let algorithm = match value.get("alg") {
        None => None,
        // One that is not taken here, such as PS256, is a reason to leave the key out.
        Some(name) => Some(Algorithm::by_name(name.as_str()?)?),
    };
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let is_for_signatures =
        jwk.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    let verifies = jwk
        .common
        .key_operations
        .as_ref()
        .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !is_for_signatures || !verifies {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let kind = kind_of(&decoding).ok()?;
    if let AlgorithmParameters::EllipticCurve(parameters) = &jwk.algorithm {
        // The library tells the curve by the length of the point alone.
        let is_that = match parameters.curve {
            EllipticCurve::P256 => kind == Kind::P256,
            EllipticCurve::P384 => kind == Kind::P384,
            _ => false,
        };
        if !is_that {
            return None;
        }
    }
    let key = Key { id: jwk.common.key_id.map(Into::into), kind, only: algorithm, decoding };
    algorithm.is_none_or(|algorithm| key.fits(algorithm)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwks(text: &str) -> Result<(Keys, usize), KeyError> {
        let mut keys = Keys::default();
        let left_out = keys.add_jwks(text)?;
        Ok((keys, left_out))
    }

    /// The ids of the keys that a token with this header would be tried with.
    fn tried<'a>(keys: &'a Keys, algorithm: Algorithm, id: Option<&str>) -> Vec<Option<&'a str>> {
        keys.candidates(algorithm, id).map(|key| key.id.as_deref()).collect()
    }

    #[test]
    fn algorithms_are_called_as_the_rfc_calls_them_and_none_is_none() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::by_name(algorithm.name()), Some(algorithm));
        }
        for name in ["none", "None", "NONE", "", "hs256", "PS256", "ES512", "RSA1_5"] {
            assert_eq!(Algorithm::by_name(name), None, "{name}");
        }
    }

    #[test]
    fn key_is_chosen_by_its_name_and_fits_its_algorithms_alone() {
        let text = r#"{"keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "b", "alg": "HS512"},
            {"kty": "oct", "k": "c2VjcmV0"}
        ]}"#;
        let (keys, left_out) = jwks(text).expect("three keys");
        assert_eq!(left_out, 0);
        assert_eq!(tried(&keys, Algorithm::HS256, Some("a")), [Some("a")]);
        assert_eq!(tried(&keys, Algorithm::HS256, Some("b")), []);
        assert_eq!(tried(&keys, Algorithm::HS512, Some("b")), [Some("b")]);
        assert_eq!(tried(&keys, Algorithm::HS256, Some("unknown")), [None]);
        assert_eq!(tried(&keys, Algorithm::HS512, None), [Some("a"), Some("b"), None]);
        for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
            assert_eq!(tried(&keys, algorithm, Some("a")), []);
            assert!(!keys.take(algorithm));
        }
    }

    #[test]
    fn jwk_that_cannot_check_a_token_is_left_out_and_counted() {
        let text = r#"{"keys": [
            {"kty": "oct", "k": "c2VjcmV0"},
            {"kty": "oct", "k": "c2VjcmV0", "use": "enc"},
            {"kty": "oct", "k": "c2VjcmV0", "key_ops": ["sign"]},
            {"kty": "oct", "k": "c2VjcmV0", "alg": "A128KW"},
            {"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"},
            {"kty": "oct", "k": "***"},
            {"kty": "oct"},
            {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
            {"kty": "weird"},
            "not an object"
        ]}"#;
        let (keys, left_out) = jwks(text).expect("one key is good");
        assert_eq!((keys.all.len(), left_out), (1, 12));
    }

    #[test]
    fn malformed_jwks_is_refused_without_its_content() {
        for (text, begins) in [
            ("", "it is not a JWK Set (it is not JSON: line 1"),
            ("sesame", "it is not a JWK Set (it is not JSON: line 1"),
            ("[\"sesame\"]", "it is not a JWK Set (it has no list of keys"),
            ("{\"keys\": \"sesame\"}", "it is not a JWK Set (it has no list of keys"),
            ("{\"keys\": []}", "none of its 0 keys can check a token."),
            ("{\"keys\": [{\"kty\": \"sesame\"}]}", "none of its 1 keys can check a token."),
        ] {
            let error = jwks(text).expect_err(text).to_string();
            assert!(error.starts_with(begins), "{error}");
            assert!(!error.contains("sesame"), "{error}");
        }
        let key = r#"{"kty": "oct", "k": "c2VjcmV0"},"#.repeat(MAX_KEYS + 1);
        let many = format!("{{\"keys\": [{}]}}", key.trim_end_matches(','));
        assert_eq!(jwks(&many).expect_err("too many"), KeyError::TooMany);
    }

    #[test]
    fn what_is_no_public_key_in_pem_is_refused_with_the_remedy() {
        let refused = |pem: &str| Keys::default().add_pem(pem).expect_err(pem);
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        assert_eq!(refused("sesame"), KeyError::NoPem);
        assert_eq!(refused("-----BEGIN "), KeyError::OtherPem);
        for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
            assert_eq!(refused(&block(label)), KeyError::Private, "{label}");
        }
        assert_eq!(refused(&block("CERTIFICATE")), KeyError::Certificate);
        assert_eq!(refused(&block("DH PARAMETERS")), KeyError::OtherPem);
        assert_eq!(refused(&block("PUBLIC KEY")), KeyError::Unfit);
        assert_eq!(refused("-----BEGIN PUBLIC KEY-----"), KeyError::Unfit);
    }

    #[test]
    fn secret_may_not_be_empty_and_is_not_shown() {
        let mut keys = Keys::default();
        assert_eq!(keys.add_secret(""), Err(KeyError::NoSecret));
        keys.add_secret("sesame").expect("a secret");
        assert_eq!(format!("{keys:?}"), "[Secret]");
    }
}
