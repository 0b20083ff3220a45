//! Makes tokens: for operators who try something (`wsgate token make`), and for tests. An application
//! makes its own, with the library of its language.

use std::fmt;

use jsonwebtoken::{AlgorithmFamily, EncodingKey, Header};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::auth::keys::Algorithm;

/// The key that a token is signed with. Never shown.
pub struct SigningKey {
    key: EncodingKey,
    /// Its algorithms, the usual one first. Never empty.
    algorithms: &'static [Algorithm],
}

/// Why nothing can be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SigningError {
    /// An HMAC cannot have it.
    #[error("the secret is empty")]
    NoSecret,
    /// The text holds no private key that is read.
    #[error(
        "it holds no private key in PEM of RSA, EC (P-256, P-384, as PKCS #8) or Ed25519. Convert \
         another form: openssl pkcs8 -topk8 -nocrypt -in FILE"
    )]
    NotAKey,
    /// The algorithm is for another kind of key.
    #[error("{} is for another kind of key; this one is for {}", .asked.name(), .usual.name())]
    Algorithm {
        /// Which was asked for.
        asked: Algorithm,
        /// Which it would be.
        usual: Algorithm,
    },
    /// The key is broken.
    #[error("nothing can be signed with this key")]
    Refused,
}

impl SigningKey {
    /// The secret that both sides of an HMAC share.
    ///
    /// # Errors
    ///
    /// It is empty.
    pub fn from_secret(secret: &str) -> Result<Self, SigningError> {
        let key =
            EncodingKey::from_secret(secret.as_bytes()).map_err(|_| SigningError::NoSecret)?;
        let algorithms = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        Ok(Self { key, algorithms })
    }

    /// A private key in PEM.
    ///
    /// # Errors
    ///
    /// It is none, or of a kind that no algorithm takes.
    pub fn from_pem(pem: &str) -> Result<Self, SigningError> {
        let pem = pem.as_bytes();
        let key = EncodingKey::from_ec_pem(pem)
            .or_else(|_| EncodingKey::from_ed_pem(pem))
            .or_else(|_| EncodingKey::from_rsa_pem(pem))
            .map_err(|_| SigningError::NotAKey)?;
        let families: [(AlgorithmFamily, &'static [Algorithm]); 4] = [
            (AlgorithmFamily::Rsa, &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512]),
            (AlgorithmFamily::Ec, &[Algorithm::ES256]),
            (AlgorithmFamily::Ec, &[Algorithm::ES384]),
            (AlgorithmFamily::Ed, &[Algorithm::EdDSA]),
        ];
        // The curve of an EC key is told by which of its algorithms can sign.
        let found = families.into_iter().find(|(family, algorithms)| {
            *family == key.family()
                && jsonwebtoken::crypto::sign(b"", &key, algorithms[0].signature()).is_ok()
        });
        let (_, algorithms) = found.ok_or(SigningError::NotAKey)?;
        Ok(Self { key, algorithms })
    }

    /// Signs `claims`, by the usual algorithm of the key where none is asked for.
    ///
    /// # Errors
    ///
    /// The key is not for that algorithm, or of no use.
    pub fn sign(
        &self,
        claims: &Map<String, Value>,
        algorithm: Option<Algorithm>,
        key_id: Option<&str>,
    ) -> Result<String, SigningError> {
        let usual = self.algorithms[0];
        let asked = algorithm.unwrap_or(usual);
        if !self.algorithms.contains(&asked) {
            return Err(SigningError::Algorithm { asked, usual });
        }
        let mut header = Header::new(asked.signature());
        header.kid = key_id.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| SigningError::Refused)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.algorithms[0]).finish()
    }
}
