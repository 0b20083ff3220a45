//! Who may connect: what the operator says about tokens, and the files with keys that this names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::error::{ConfigError, ConfigErrors, Source};
use super::key::Key;
use super::layers::Layers;
use super::value::{self, ValueError};
use super::{Config, would_be_guessed};
use crate::auth::access::Access;
use crate::auth::keys::Keys;
use crate::auth::pattern::{ChannelPattern, Permissions};
use crate::auth::token::Verifier;

/// What is done with clients that come without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anonymous {
    Allow,
    Deny,
}

impl Anonymous {
    pub(super) const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    /// The word that an operator writes for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A secret that both sides of an HMAC share. Never shown.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    /// The secret itself, to be compared.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Everything that is said about tokens, with files by their paths.
#[derive(Clone, Debug)]
pub(super) struct TokenSettings {
    pub(super) anonymous: Anonymous,
    pub(super) anonymous_subscribe: Vec<ChannelPattern>,
    pub(super) anonymous_publish: Vec<ChannelPattern>,
    pub(super) hmac_secret: Option<Secret>,
    pub(super) public_key: Option<PathBuf>,
    pub(super) jwks: Option<PathBuf>,
    pub(super) audiences: Vec<String>,
    pub(super) issuers: Vec<String>,
    /// Whole seconds, as `exp` and `nbf` are.
    pub(super) leeway: Duration,
    pub(super) default_channels: Vec<ChannelPattern>,
}

impl TokenSettings {
    pub(super) fn resolve(layers: &mut Layers<'_>) -> Self {
        let hmac_secret = layers.optional(Key::TokenHmacSecret, value::secret).map(Secret);
        let file =
            |layers: &mut Layers<'_>, key| layers.optional(key, value::text).map(PathBuf::from);
        let public_key = file(layers, Key::TokenPublicKey);
        let jwks = file(layers, Key::TokenJwks);
        let has_key = hmac_secret.is_some() || public_key.is_some() || jwks.is_some();
        let anonymous = layers
            .optional(Key::Anonymous, |raw| value::choice(raw, &Anonymous::ALL, Anonymous::name));
        if anonymous == Some(Anonymous::Deny) && !has_key {
            layers.refuse_everybody();
        }
        let without_word = if has_key { Anonymous::Deny } else { Anonymous::Allow };
        let texts =
            |layers: &mut Layers<'_>, key| layers.optional(key, value::texts).unwrap_or_default();
        Self {
            anonymous: anonymous.unwrap_or(without_word),
            anonymous_subscribe: layers.value(Key::AnonymousSubscribe, value::patterns),
            anonymous_publish: layers.value(Key::AnonymousPublish, value::patterns),
            hmac_secret,
            public_key,
            jwks,
            audiences: texts(layers, Key::TokenAudience),
            issuers: texts(layers, Key::TokenIssuer),
            leeway: layers.value(Key::TokenLeeway, value::whole_seconds),
            default_channels: layers
                .optional(Key::TokenDefaultChannels, value::patterns)
                .unwrap_or_default(),
        }
    }

    /// The access without the keys that are in files. Whoever has a token of those is not let in.
    pub(super) fn without_files(&self) -> Access {
        let mut keys = Keys::default();
        if let Some(Secret(secret)) = &self.hmac_secret {
            keys.add_secret(secret).expect("an empty secret was refused, and it is the first key");
        }
        self.access(keys)
    }

    fn access(&self, keys: Keys) -> Access {
        let permissions = |subscribe: &[ChannelPattern], publish: &[ChannelPattern]| {
            Permissions::new(subscribe.to_vec(), publish.to_vec()).expect("more were refused")
        };
        let has_key =
            self.hmac_secret.is_some() || self.public_key.is_some() || self.jwks.is_some();
        let verifier = has_key.then(|| Verifier {
            keys,
            audiences: self.audiences.clone(),
            issuers: self.issuers.clone(),
            leeway_seconds: self.leeway.as_secs(),
            default_permissions: permissions(&self.default_channels, &self.default_channels),
        });
        let anonymous = match self.anonymous {
            Anonymous::Allow => {
                Some(permissions(&self.anonymous_subscribe, &self.anonymous_publish))
            }
            Anonymous::Deny => None,
        };
        Access::new(verifier, anonymous)
    }
}

impl Config {
    /// Reads the files with keys that the settings name.
    ///
    /// # Errors
    ///
    /// One of them cannot be read, or holds no keys.
    pub(super) fn read_key_files(mut self) -> Result<Self, ConfigErrors> {
        let (mut keys, mut errors) = (Keys::default(), Vec::new());
        let mut add = |key: Key, path: &Path, result: Result<(), ValueError>| {
            let from = self.sources.get(&key).cloned().unwrap_or(Source::Default);
            if let Err(error) = result {
                let shown = format!("{path:?}");
                errors.push(ConfigError::Value { key, shown, from, error });
            }
        };
        if let Some(Secret(secret)) = &self.tokens.hmac_secret {
            keys.add_secret(secret).expect("an empty secret was refused, and it is the first key");
        }
        if let Some(path) = &self.tokens.public_key {
            let added = read(path).and_then(|pem| Ok(keys.add_pem(&pem)?));
            add(Key::TokenPublicKey, path, added);
        }
        if let Some(path) = &self.tokens.jwks {
            let added = read(path).and_then(|text| Ok(keys.add_jwks(&text)?));
            if let Ok(left_out @ 1..) = added {
                self.notices.push(format!(
                    "token_jwks is {path:?}: {left_out} of its keys cannot check a token and are \
                     not used"
                ));
            }
            add(Key::TokenJwks, path, added.map(|_| ()));
        }
        match ConfigErrors::new(errors) {
            Some(errors) => Err(errors),
            None => {
                self.settings.shard.access = Arc::new(self.tokens.access(keys));
                Ok(self)
            }
        }
    }

    /// The secret, for whoever makes tokens with it.
    pub fn token_hmac_secret(&self) -> Option<&str> {
        self.tokens.hmac_secret.as_ref().map(|Secret(secret)| secret.as_str())
    }

    /// What tokens are expected to be for.
    pub fn token_audiences(&self) -> &[String] {
        &self.tokens.audiences
    }

    /// Who is expected to have made tokens.
    pub fn token_issuers(&self) -> &[String] {
        &self.tokens.issuers
    }

    /// What is more likely a mistake.
    pub(super) fn token_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.sources[&Key::TokenHmacSecret] == Source::Flag {
            warnings.push(format!(
                "token_hmac_secret is given by {flag}: whoever may list the processes of this \
                 machine can read it, and make tokens. Give it by {variable} or in the file instead",
                flag = Key::TokenHmacSecret.flag(),
                variable = Key::TokenHmacSecret.variable(),
            ));
        }
        if let Some(secret) = self.token_hmac_secret()
            && would_be_guessed(secret)
        {
            warnings.push(format!(
                "token_hmac_secret has {} bytes: whoever has a token can try secrets on it at \
                 leisure. Use at least 32 random bytes: openssl rand -hex 32",
                secret.len()
            ));
        }
        let access = &self.settings.shard.access;
        if access.verifier().is_none()
            && [Key::TokenAudience, Key::TokenIssuer, Key::TokenDefaultChannels]
                .iter()
                .any(|key| self.sources[key] != Source::Default)
        {
            warnings.push(
                "settings about tokens are given, but no key: tokens are not looked at. Give \
                 token_hmac_secret, token_public_key or token_jwks"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// More than any file of [`MAX_KEYS`](crate::auth::keys::MAX_KEYS) keys has.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

fn read(path: &Path) -> Result<String, ValueError> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(ValueError::KeyFile)?;
    let read = file.take(MAX_KEY_FILE_BYTES + 1).read_to_string(&mut text);
    match read.map_err(ValueError::KeyFile)? as u64 {
        0..=MAX_KEY_FILE_BYTES => Ok(text),
        _ => Err(ValueError::LongKeyFile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{by_file, by_flags, resolve};

    fn lets_in_anonymous(flags: &[&str]) -> bool {
        by_flags(flags).expect("good").settings.shard.access.lets_in_anonymous()
    }

    #[test]
    fn anonymous_clients_are_let_in_unless_there_is_a_key_or_the_operator_says_otherwise() {
        let secret = "--token-hmac-secret=0123456789abcdef0123456789abcdef";
        assert!(lets_in_anonymous(&[]));
        assert!(lets_in_anonymous(&["--anonymous", "allow"]));
        assert!(!lets_in_anonymous(&[secret]));
        assert!(lets_in_anonymous(&[secret, "--anonymous", "allow"]));
        assert!(!lets_in_anonymous(&["--token-jwks", "keys.json"]));
    }

    #[test]
    fn gateway_that_would_let_nobody_in_is_refused() {
        assert_eq!(
            by_file("anonymous = \"deny\"\n").unwrap_err(),
            [
                "anonymous is deny (from wsgate.toml, line 1) but there is no key to check tokens with: \
              nobody could connect. Give token_hmac_secret, token_public_key or token_jwks, or set \
              anonymous to allow"
            ]
        );
    }

    #[test]
    fn secret_is_never_shown() {
        let variables = [("WSGATE_TOKEN_HMAC_SECRET", "sesame")];
        let config = resolve(&[], &variables, None).expect("good");
        let toml = config.to_toml();
        let line = "token_hmac_secret = \"***\"  # from WSGATE_TOKEN_HMAC_SECRET\n";
        assert!(toml.contains(line), "{toml}");
        for shown in [format!("{config:?}"), format!("{:?}", config.settings), toml] {
            assert!(!shown.contains("sesame"), "{shown}");
        }
        let [warning] = &config.warnings()[..] else { panic!("exactly one warning") };
        assert!(warning.starts_with("token_hmac_secret has 6 bytes:"), "{warning}");
        let errors = by_file("token_hmac_secret = [\"sesame\"]").unwrap_err();
        assert!(errors[0].starts_with("token_hmac_secret is *** (from wsgate.toml, line 1):"));
    }

    #[test]
    fn secret_on_the_command_line_is_warned_of() {
        let config = by_flags(&["--token-hmac-secret", "0123456789abcdef0123456789abcdef"]);
        let warnings = config.expect("allowed").warnings();
        let [warning] = &warnings[..] else { panic!("exactly one warning: {warnings:?}") };
        assert!(warning.starts_with("token_hmac_secret is given by --token-hmac-secret:"));
    }

    #[test]
    fn settings_without_a_key_are_warned_of() {
        let config = by_flags(&["--token-audience", "chat"]).expect("allowed");
        let [warning] = &config.warnings()[..] else { panic!("exactly one warning") };
        assert!(warning.starts_with("settings about tokens are given, but no key"), "{warning}");
    }

    #[test]
    fn leeway_with_a_fraction_of_a_second_is_refused_instead_of_cut() {
        for text in ["500ms", "1s 500ms", "1ns"] {
            let errors = by_flags(&["--token-leeway", text]).unwrap_err();
            let error = format!(
                "token_leeway is \"{text}\" (from --token-leeway): it has a fraction of a second, and \
                 the times in tokens have none. Write whole seconds, such as 0s, 1s or 1m 30s"
            );
            assert_eq!(errors, [error]);
        }
        for text in ["0s", "1000ms", "1m 30s"] {
            assert!(by_flags(&["--token-leeway", text]).is_ok(), "{text}");
        }
    }

    #[test]
    fn file_that_holds_no_keys_is_named_with_the_remedy() {
        let config = by_flags(&["--token-jwks", "/nowhere/keys.json"]).expect("not read yet");
        let errors = config.read_key_files().map(|_| ()).expect_err("there is no such file");
        let error = errors.to_string();
        let begin = "token_jwks is \"/nowhere/keys.json\" (from --token-jwks): it cannot be read";
        assert!(error.starts_with(begin), "{error}");
    }

    #[test]
    fn patterns_come_separated_by_commas_or_as_a_list() {
        let allowed = |config: Result<Config, Vec<String>>| {
            let patterns = config.expect("good").tokens.anonymous_subscribe;
            patterns.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let expected = ["news:*", "lobby"];
        assert_eq!(allowed(by_flags(&["--anonymous-subscribe", "news:*, lobby"])), expected);
        assert_eq!(allowed(by_file("anonymous_subscribe = [\"news:*\", \"lobby\"]")), expected);
        assert!(allowed(by_file("anonymous_subscribe = []")).is_empty());
        assert!(by_flags(&["--anonymous-publish", "a,,b"]).is_err());
    }
}
