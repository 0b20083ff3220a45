//! The binary as an operator meets it: what it prints, and what it exits with.

use std::process::{Command, Output};

use crate::support::place::Place;

/// One run of `wsgate`, with an environment in which nothing is set for it.
struct Wsgate {
    command: Command,
}

/// What a run came to.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Wsgate {
    fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wsgate"));
        command.args(arguments).env_clear();
        Self { command }
    }

    fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn with_file(mut self, file: &Place) -> Self {
        self.command.arg("--config").arg(file.path());
        self
    }

    fn run(mut self) -> Outcome {
        let Output { status, stdout, stderr } = self.command.output().expect("wsgate starts");
        Outcome {
            code: status.code(),
            stdout: String::from_utf8(stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(stderr).expect("standard error is UTF-8"),
        }
    }
}

impl Outcome {
    /// Demands that the configuration was good, and the line that `check` prints for `key`.
    fn line(&self, key: &str) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let begin = format!("{key} = ");
        self.stdout.lines().find(|line| line.starts_with(&begin)).expect("check shows every key")
    }

    /// Demands that the operator was told of a mistake, and what was said.
    fn complaint(&self) -> &str {
        assert_eq!(self.code, Some(2), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        &self.stderr
    }
}

/// How the line `line` of `file` is named.
fn line_of(file: &Place, line: usize) -> String {
    format!("{}, line {line}", file.text())
}

#[test]
fn check_prints_the_settings_and_ok() {
    let outcome = Wsgate::new(&["check"]).run();
    assert_eq!(outcome.line("listen"), "listen = \"0.0.0.0:8080\"  # by default");
    assert_eq!(outcome.line("max_message_bytes"), "max_message_bytes = \"64KiB\"  # by default");
    assert!(outcome.stdout.ends_with("\nok\n"), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "");
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let file = Place::file(
        "precedence.toml",
        "shards = 1\nping_interval = \"1s\"\nidle_timeout = \"31s\"\n",
    );
    let outcome = Wsgate::new(&["check", "--shards", "3"])
        .with_file(&file)
        .with_variable("WSGATE_SHARDS", "2")
        .with_variable("WSGATE_PING_INTERVAL", "2s")
        .run();
    assert_eq!(outcome.line("shards"), "shards = 3  # from --shards");
    assert_eq!(
        outcome.line("ping_interval"),
        "ping_interval = \"2s\"  # from WSGATE_PING_INTERVAL"
    );
    assert_eq!(
        outcome.line("idle_timeout"),
        format!("idle_timeout = \"31s\"  # from {}", line_of(&file, 3))
    );
    assert_eq!(outcome.line("drain_grace"), "drain_grace = \"5s\"  # by default");
}

#[test]
fn file_may_be_named_by_the_environment() {
    let file = Place::file("named_by_environment.toml", "mailbox_entries = 16\n");
    let path = file.text();
    let by_variable = Wsgate::new(&["check"]).with_variable("WSGATE_CONFIG", path).run();
    assert!(by_variable.line("mailbox_entries").starts_with("mailbox_entries = 16  # from /"));

    let by_both = Wsgate::new(&["check"])
        .with_file(&file)
        .with_variable("WSGATE_CONFIG", "/nowhere/at/all.toml")
        .run();
    assert!(by_both.line("mailbox_entries").starts_with("mailbox_entries = 16 "));
}

#[test]
fn bad_flag_is_named_with_its_value_and_the_remedy() {
    for command in ["check", "serve"] {
        let outcome = Wsgate::new(&[command, "--ping-interval", "25"]).run();
        assert_eq!(
            outcome.complaint(),
            "wsgate: ping_interval is \"25\" (from --ping-interval): a duration needs a unit. \
             Write 25s for seconds or 25ms for milliseconds\n"
        );
    }
}

#[test]
fn bad_variable_is_named_with_its_value_and_the_remedy() {
    let outcome = Wsgate::new(&["serve"]).with_variable("WSGATE_SHARDS", "4096").run();
    assert_eq!(
        outcome.complaint(),
        "wsgate: shards is \"4096\" (from WSGATE_SHARDS): out of range. Write a value from 1 to \
         1024\n"
    );
}

#[test]
fn bad_value_in_the_file_is_named_with_its_line_and_the_remedy() {
    let file = Place::file("bad_value.toml", "# a comment\nslow_consumer = \"drop\"\n");
    let outcome = Wsgate::new(&["serve"]).with_file(&file).run();
    assert_eq!(
        outcome.complaint(),
        format!(
            "wsgate: slow_consumer is \"drop\" (from {}): not one of the choices. Write close or \
             drop-oldest or drop-newest\n",
            line_of(&file, 2)
        )
    );
}

#[test]
fn unknown_key_is_named_with_the_file_and_the_key_that_was_meant() {
    let file = Place::file("unknown_key.toml", "max_mesage_bytes = \"1MiB\"\n");
    let outcome = Wsgate::new(&["check"]).with_file(&file).run();
    assert_eq!(
        outcome.complaint(),
        format!(
            "wsgate: \"max_mesage_bytes\" in {}, is no setting. Did you mean max_message_bytes?\n",
            line_of(&file, 1)
        )
    );
}

#[test]
fn several_errors_are_told_at_once() {
    let file = Place::file("several_errors.toml", "speed = 9\nlisten = \"everywhere\"\n");
    let outcome = Wsgate::new(&["check", "--outbound-queue-bytes", "1KiB"])
        .with_file(&file)
        .with_variable("WSGATE_IDLE_TIMEOUT", "0s")
        .run();
    let lines: Vec<_> = outcome.complaint().lines().collect();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert_eq!(lines[0], "wsgate: the configuration has 4 errors:");
    assert!(lines[1].starts_with("  \"speed\" in "), "{}", lines[1]);
    assert!(lines[2].starts_with("  outbound_queue_bytes is 1024 ("), "{}", lines[2]);
    assert!(lines[3].starts_with("  idle_timeout is \"0s\" ("), "{}", lines[3]);
    assert!(lines[4].starts_with("  listen is \"everywhere\" ("), "{}", lines[4]);
}

#[test]
fn file_that_is_missing_or_broken_is_named() {
    let missing = Wsgate::new(&["serve", "--config", "/nowhere/at/all.toml"]).run();
    assert!(
        missing.complaint().starts_with(
            "wsgate: config is \"/nowhere/at/all.toml\", which cannot be read: No such file"
        ),
        "{}",
        missing.stderr
    );
    let file = Place::file("broken.toml", "shards = 1\napi_key = \"sesame\n");
    let broken = Wsgate::new(&["serve"]).with_file(&file).run();
    let begin = format!("wsgate: {}, is not TOML: ", line_of(&file, 2));
    assert!(broken.complaint().starts_with(&begin), "{}", broken.stderr);
    assert!(!broken.stderr.contains("sesame"), "{}", broken.stderr);
}

#[test]
fn api_key_is_never_printed() {
    let good = Wsgate::new(&["check"]).with_variable("WSGATE_API_KEY", "sesame").run();
    assert_eq!(good.line("api_key"), "api_key = \"***\"  # from WSGATE_API_KEY");
    assert!(!format!("{}{}", good.stdout, good.stderr).contains("sesame"));

    let bad = Wsgate::new(&["check"]).with_variable("WSGATE_API_KEY", "open sesame").run();
    assert!(!bad.complaint().contains("sesame"), "{}", bad.stderr);

    let help = Wsgate::new(&["serve", "--help"]).with_variable("WSGATE_API_KEY", "sesame").run();
    assert!(!help.stdout.contains("sesame"), "{}", help.stdout);
}

#[test]
fn likely_mistakes_are_warned_of_and_accepted() {
    let outcome = Wsgate::new(&["check", "--idle-timeout", "2s"]).run();
    assert_eq!(outcome.line("idle_timeout"), "idle_timeout = \"2s\"  # from --idle-timeout");
    assert!(
        outcome.stderr.starts_with("wsgate: warning: idle_timeout is 2s but ping_interval is 25s:"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &[][..],
        &["dance"],
        &["serve", "--no-such-flag"],
        &["serve", "--shards"],
        &["serve", "--shards", "1", "--shards", "2"],
        &["check", "stray"],
        &["config"],
        &["completions", "tcsh"],
        &["man", "dance"],
    ] {
        let outcome = Wsgate::new(arguments).run();
        assert_ne!(outcome.complaint(), "", "{arguments:?}");
    }
}

#[test]
fn settings_completions_and_manual_are_printed() {
    for (arguments, shown) in [
        (&["config", "doc"][..], "\nmax_message_bytes\n"),
        (&["completions", "bash"], "complete -F _wsgate"),
        (&["completions", "zsh"], "#compdef wsgate"),
        (&["completions", "fish"], "complete -c wsgate"),
        (&["man"], ".TH wsgate 1"),
        (&["man", "connect"], ".TH wsgate-connect 1"),
        (&["man", "token", "make"], ".TH wsgate-token-make 1"),
        (&["man", "token-make"], ".TH wsgate-token-make 1"),
    ] {
        let outcome = Wsgate::new(arguments).run();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(outcome.stdout.contains(shown), "{arguments:?}: {}", outcome.stdout);
    }
}

#[test]
fn pages_of_the_manual_are_written_into_a_directory() {
    let folder = Place::folder("manual");
    assert_eq!(Wsgate::new(&["man", "--directory", folder.text()]).run().code, Some(0));
    for page in ["wsgate.1", "wsgate-serve.1", "wsgate-connect.1", "wsgate-config-doc.1"] {
        assert!(folder.join(page).exists(), "{page} is missing");
    }
}

#[test]
fn directory_that_takes_no_page_is_named() {
    let outcome = Wsgate::new(&["man", "--directory", "/nowhere/at/all"]).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    let begin = "wsgate: /nowhere/at/all/wsgate.1 cannot be written: No such file";
    assert!(outcome.stderr.starts_with(begin), "{}", outcome.stderr);
}

#[test]
fn manual_of_an_unknown_command_tells_those_that_there_are() {
    let outcome = Wsgate::new(&["man", "token", "dance"]).run();
    let begin = "wsgate: \"token dance\" is none of the commands.";
    assert!(outcome.complaint().starts_with(begin), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(", token make, token check, "), "{}", outcome.stderr);
}

#[test]
fn help_and_version_exit_with_0() {
    let version = Wsgate::new(&["--version"]).run();
    assert_eq!(version.code, Some(0));
    assert_eq!(version.stdout, format!("wsgate {}\n", env!("CARGO_PKG_VERSION")));

    for command in ["serve", "check"] {
        let help = Wsgate::new(&[command, "--help"]).run();
        assert_eq!(help.code, Some(0));
        for shown in ["--max-message-bytes <SIZE>", "[default: 64KiB]", "WSGATE_MAX_MESSAGE_BYTES"]
        {
            assert!(help.stdout.contains(shown), "{shown} is missing:\n{}", help.stdout);
        }
    }
}

/// A secret that is long enough not to be warned of.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token that was made with these arguments.
fn token(arguments: &[&str]) -> String {
    let made = Wsgate::new(&[&["token", "make"], arguments].concat())
        .with_variable("WSGATE_TOKEN_HMAC_SECRET", SECRET)
        .run();
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    made.stdout.trim_end().to_owned()
}

/// What is said of a token.
fn check_token(token: &str, arguments: &[&str]) -> Outcome {
    Wsgate::new(&[&["token", "check", token], arguments].concat())
        .with_variable("WSGATE_TOKEN_HMAC_SECRET", SECRET)
        .run()
}

#[test]
fn token_that_is_made_is_one_that_is_believed() {
    let arguments =
        ["--sub", "alice", "--expires-in", "90m", "--subscribe", "news:*", "--channels", "chat"];
    let made = token(&arguments);
    let checked = check_token(&made, &[]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    for line in [
        "user       alice\n",
        "signed by  HS256\n",
        "subscribe  news:*, chat\n",
        "publish    chat\n",
    ] {
        assert!(checked.stdout.contains(line), "{}", checked.stdout);
    }
    assert!(!checked.stdout.contains(&made), "{}", checked.stdout);
    let json = check_token(&made, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((&json["user"], &json["algorithm"]), (&"alice".into(), &"HS256".into()));
    assert_eq!(json["subscribe"], serde_json::json!(["news:*", "chat"]));
}

#[test]
fn token_that_is_not_believed_exits_with_1_and_the_reason() {
    let expired = check_token(&token(&["--expires-in", "0s"]), &["--token-leeway", "0s"]);
    assert_eq!((expired.code, expired.stdout.as_str()), (Some(1), ""));
    assert_eq!(expired.stderr, "wsgate: the token has expired\n");
    let other = check_token(&token(&["--audience", "push"]), &["--token-audience", "chat"]);
    assert_eq!(
        (other.code, other.stderr.as_str()),
        (Some(1), "wsgate: the token is for another audience (aud)\n")
    );
    let sesame = check_token("sesame", &[]);
    assert_eq!(sesame.code, Some(1));
    assert!(!sesame.stderr.contains("sesame"), "{}", sesame.stderr);
}

#[test]
fn token_is_signed_by_the_key_of_a_file_and_checked_by_its_public_half() {
    for (algorithm, kind) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "ES256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "ES384"),
        (&rcgen::PKCS_ED25519, "EdDSA"),
        (&rcgen::PKCS_RSA_SHA256, "RS256"),
    ] {
        let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let private = Place::file("key", &pair.serialize_pem());
        let public = Place::file("pem", &pair.public_key_pem());
        let private = private.text();
        let public = public.text();
        let made = Wsgate::new(&["token", "make", "--signing-key", private]).run();
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        let checked =
            Wsgate::new(&["token", "check", made.stdout.trim_end(), "--token-public-key", public])
                .run();
        assert!(checked.stdout.contains(&format!("signed by  {kind}\n")), "{}", checked.stderr);
        // The private half is no key to check with.
        let refused = Wsgate::new(&["check", "--token-public-key", private]).run();
        let begin = format!(
            "wsgate: token_public_key is {private:?} (from --token-public-key): it holds a private key"
        );
        assert!(refused.complaint().starts_with(&begin), "{}", refused.stderr);
        assert!(!refused.stderr.contains("BEGIN PRIVATE"), "{}", refused.stderr);
    }
}

#[test]
fn token_command_without_a_key_exits_with_2_and_the_remedy() {
    let made = Wsgate::new(&["token", "make"]).run();
    assert!(
        made.complaint()
            .starts_with("wsgate: there is no key to sign with. Give token_hmac_secret")
    );
    let checked = Wsgate::new(&["token", "check", "a.b.c"]).run();
    assert!(checked.complaint().starts_with("wsgate: there is no key to check tokens with."));
    for arguments in [
        &["token"][..],
        &["token", "make", "--algorithm", "none"],
        &["token", "make", "--expires-in", "soon"],
        &["token", "make", "--expires-in", "1s 500ms"],
        &["token", "make", "--subscribe", ""],
        &["token", "check"],
    ] {
        Wsgate::new(arguments).run().complaint();
    }
}

#[test]
fn key_files_are_read_by_check_and_told_with_the_remedy() {
    let file = Place::file("token_jwks.json", "{\"keys\": [{\"kty\": \"sesame\"}]}");
    let path = file.text();
    for command in ["check", "serve"] {
        let outcome = Wsgate::new(&[command, "--token-jwks", path]).run();
        let begin =
            format!("wsgate: token_jwks is {path:?} (from --token-jwks): none of its 1 keys can");
        assert!(outcome.complaint().starts_with(&begin), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("sesame"), "{}", outcome.stderr);
    }
    let nobody = Wsgate::new(&["serve", "--anonymous", "deny"]).run();
    assert!(nobody.complaint().starts_with("wsgate: anonymous is deny (from --anonymous) but"));
}
