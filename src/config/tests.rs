//! Flags, environment and file in; settings or errors out.

use clap::Parser as _;

use super::*;

/// Resolves what a machine of four cores would be told by these sources. `file` is the text of a
/// file named `wsgate.toml`.
pub(super) fn resolve(
    flags: &[&str],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Config, Vec<String>> {
    let arguments = ["wsgate", "serve"].iter().chain(flags);
    let Command::Serve(flags) = Cli::try_parse_from(arguments).expect("flags of serve").command
    else {
        unreachable!("serve was asked for");
    };
    let environment =
        Environment::new(variables.iter().map(|(name, value)| (name.into(), value.into())));
    let file = file.map(|text| File::parse("wsgate.toml".as_ref(), text));
    let cores = NonZeroU16::new(4).expect("four is not zero");
    Config::resolve(&flags, environment, file, cores)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

pub(super) fn by_flags(flags: &[&str]) -> Result<Config, Vec<String>> {
    resolve(flags, &[], None)
}

pub(super) fn by_file(text: &str) -> Result<Config, Vec<String>> {
    resolve(&[], &[], Some(text))
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = by_flags(&[]).expect("the defaults are good");
    let server = &config.settings;
    let shard = &server.shard;
    assert_eq!(server.listen, [ListenAddress::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080)))]);
    assert_eq!(server.plain_listen, []);
    assert_eq!(server.tls, None);
    assert_eq!(server.http2, Http2::Tls);
    assert_eq!(server.admin_listen, SocketAddr::from(([127, 0, 0, 1], 8081)));
    assert_eq!(server.shards.get(), 4);
    assert_eq!(server.max_connections, None);
    assert_eq!(server.api_key, None);
    assert_eq!(server.drain_grace, Duration::from_secs(5));
    assert_eq!(server.drain_duration, Duration::from_secs(20));
    assert_eq!(server.port_file, None);
    assert_eq!(shard.max_message_bytes, 64 * 1024);
    assert_eq!(shard.max_channels_per_connection, 100);
    assert_eq!(shard.ping_interval, Duration::from_secs(25));
    assert_eq!(shard.idle_timeout, Duration::from_secs(60));
    assert_eq!(shard.handshake_timeout, Duration::from_secs(5));
    assert_eq!(shard.close_timeout, Duration::from_secs(5));
    assert_eq!(shard.outbound_queue_bytes, 1024 * 1024);
    assert_eq!(shard.slow_consumer, SlowConsumerPolicy::Close);
    assert_eq!(shard.mailbox_entries, 4096);
    assert_eq!(shard.mailbox_bytes, 16 * 1024 * 1024);
    assert_eq!(shard.allowed_origins, AllowedOrigins::same_host());
    assert_eq!(format!("{:?}", shard.admission), format!("{:?}", Admission::default()));
    assert!(shard.console);
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(config.log_level.to_string(), "info");
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let file = Some("shards = 1\ndrain_grace = \"1s\"\nslow_consumer = \"drop-oldest\"\n");
    let variables = [("WSGATE_SHARDS", "2"), ("WSGATE_DRAIN_GRACE", "2s")];
    let config = resolve(&["--shards", "3"], &variables, file).expect("all are good");
    assert_eq!(config.settings.shards.get(), 3);
    assert_eq!(config.settings.drain_grace, Duration::from_secs(2));
    assert_eq!(config.settings.shard.slow_consumer, SlowConsumerPolicy::DropOldest);
    assert_eq!(config.settings.drain_duration, Duration::from_secs(20));

    let toml = config.to_toml();
    for line in [
        "shards = 3  # from --shards\n",
        "drain_grace = \"2s\"  # from WSGATE_DRAIN_GRACE\n",
        "slow_consumer = \"drop-oldest\"  # from wsgate.toml, line 3\n",
        "drain_duration = \"20s\"  # by default\n",
        "# max_connections is not set\n",
    ] {
        assert!(toml.contains(line), "{line:?} is missing:\n{toml}");
    }
}

#[test]
fn value_that_another_one_overrules_is_not_judged() {
    let config = resolve(&["--shards", "3"], &[("WSGATE_SHARDS", "many")], None);
    assert_eq!(config.expect("the flag is good").settings.shards.get(), 3);
}

#[test]
fn bad_value_is_told_with_the_place_where_it_was_written() {
    let problem = "not a size. Write bytes, or a number with a unit: 65536, 64KiB, 1MiB";
    let expected = |place| vec![format!("max_message_bytes is \"big\" (from {place}): {problem}")];
    assert_eq!(
        by_flags(&["--max-message-bytes", "big"]).unwrap_err(),
        expected("--max-message-bytes")
    );
    assert_eq!(
        resolve(&[], &[("WSGATE_MAX_MESSAGE_BYTES", "big")], None).unwrap_err(),
        expected("WSGATE_MAX_MESSAGE_BYTES")
    );
    assert_eq!(
        by_file("\nmax_message_bytes = \"big\"\n").unwrap_err(),
        expected("wsgate.toml, line 2")
    );
}

#[test]
fn file_takes_sizes_as_integers_but_durations_only_with_a_unit() {
    let config = by_file("max_message_bytes = 1000\nmailbox-bytes = \"1MiB\"").expect("good");
    assert_eq!(config.settings.shard.max_message_bytes, 1000);
    assert_eq!(config.settings.shard.mailbox_bytes, 1 << 20);
    assert_eq!(
        by_file("ping_interval = 25").unwrap_err(),
        ["ping_interval is 25 (from wsgate.toml, line 1): a duration needs a unit. Write 25s for \
          seconds or 25ms for milliseconds"]
    );
    assert_eq!(
        by_file("shards = true").unwrap_err(),
        ["shards is true (from wsgate.toml, line 1): it is a boolean. Write a whole number"]
    );
}

/// `off` is a boolean in YAML, and whoever makes the file out of that writes `false`.
#[test]
fn boolean_instead_of_a_choice_is_told_with_the_choices() {
    for (line, told) in [
        (
            "console = false",
            "console is false (from wsgate.toml, line 1): it is a boolean. Write \
                             \"on\" or \"off\", in quotes",
        ),
        (
            "http2 = true",
            "http2 is true (from wsgate.toml, line 1): it is a boolean. Write \"off\" \
                          or \"tls\" or \"all\", in quotes",
        ),
        (
            "log_level = false",
            "log_level is false (from wsgate.toml, line 1): it is a boolean. Write \
                               a level in quotes, such as \"off\" or \"info\"",
        ),
        (
            "anonymous = [1]",
            "anonymous is [...] (from wsgate.toml, line 1): it is a list of other \
                             things than texts. Write \"allow\" or \"deny\", in quotes",
        ),
        (
            "shards = 1.5",
            "shards is 1.5 (from wsgate.toml, line 1): it is a number with a fraction. \
                          Write a whole number",
        ),
    ] {
        assert_eq!(by_file(line).unwrap_err(), [told]);
    }
    let errors = by_file("api_key = 20240101.5").unwrap_err();
    assert!(errors[0].starts_with("api_key is *** (from"), "{errors:?}");
}

#[test]
fn connection_may_have_at_least_one_channel() {
    let allowed = |count| {
        let config = by_flags(&["--max-channels-per-connection", count])?;
        Ok(config.settings.shard.max_channels_per_connection)
    };
    assert_eq!(allowed("1"), Ok(1));
    let range = "out of range. Write a value from 1 to 8192";
    for count in ["0", "8193"] {
        let place = "(from --max-channels-per-connection)";
        let refused = format!("max_channels_per_connection is \"{count}\" {place}: {range}");
        assert_eq!(allowed(count), Err(vec![refused]));
    }
}

#[test]
fn every_error_is_told_at_once() {
    let errors = resolve(
        &["--shards", "0", "--slow-consumer", "drop"],
        &[("WSGATE_IDLE_TIMEOUT", "0s"), ("WSGATE_API_KEY", "")],
        Some("speed = 9\nlisten = \"localhost:8080\"\n"),
    )
    .unwrap_err();
    let begins = [
        "\"speed\" in wsgate.toml, line 1, is no setting.",
        "idle_timeout is \"0s\" (from WSGATE_IDLE_TIMEOUT): it must be longer than 0s.",
        "slow_consumer is \"drop\" (from --slow-consumer): not one of the choices. Write close or \
         drop-oldest or drop-newest",
        "listen is \"localhost:8080\" (from wsgate.toml, line 2): not an address.",
        "shards is \"0\" (from --shards): out of range. Write a value from 1 to 1024",
        "api_key is *** (from WSGATE_API_KEY): it is empty.",
    ];
    assert_eq!(errors.len(), begins.len(), "{errors:#?}");
    for (error, begin) in errors.iter().zip(begins) {
        assert!(error.starts_with(begin), "{error}");
    }
}

#[test]
fn queues_make_room_for_the_largest_message_by_themselves() {
    let config = by_flags(&["--max-message-bytes", "32MiB"]).expect("queues follow");
    assert_eq!(config.settings.shard.outbound_queue_bytes, (32 << 20) + 10);
    assert_eq!(config.settings.shard.mailbox_bytes, (32 << 20) + 10);
}

#[test]
fn queue_too_small_for_the_largest_message_is_refused_with_both_settings_named() {
    let exactly = ["--max-message-bytes", "100", "--outbound-queue-bytes", "110"];
    assert!(by_flags(&exactly).is_ok());
    let errors = resolve(
        &["--max-message-bytes", "100", "--outbound-queue-bytes", "109"],
        &[("WSGATE_MAILBOX_BYTES", "1")],
        None,
    )
    .unwrap_err();
    assert_eq!(
        errors,
        [
            "outbound_queue_bytes is 109 (from --outbound-queue-bytes) but max_message_bytes is \
             100 (from --max-message-bytes): with its header a message of the largest size takes \
             up to 110 bytes and could never be delivered. Raise outbound_queue_bytes to at least \
             110 or lower max_message_bytes",
            "mailbox_bytes is 1 (from WSGATE_MAILBOX_BYTES) but max_message_bytes is 100 (from \
             --max-message-bytes): with its header a message of the largest size takes up to 110 \
             bytes and could never be delivered. Raise mailbox_bytes to at least 110 or lower \
             max_message_bytes",
        ]
    );
}

#[test]
fn queue_is_not_compared_with_a_message_size_that_could_not_be_read() {
    let errors =
        by_flags(&["--max-message-bytes", "tiny", "--outbound-queue-bytes", "1000"]).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");

    let errors =
        resolve(&["--outbound-queue-bytes", "1000"], &[], Some("max_message")).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].starts_with("wsgate.toml, line 1, is not TOML: "), "{errors:#?}");
}

#[test]
fn listeners_that_want_the_same_port_are_refused() {
    let collide = |listen, admin_listen| {
        by_flags(&["--listen", listen, "--admin-listen", admin_listen]).is_err()
    };
    assert!(collide("127.0.0.1:9000", "127.0.0.1:9000"));
    assert!(collide("0.0.0.0:9000", "127.0.0.1:9000"));
    assert!(collide("127.0.0.1:9000", "0.0.0.0:9000"));
    assert!(collide("[::]:9000", "127.0.0.1:9000"));
    assert!(!collide("0.0.0.0:9000", "[::1]:9000"));
    assert!(!collide("127.0.0.1:9000", "127.0.0.2:9000"));
    assert!(!collide("127.0.0.1:0", "127.0.0.1:0"));
}

#[test]
fn console_is_on_or_off() {
    let is_on = |config: Result<Config, _>| config.expect("good").settings.shard.console;
    assert!(is_on(by_flags(&["--console", "on"])));
    assert!(!is_on(by_file("console = \"off\"")));
    assert_eq!(
        by_flags(&["--console", "no"]).unwrap_err(),
        ["console is \"no\" (from --console): not one of the choices. Write on or off"]
    );
}

#[test]
fn listeners_are_addresses_and_paths_each_in_its_place() {
    let flags = ["--listen", "127.0.0.1:0,unix:/run/a", "--listen", "[::1]:9000"];
    let config = by_flags(&flags).expect("good");
    let shown: Vec<_> = config.settings.listen.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:0", "unix:/run/a", "[::1]:9000"]);
    let config = by_file("listen = [\"0.0.0.0:1\"]\nplain_listen = \"unix:/run/b\"").expect("good");
    assert_eq!(config.settings.plain_listen, [ListenAddress::Unix("/run/b".into())]);
    assert!(by_flags(&["--listen", "unix:"]).is_err());

    let collide = by_flags(&["--listen", "0.0.0.0:1", "--plain-listen", "127.0.0.1:1"]);
    let errors = collide.unwrap_err();
    assert!(
        errors[0]
            .starts_with("listen is 0.0.0.0:1 (from --listen) and plain_listen is 127.0.0.1:1")
    );
}

#[test]
fn every_certificate_needs_its_key() {
    let tls = |flags: &[&str]| Ok::<_, Vec<String>>(by_flags(flags)?.settings.tls);
    let two = ["--tls-cert=a,b", "--tls-key=c", "--tls-key=d"];
    let pair = |cert: &str, key: &str| CertificatePair { cert: cert.into(), key: key.into() };
    let expected = TlsSettings {
        pairs: vec![pair("a", "c"), pair("b", "d")],
        client_ca: None,
        client_auth: ClientAuth::Off,
    };
    assert_eq!(tls(&two), Ok(Some(expected)));
    assert_eq!(
        tls(&["--tls-cert=a"]).unwrap_err(),
        ["tls_cert names 1 (from --tls-cert) but tls_key names 0 (by default): every certificate \
          needs its key. Name as many of the one as of the other, in the same order"]
    );
    assert_eq!(tls(&["--tls-key=a"]).unwrap_err().len(), 1);
}

#[test]
fn client_certificates_are_required_once_somebody_signs_them() {
    let mode = |flags: &[&str]| {
        let flags: Vec<_> = ["--tls-cert=a", "--tls-key=b"].iter().chain(flags).copied().collect();
        Ok::<_, Vec<String>>(by_flags(&flags)?.settings.tls.expect("there is a pair").client_auth)
    };
    assert_eq!(mode(&[]), Ok(ClientAuth::Off));
    assert_eq!(mode(&["--tls-client-ca=c"]), Ok(ClientAuth::Required));
    assert_eq!(
        mode(&["--tls-client-ca=c", "--tls-client-auth=optional"]),
        Ok(ClientAuth::Optional)
    );
    let errors = mode(&["--tls-client-auth=required"]).unwrap_err();
    assert!(
        errors[0].starts_with("tls_client_auth is set (from --tls-client-auth) but tls_client_ca")
    );
    assert!(by_flags(&["--tls-client-ca=c"]).is_err());
}

#[test]
fn origins_come_separated_by_commas_in_repeated_flags_or_as_a_list() {
    let expected = AllowedOrigins::patterns(vec![
        "https://*.example.com".parse().expect("a pattern"),
        "same-host".parse().expect("a pattern"),
    ]);
    let allowed = |config: Result<Config, _>| config.expect("good").settings.shard.allowed_origins;
    assert_eq!(
        allowed(by_flags(&["--allowed-origins", "https://*.example.com,same-host"])),
        expected
    );
    assert_eq!(
        allowed(by_flags(&[
            "--allowed-origins",
            "https://*.example.com",
            "--allowed-origins",
            "same-host"
        ])),
        expected
    );
    assert_eq!(
        allowed(by_file("allowed_origins = [\"https://*.example.com\", \"same-host\"]")),
        expected
    );
    assert_eq!(
        by_file("allowed_origins = [\"example.com\"]").unwrap_err(),
        ["allowed_origins is [\"example.com\"] (from wsgate.toml, line 1): \"example.com\" has \
          no scheme. Write https://example.com"]
    );
}

#[test]
fn proxies_come_separated_by_commas_in_repeated_flags_or_as_a_list() {
    let shown = |config: Result<Config, _>| {
        config.expect("good").shown(Key::TrustedProxies).expect("there are some")
    };
    let expected = "[\"10.0.0.0/8\", \"192.0.2.7\", \"unix\"]";
    assert_eq!(shown(by_flags(&["--trusted-proxies", "10.1.2.3/8, 192.0.2.7,unix"])), expected);
    let repeated = ["10.0.0.0/8", "192.0.2.7", "unix"].map(|proxy| ["--trusted-proxies", proxy]);
    assert_eq!(shown(by_flags(&repeated.concat())), expected);
    let file = "trusted_proxies = [\"10.0.0.0/8\", \"192.0.2.7\", \"unix\"]";
    assert_eq!(shown(by_file(file)), expected);
    let errors = by_flags(&["--trusted-proxies", "10.0.0.0/8,haproxy"]).unwrap_err();
    assert!(
        errors[0].starts_with(
            "trusted_proxies is \"10.0.0.0/8,haproxy\" (from --trusted-proxies): \"haproxy\" is \
             neither a network nor an address. Write networks such as 10.0.0.0/8"
        ),
        "{errors:?}"
    );
}

#[test]
fn burst_is_one_second_of_the_rate_unless_it_is_set() {
    let rates = |flags: &[&str]| {
        let admission = by_flags(flags).expect("good").settings.shard.admission;
        (admission.messages, admission.bytes)
    };
    assert_eq!(rates(&[]), (None, None));
    let flags = ["--max-messages-per-second=10", "--max-bytes-per-second=1KiB"];
    assert_eq!(rates(&flags), (Some(Rate::new(10, 10)), Some(Rate::new(1_024, 1_024))));
    let bursts = [&flags[..], &["--max-messages-burst=7", "--max-bytes-burst=2MiB"]].concat();
    assert_eq!(rates(&bursts), (Some(Rate::new(10, 7)), Some(Rate::new(1_024, 2 << 20))));
    assert!(by_flags(&["--max-messages-per-second=0"]).is_err());
    assert!(by_flags(&["--max-connection-age=0s"]).is_err());
}

#[test]
fn limits_that_do_not_go_together_are_warned_of() {
    let close = ["--rate-limit-action=close", "--max-bytes-per-second=1KiB"];
    for (flags, begin) in [
        (&close[..], "max_message_bytes is 65536 but max_bytes_burst is 1024 and"),
        (
            &["--max-bytes-burst=1KiB"],
            "max_bytes_burst is set and means nothing without max_bytes_",
        ),
        (&["--proxy-protocol=off"], "proxy_protocol is set and means nothing without trusted_"),
    ] {
        let config = by_flags(flags).expect("allowed");
        let [warning] = &config.warnings()[..] else { panic!("exactly one warning: {flags:?}") };
        assert!(warning.starts_with(begin), "{warning}");
    }
    let enough = [&close[..], &["--max-bytes-burst=64KiB"]].concat();
    assert_eq!(by_flags(&enough).expect("allowed").warnings(), Vec::<String>::new());
}

#[test]
fn api_key_is_never_shown() {
    let config = resolve(&[], &[("WSGATE_API_KEY", "sesame")], None).expect("good");
    assert_eq!(config.settings.api_key.as_ref().map(ApiKey::expose), Some("sesame"));
    assert!(config.to_toml().contains("api_key = \"***\"  # from WSGATE_API_KEY\n"));
    assert!(!format!("{config:?}").contains("sesame"));

    let errors = by_flags(&["--api-key", "open sesame"]).unwrap_err();
    assert!(errors[0].starts_with("api_key is *** (from --api-key): it holds blanks"));
    assert!(!format!("{errors:?}").contains("sesame"));
}

#[test]
fn pings_that_come_too_late_are_warned_of() {
    let config = by_flags(&["--idle-timeout", "2s"]).expect("allowed");
    let [warning] = &config.warnings()[..] else { panic!("exactly one warning") };
    assert!(warning.starts_with(
        "idle_timeout is 2s but ping_interval is 25s: a silent client is closed before it is ever \
         pinged."
    ));
    let config = by_flags(&["--idle-timeout", "2s", "--ping-interval", "0s"]).expect("allowed");
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn api_key_on_the_command_line_is_warned_of() {
    let config = by_flags(&["--api-key", "sesame"]).expect("allowed");
    let [warning] = &config.warnings()[..] else { panic!("exactly one warning") };
    assert!(warning.starts_with("api_key is given by --api-key:"), "{warning}");
}

#[test]
fn misspelt_variable_is_warned_of_and_those_of_kubernetes_are_not() {
    let variables = [
        ("WSGATE_SHARD", "2"),
        ("WSGATE_PORT", "tcp://10.0.0.1:80"),
        ("WSGATE_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("WSGATE_SERVICE_HOST", "10.0.0.1"),
        ("WSGATE_CONFIG", "elsewhere.toml"),
        ("SHARDS", "7"),
    ];
    let config = resolve(&[], &variables, None).expect("none of them is an error");
    assert_eq!(config.settings.shards.get(), 4);
    assert_eq!(
        config.warnings(),
        ["the environment variable WSGATE_SHARD is no setting and was not used. Did you mean \
          WSGATE_SHARDS?"]
    );
}

#[test]
fn what_check_prints_is_a_file_with_the_same_settings() {
    let flags = [
        "--shards=7",
        "--max-message-bytes=1001",
        "--allowed-origins=null,https://*.example.com:8443",
        "--port-file=/tmp/with \"quotes\"\\and backslashes",
        "--ping-interval=1m 500ms",
        "--max-connections=5",
        "--log-format=json",
        "--trusted-proxies=10.0.0.0/8,unix",
        "--forwarded-header=forwarded",
        "--max-messages-per-second=10",
        "--max-bytes-per-second=1KiB",
        "--max-bytes-burst=4KiB",
        "--max-connection-age=4h",
        "--max-connections-per-address=3",
    ];
    let config = by_flags(&flags).expect("good");
    let again = by_file(&config.to_toml()).expect("what was printed is good");
    assert_eq!(format!("{:?}", again.settings), format!("{:?}", config.settings));
    assert_eq!(again.log_format, config.log_format);
}

#[test]
fn reload_takes_what_can_change_and_names_what_cannot() {
    let running = by_file("shards = 2\nidle_timeout = \"60s\"\napi_key = \"old\"").expect("good");
    let text = "shards = 3\nidle_timeout = \"30s\"\napi_key = \"new\"\nlog_level = \"debug\"";
    let Reloaded { config, taken, not_taken } = running.change_to(by_file(text).expect("good"));
    assert_eq!(
        taken,
        ["idle_timeout is now \"30s\"", "api_key is now \"***\"", "log_level is now \"debug\"",]
    );
    assert_eq!(not_taken, ["shards is now 3 (from wsgate.toml, line 1); it needs a restart"]);
    assert_eq!(config.settings.shards.get(), 2);
    assert_eq!(config.settings.shard.idle_timeout, Duration::from_secs(30));
    assert_eq!(config.settings.api_key.as_ref().map(ApiKey::expose), Some("new"));
    // Reloading the same again takes nothing, and still says what waits for a restart.
    let again = config.change_to(by_file(text).expect("good"));
    assert_eq!((again.taken.len(), again.not_taken), (0, not_taken));
}

/// A value of `key` that is good, and not its default.
fn other_value(key: Key) -> &'static str {
    match key {
        Key::Listen => "127.0.0.1:7000",
        Key::PlainListen => "127.0.0.1:7002",
        Key::AdminListen => "127.0.0.1:7001",
        Key::PortFile => "/run/ports",
        Key::HandoverSocket => "/run/handover.sock",
        Key::Shards => "7",
        Key::MaxConnections => "77",
        Key::MaxChannelsPerConnection => "7",
        Key::HandshakeTimeout | Key::PingInterval | Key::IdleTimeout => "7s",
        Key::DrainGrace | Key::DrainDuration => "7s",
        Key::MaxMessageBytes => "7KiB",
        Key::OutboundQueueBytes | Key::MailboxBytes => "7MiB",
        Key::SlowConsumer => "drop-oldest",
        Key::MailboxEntries => "77",
        Key::TlsCert | Key::TlsKey => "a.pem,b.pem",
        Key::TlsClientCa => "ca.pem",
        Key::TlsClientAuth => "optional",
        Key::Http2 => "all",
        Key::Compression => "off",
        Key::CompressionMinBytes => "77",
        Key::CompressionWindow => "4KiB",
        Key::CompressionMemory => "7MiB",
        Key::AllowedOrigins => "null",
        Key::Console => "off",
        Key::TrustedProxies => "10.0.0.0/8",
        Key::ProxyProtocol | Key::ForwardedHeader => "off",
        Key::MaxConnectionsPerAddress
        | Key::MaxHandshakesPerSecond
        | Key::MaxHandshakesPerSecondPerAddress
        | Key::MaxMessagesPerSecond
        | Key::MaxMessagesBurst => "7",
        Key::MaxBytesPerSecond | Key::MaxBytesBurst => "7MiB",
        Key::RateLimitAction => "close",
        Key::MaxConnectionAge => "7h",
        Key::ApiKey => "sesame",
        Key::Anonymous => "allow",
        Key::AnonymousSubscribe | Key::AnonymousPublish | Key::TokenDefaultChannels => "news:*",
        Key::TokenHmacSecret => "sesame-sesame-sesame-sesame-sesame",
        Key::TokenPublicKey | Key::TokenJwks => "/etc/keys",
        Key::TokenAudience | Key::TokenIssuer => "wsgate",
        Key::TokenLeeway => "7s",
        Key::LogFormat => "json",
        Key::LogLevel => "warn",
    }
}

#[test]
fn every_setting_is_either_taken_by_a_reload_or_kept_and_named() {
    // Beside these, every other setting makes sense alone.
    let running = [
        (Key::TokenHmacSecret, "open, open, open, open, open, open"),
        (Key::Anonymous, "deny"),
        (Key::TlsClientCa, "authority.pem"),
        (Key::TlsClientAuth, "required"),
        (Key::TlsCert, "cert.pem,other.pem"),
        (Key::TlsKey, "key.pem,other.pem"),
        (Key::MaxMessagesPerSecond, "9"),
        (Key::MaxMessagesBurst, "9"),
        (Key::MaxBytesPerSecond, "9MiB"),
        (Key::MaxBytesBurst, "9MiB"),
    ];
    let flags_but = |key: Option<(Key, &'static str)>| {
        let others = running.iter().filter(|(one, _)| key.is_none_or(|(key, _)| key != *one));
        let all = others.copied().chain(key);
        let flags: Vec<String> =
            all.flat_map(|(key, value)| [key.flag(), value.to_owned()]).collect();
        by_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let running = flags_but(None).expect("good");
    for key in Key::all().iter().copied() {
        let fresh = flags_but(Some((key, other_value(key)))).expect("another good value");
        let wanted = fresh.shown(key);
        if !key.is_secret() {
            assert_ne!(running.shown(key), wanted, "{key}: this test needs another value");
        }
        let Reloaded { config, taken, not_taken } = running.change_to(fresh);
        let (holds, told) = match key.needs_restart() {
            true => (running.shown(key), &not_taken),
            false => (wanted, &taken),
        };
        assert_eq!(config.shown(key), holds, "{key}");
        let named = told.iter().filter(|line| line.starts_with(&format!("{key} is now "))).count();
        assert_eq!(named, 1, "{key}: {taken:?} {not_taken:?}");
        assert_eq!(taken.len() + not_taken.len(), 1, "{key}: {taken:?} {not_taken:?}");
        assert!(!format!("{taken:?}").contains("sesame"));
    }
}

#[test]
fn certificates_are_exchanged_while_running_and_tls_is_not_begun_or_ended() {
    let with_tls = by_file("tls_cert = \"a.pem\"\ntls_key = \"a.key\"").expect("good");
    let exchanged = by_file("tls_cert = \"b.pem\"\ntls_key = \"b.key\"").expect("good");
    let without = by_flags(&[]).expect("good");
    let Reloaded { config, taken, not_taken } = with_tls.change_to(exchanged);
    assert_eq!((taken.len(), not_taken.len()), (2, 0));
    assert_eq!(config.shown(Key::TlsCert).as_deref(), Some("\"b.pem\""));
    for (running, fresh) in [(&with_tls, &without), (&without, &with_tls)] {
        let Reloaded { config, taken, not_taken } = running.change_to(fresh.clone());
        // The certificate, its key, and that clients are not asked for theirs.
        assert_eq!((taken.len(), not_taken.len()), (0, 3), "{not_taken:?}");
        let now = fresh.shown(Key::TlsKey).unwrap_or("not set".to_owned());
        assert!(not_taken[1].starts_with(&format!("tls_key is now {now} (")), "{not_taken:?}");
        assert_eq!(config.shown(Key::TlsKey), running.shown(Key::TlsKey));
    }
}

#[test]
fn every_setting_that_is_never_shown_can_be_compared() {
    for key in Key::all().iter().filter(|key| key.is_secret()) {
        let running = by_flags(&[&key.flag(), "one"]).expect("good");
        let other = by_flags(&[&key.flag(), "other"]).expect("good");
        assert_eq!(running.change_to(other).taken.len(), 1, "{key}");
        let same = by_flags(&[&key.flag(), "one"]).expect("good");
        assert_eq!(running.change_to(same).taken.len(), 0, "{key}");
    }
}

mod example_file {
    use super::*;

    const EXAMPLE: &str = include_str!("../../docs/wsgate.example.toml");

    /// The lines of settings, without the `#` that keeps them from holding.
    fn settings() -> impl Iterator<Item = &'static str> {
        EXAMPLE.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| {
            line.split_once(" = ").is_some_and(|(name, _)| Key::by_name(name).is_some())
        })
    }

    /// The value of each key, without where it came from.
    fn values(config: &Config) -> BTreeMap<Key, Option<String>> {
        Key::all().iter().map(|key| (*key, config.shown(*key))).collect()
    }

    #[test]
    fn changes_nothing_as_it_stands() {
        let config = by_file(EXAMPLE).expect("the example is good");
        assert_eq!(values(&config), values(&by_flags(&[]).expect("the defaults are good")));
    }

    #[test]
    fn has_every_setting_with_its_default() {
        let text: String = settings().flat_map(|line| [line, "\n"]).collect();
        let config = by_file(&text).expect("every line of the example is good");
        let defaults = values(&by_flags(&[]).expect("the defaults are good"));
        for (key, value) in values(&config) {
            assert!(matches!(config.sources[&key], Source::File { .. }), "{key} is missing");
            // What has no default is there with any good value.
            if defaults[&key].is_some() {
                assert_eq!(value, defaults[&key], "{key}");
            }
        }
        assert_eq!(settings().count(), Key::all().len());
    }

    #[test]
    fn has_them_in_the_order_of_the_help() {
        let names: Vec<_> = settings().filter_map(|line| line.split_once(" = ")).collect();
        let keys: Vec<_> = Key::all().iter().map(ToString::to_string).collect();
        assert_eq!(names.iter().map(|(name, _)| *name).collect::<Vec<_>>(), keys);
    }
}
