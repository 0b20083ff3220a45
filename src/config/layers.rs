//! Which source decides a setting? The first of flag, environment, file and default that
//! says anything; what the others say is not read as a value. What is wrong is collected on the
//! way, so that the operator hears of everything at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use super::cli::Flags;
use super::error::{ConfigError, ConfigErrors, Source};
use super::file::File;
use super::key::{DefaultValue, Key, VARIABLE_PREFIX};
use super::value::{Raw, ValueError};

/// Names the file; the one variable that is no [`Key`].
const CONFIG_VARIABLE: &str = "WSGATE_CONFIG";

/// The variables of the environment that are meant for us.
#[derive(Debug, Default)]
pub(super) struct Environment {
    given: BTreeMap<Key, Raw>,
    config: Option<OsString>,
    /// Names of variables that are nearly one of ours, each with the key that was probably meant.
    misspelt: Vec<(String, Key)>,
}

impl Environment {
    pub(super) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            // Ours are ASCII, so what is not UTF-8 is none of them.
            let Ok(name) = name.into_string() else { continue };
            if name == CONFIG_VARIABLE {
                environment.config = Some(value);
            } else if let Some(key) = Key::by_variable(&name) {
                let raw = value.into_string().map_or(Raw::NotUtf8, Raw::Text);
                environment.given.insert(key, raw);
            } else if let Some(key) = name.strip_prefix(VARIABLE_PREFIX).and_then(Key::closest) {
                environment.misspelt.push((name, key));
            }
        }
        environment
    }

    /// The file that the environment names.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref().map(Path::new)
    }
}

/// The sources, and what came of asking them.
pub(super) struct Layers<'a> {
    flags: &'a Flags,
    environment: Environment,
    file: Option<File>,
    /// Where each value that was asked for came from.
    sources: BTreeMap<Key, Source>,
    /// Keys whose value could not be read, so that nothing can be said about how it goes with
    /// others.
    unread: BTreeSet<Key>,
    errors: Vec<ConfigError>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(flags: &'a Flags, environment: Environment, mut file: Option<File>) -> Self {
        let errors = file.as_mut().map(File::take_errors).unwrap_or_default();
        Self { flags, environment, file, sources: BTreeMap::new(), unread: BTreeSet::new(), errors }
    }

    /// The value of `key`, or its default where what was written is refused by `read`.
    pub(super) fn value<T>(&mut self, key: Key, read: impl Fn(&Raw) -> Result<T, ValueError>) -> T {
        self.optional(key, &read).unwrap_or_else(|| match key.about().default {
            DefaultValue::Text(text) => read(&Raw::Text(text.to_owned())).unwrap_or_else(|error| {
                unreachable!("the default {text:?} of {key} is refused: {error}")
            }),
            DefaultValue::Described(_) => {
                unreachable!("{key} has no fixed default to fall back to")
            }
        })
    }

    /// The value of `key`, or `None` where nobody says anything or `read` refuses it.
    pub(super) fn optional<T>(
        &mut self,
        key: Key,
        read: impl Fn(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        let Some((raw, source)) = self.find(key) else {
            self.sources.insert(key, Source::Default);
            return None;
        };
        self.sources.insert(key, source.clone());
        match read(&raw) {
            Ok(value) => Some(value),
            Err(error) => {
                let shown = if key.is_secret() { "***".to_owned() } else { raw.to_string() };
                self.unread.insert(key);
                self.errors.push(ConfigError::Value { key, shown, from: source, error });
                None
            }
        }
    }

    /// Notes that `key` is `bytes`, less than the `needed` bytes of a message of the largest size.
    pub(super) fn refuse_small_queue(
        &mut self,
        key: Key,
        bytes: usize,
        max_message_bytes: usize,
        needed: usize,
    ) {
        self.refuse([key, Key::MaxMessageBytes], |[from, max_message_from]| {
            ConfigError::SmallQueue {
                key,
                bytes,
                from,
                max_message_bytes,
                max_message_from,
                needed,
            }
        });
    }

    /// Notes that two listeners want the same port.
    pub(super) fn refuse_same_port(
        &mut self,
        (key, address): (Key, SocketAddr),
        (other_key, other_address): (Key, SocketAddr),
    ) {
        self.refuse([key, other_key], |[from, other_from]| ConfigError::SamePort {
            key,
            address,
            from,
            other_key,
            other_address,
            other_from,
        });
    }

    /// Notes that there are not as many keys as certificates.
    pub(super) fn refuse_tls_pairs(&mut self, certs: usize, keys: usize) {
        self.refuse([Key::TlsCert, Key::TlsKey], |[cert_from, key_from]| ConfigError::TlsPairs {
            certs,
            cert_from,
            keys,
            key_from,
        });
    }

    /// Notes that `key` is of no use without `missing`.
    pub(super) fn refuse_without(&mut self, key: Key, missing: Key, reason: &'static str) {
        self.refuse([key, missing], |[from, _]| ConfigError::TlsPartMissing {
            key,
            from,
            missing,
            reason,
        });
    }

    /// Notes that anonymous clients are denied, and that no other could be let in.
    pub(super) fn refuse_everybody(&mut self) {
        let keys = [Key::Anonymous, Key::TokenHmacSecret, Key::TokenPublicKey, Key::TokenJwks];
        self.refuse(keys, |[from, ..]| ConfigError::Nobody { from });
    }

    /// Where each value came from, and what is to be said about the sources themselves.
    ///
    /// # Errors
    ///
    /// Everything that was found wrong.
    pub(super) fn finish(self) -> Result<(BTreeMap<Key, Source>, Vec<String>), ConfigErrors> {
        if let Some(errors) = ConfigErrors::new(self.errors) {
            return Err(errors);
        }
        // Only a warning: Kubernetes makes variables of its own for a service named "wsgate", and
        // none of them must ever keep us from starting.
        let notice = |(name, key): &(String, Key)| {
            format!(
                "the environment variable {name} is no setting and was not used. Did you mean {}?",
                key.variable()
            )
        };
        Ok((self.sources, self.environment.misspelt.iter().map(notice).collect()))
    }

    fn find(&self, key: Key) -> Option<(Raw, Source)> {
        if let Some(text) = self.flags.find(key) {
            return Some((Raw::Text(text.to_owned()), Source::Flag));
        }
        if let Some(raw) = self.environment.given.get(&key) {
            return Some((raw.clone(), Source::Environment));
        }
        let file = self.file.as_ref()?;
        let (raw, line) = file.find(key)?;
        Some((raw.clone(), Source::File { path: file.path().to_owned(), line: *line }))
    }

    /// Notes that the values of `keys` do not go together, unless one of them is only a stand-in
    /// for a value that could not be read: the operator would go looking for a mistake that is
    /// not there.
    fn refuse<const N: usize>(
        &mut self,
        keys: [Key; N],
        error: impl FnOnce([Source; N]) -> ConfigError,
    ) {
        let file_is_whole = self.file.as_ref().is_none_or(File::is_whole);
        if file_is_whole && keys.iter().all(|key| !self.unread.contains(key)) {
            self.errors.push(error(keys.map(|key| self.sources[&key].clone())));
        }
    }
}
