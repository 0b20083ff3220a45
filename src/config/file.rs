//! The TOML file: which settings it names, on which line, and which of its keys are none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::key::Key;
use super::value::Raw;

/// What a file has to say.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// Each with the line of its key.
    given: BTreeMap<Key, (Raw, usize)>,
    /// Whether it was read to its end: otherwise it may have wanted more than `given`.
    is_whole: bool,
    errors: Vec<ConfigError>,
}

impl File {
    /// Reads the file at `path`, whose content is `text`.
    pub(super) fn parse(path: &Path, text: &str) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            given: BTreeMap::new(),
            is_whole: true,
            errors: Vec::new(),
        };
        match DeTable::parse(text) {
            Ok(table) => {
                let mut entries: Vec<_> = table.into_inner().into_iter().collect();
                entries.sort_by_key(|(name, _)| name.span().start);
                for (name, value) in entries {
                    let line = line_at(text, name.span().start);
                    file.add(name.into_inner().into_owned(), raw(value.get_ref()), line);
                }
            }
            Err(error) => {
                file.is_whole = false;
                file.errors.push(ConfigError::Syntax {
                    path: path.to_owned(),
                    line: line_at(text, error.span().map_or(0, |span| span.start)),
                    message: error.message().lines().collect::<Vec<_>>().join(", "),
                });
            }
        }
        file
    }

    /// Stands for the file at `path`, which could not be read.
    pub(super) fn unreadable(path: &Path, error: std::io::Error) -> Self {
        let path = path.to_owned();
        Self {
            path: path.clone(),
            given: BTreeMap::new(),
            is_whole: false,
            errors: vec![ConfigError::Unreadable { path, error }],
        }
    }

    /// The value of `key` and its line.
    pub(super) fn find(&self, key: Key) -> Option<&(Raw, usize)> {
        self.given.get(&key)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Hands over what is wrong with the file itself.
    pub(super) fn take_errors(&mut self) -> Vec<ConfigError> {
        std::mem::take(&mut self.errors)
    }

    fn add(&mut self, name: String, raw: Raw, line: usize) {
        let path = || self.path.clone();
        let Some(key) = Key::by_name(&name) else {
            let meant = Key::closest(&name);
            self.errors.push(ConfigError::UnknownKey { path: path(), name, line, meant });
            return;
        };
        // TOML itself refuses the same key twice, but not two spellings of one.
        if let Some((_, first)) = self.given.insert(key, (raw, line)) {
            self.errors.push(ConfigError::DuplicateKey { key, path: path(), first, second: line });
        }
    }
}

/// The number of the line in which the byte at `offset` stands; the first is 1.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn raw(value: &DeValue<'_>) -> Raw {
    let unfit = |kind, shown: String| Raw::Unfit { kind, shown };
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(
                |_| unfit("a number too large", integer.to_string()),
                |number| Raw::Integer(number.to_string()),
            ),
        DeValue::Float(float) => unfit("a number with a fraction", float.to_string()),
        DeValue::Boolean(boolean) => unfit("a boolean", boolean.to_string()),
        DeValue::Datetime(time) => unfit("a date or time", time.to_string()),
        DeValue::Table(_) => unfit("a table", "{...}".to_owned()),
        DeValue::Array(values) => values
            .iter()
            .map(|value| value.get_ref().as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map_or_else(
                || unfit("a list of other things than texts", "[...]".to_owned()),
                Raw::List,
            ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> File {
        File::parse(Path::new("wsgate.toml"), text)
    }

    fn errors(text: &str) -> Vec<String> {
        parse(text).take_errors().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_kept_with_their_lines() {
        let file = parse(
            "# comment\nmax_message_bytes = 0x1_0000\nidle-timeout = \"60s\"\n\
             allowed_origins = [\n  \"null\",\n]\nshards = true\n",
        );
        assert_eq!(file.find(Key::MaxMessageBytes), Some(&(Raw::Integer("65536".into()), 2)));
        assert_eq!(file.find(Key::IdleTimeout), Some(&(Raw::Text("60s".into()), 3)));
        assert_eq!(file.find(Key::AllowedOrigins), Some(&(Raw::List(vec!["null".into()]), 4)));
        let boolean = Raw::Unfit { kind: "a boolean", shown: "true".into() };
        assert_eq!(file.find(Key::Shards), Some(&(boolean, 7)));
        assert_eq!(file.find(Key::Listen), None);
        assert!(file.is_whole() && file.errors.is_empty());
    }

    #[test]
    fn every_unknown_key_is_named_with_the_key_that_was_meant() {
        assert_eq!(
            errors("max_mesage_bytes = 1\n\n[tls]\ncertificate = \"a\"\n"),
            [
                "\"max_mesage_bytes\" in wsgate.toml, line 1, is no setting. \
                 Did you mean max_message_bytes?",
                "\"tls\" in wsgate.toml, line 3, is no setting. \
                 Take it out; `wsgate serve --help` lists the settings",
            ]
        );
    }

    #[test]
    fn two_spellings_of_one_key_are_one_too_many() {
        assert_eq!(
            errors("drain_grace = \"1s\"\ndrain-grace = \"2s\"\n"),
            ["drain_grace is in wsgate.toml twice, on lines 1 and 2. Take one of them out"]
        );
    }

    #[test]
    fn what_is_not_toml_is_refused_with_its_line_and_without_its_content() {
        let [error] = &errors("shards = 1\napi_key = \"sesame\n")[..] else {
            panic!("exactly one error");
        };
        assert!(error.starts_with("wsgate.toml, line 2, is not TOML: "), "{error}");
        assert!(!error.contains("sesame"), "{error}");
        assert!(!parse("shards").is_whole());
    }
}
