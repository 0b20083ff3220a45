//! All shards' counters as Prometheus sees them.
//!
//! The shards never touch the recorder. The control thread reads their counters, adds them up and
//! hands the sums over, for each scrape and once a second (see [`Exporter::hand_over`]).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use metrics::{Gauge, Histogram, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::telemetry::counters::{
    CLOSE_CODES, COMPRESSION_MODES, Counters, HTTP_VERSIONS, INITIATORS, MESSAGE_KINDS,
    RATE_LIMIT_ACTIONS, RELOAD_RESULTS, RateLimit, Rejection, SlowConsumer, TLS_VERSIONS,
    TOKEN_REJECTIONS, closed_index, rate_limited_index,
};
use crate::telemetry::histogram::{self, BOUNDS_SECONDS, Snapshot};

const METADATA: Metadata<'_> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// How long a thread has not been waiting, since it started. Asked for from the control thread.
pub type BusyTime = Box<dyn Fn() -> Duration>;

type Read<T> = Box<dyn Fn(&Counters) -> T>;

/// Reads counters and hands them to the recorder.
pub struct Exporter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// One for each shard, in their order, and the control thread's.
    sources: Vec<Arc<Counters>>,
    counters: Vec<(metrics::Counter, Read<u64>)>,
    gauges: Vec<(Gauge, Read<u64>)>,
    histograms: Vec<HistogramExport>,
    connections: Vec<Gauge>,
    busy: Vec<Busy>,
    draining: Gauge,
    config_loaded: Gauge,
    config_loaded_at: Gauge,
    /// There once a certificate is in use: an alert on it must not find the year 1970.
    certificate_expiry: Option<Gauge>,
    addresses: Gauge,
    max_connections: Gauge,
    process: metrics_process::Collector,
}

struct HistogramExport {
    histogram: Histogram,
    read: fn(&Counters) -> &histogram::Histogram,
    /// What was handed over before, for each source.
    seen: Vec<Snapshot>,
}

struct Busy {
    gauge: Gauge,
    busy_time: BusyTime,
    seen: Duration,
    seen_at: Instant,
}

impl Exporter {
    /// An exporter for shards with these counters and busy times, and for the control thread's
    /// counters. `protocol_errors` names the kinds that shards count.
    ///
    /// # Errors
    ///
    /// The recorder cannot be built, which no input of ours can cause.
    pub fn new(
        shards: &[Arc<Counters>],
        control: Arc<Counters>,
        busy_times: Vec<BusyTime>,
        protocol_errors: &'static [&'static str],
    ) -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BOUNDS_SECONDS)?
            .build_recorder();
        let register = Register { recorder: &recorder };
        let mut sources = shards.to_vec();
        sources.push(control);
        let (counters, gauges) = (register.counters(protocol_errors), register.gauges());
        let histograms = register.histograms(sources.len());
        let shard_gauge = |name: &'static str, index: usize| {
            register.gauge(name, vec![Label::new("shard", index.to_string())])
        };
        register.describe_gauge(
            "wsgate_connections",
            "Connections that are open or closing, by shard.",
        );
        register.describe_gauge(
            "wsgate_shard_busy_ratio",
            "Share of the last second in which a shard was working, 0 to 1.",
        );
        register.describe_gauge(
            "wsgate_addresses",
            "Addresses that are remembered, where each has limits.",
        );
        register.describe_gauge("wsgate_draining", "1 while the gateway drains, else 0.");
        register.describe_gauge("wsgate_build_info", "Always 1; the label tells the version.");
        let connections =
            (0..shards.len()).map(|index| shard_gauge("wsgate_connections", index)).collect();
        let busy = busy_times.into_iter().enumerate().map(|(index, busy_time)| Busy {
            gauge: shard_gauge("wsgate_shard_busy_ratio", index),
            seen: busy_time(),
            seen_at: Instant::now(),
            busy_time,
        });
        let busy = busy.collect();
        let version = vec![Label::new("version", env!("CARGO_PKG_VERSION"))];
        register.gauge("wsgate_build_info", version).set(1.0);
        let draining = register.gauge("wsgate_draining", Vec::new());
        draining.set(0.0);
        register.describe_gauge(
            "wsgate_config_last_reload_successful",
            "1 when the configuration was good the last time that it was read, else 0.",
        );
        register.describe_gauge(
            "wsgate_config_last_reload_success_timestamp_seconds",
            "When the configuration that holds was read, in Unix time.",
        );
        let plain = |name| register.gauge(name, Vec::new());
        let config_loaded = plain("wsgate_config_last_reload_successful");
        let config_loaded_at = plain("wsgate_config_last_reload_success_timestamp_seconds");
        let addresses = register.gauge("wsgate_addresses", Vec::new());
        addresses.set(0.0);
        register.describe_gauge(
            "wsgate_max_connections",
            "Most connections at a time, by the settings or by the limit of open files.",
        );
        let max_connections = plain("wsgate_max_connections");
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let handle = recorder.handle();
        let exporter = Self {
            recorder,
            handle,
            sources,
            counters,
            gauges,
            histograms,
            connections,
            busy,
            draining,
            config_loaded,
            config_loaded_at,
            certificate_expiry: None,
            addresses,
            max_connections,
            process,
        };
        exporter.set_config_loaded(true, SystemTime::now());
        Ok(exporter)
    }

    /// Says whether the gateway drains.
    pub fn set_draining(&self, draining: bool) {
        self.draining.set(f64::from(u8::from(draining)));
    }

    /// Says whether the configuration that was read at `at` was good; the one that holds was.
    pub fn set_config_loaded(&self, succeeded: bool, at: SystemTime) {
        self.config_loaded.set(f64::from(u8::from(succeeded)));
        if succeeded {
            let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.config_loaded_at.set(since_1970.as_secs_f64());
        }
    }

    /// Says how many addresses are remembered.
    pub fn set_addresses(&self, addresses: usize) {
        self.addresses.set(addresses as f64);
    }

    /// Says how many connections there may be.
    pub fn set_max_connections(&self, max_connections: usize) {
        self.max_connections.set(max_connections as f64);
    }

    /// Hands the sums over. To be called about once a second: the busy ratio is that of the time
    /// since the last call that was at least half a second ago, and the recorder keeps each
    /// observation of a histogram until it is asked to sort them in.
    pub fn hand_over(&mut self, now: Instant) {
        for (counter, read) in &self.counters {
            counter.absolute(self.sources.iter().map(|source| read(source)).sum());
        }
        for (gauge, read) in &self.gauges {
            gauge.set(self.sources.iter().map(|source| read(source)).sum::<u64>() as f64);
        }
        let expiry = self.sources.iter().map(|from| from.tls_certificate_expiry.value()).max();
        if let Some(seconds @ 1..) = expiry {
            let register = Register { recorder: &self.recorder };
            let gauge =
                self.certificate_expiry.get_or_insert_with(|| register.certificate_expiry());
            gauge.set(seconds as f64);
        }
        for (gauge, source) in self.connections.iter().zip(&self.sources) {
            gauge.set(source.connections.value() as f64);
        }
        for export in &mut self.histograms {
            for (source, seen) in self.sources.iter().zip(&mut export.seen) {
                let snapshot = (export.read)(source).snapshot();
                for (observations, mean) in snapshot.since(seen) {
                    export.histogram.record_many(mean, observations as usize);
                }
                *seen = snapshot;
            }
        }
        for busy in &mut self.busy {
            let elapsed = now.saturating_duration_since(busy.seen_at);
            if elapsed >= Duration::from_millis(500) {
                let total = (busy.busy_time)();
                let ratio = total.saturating_sub(busy.seen).as_secs_f64() / elapsed.as_secs_f64();
                busy.gauge.set(ratio.min(1.0));
                busy.seen = total;
                busy.seen_at = now;
            }
        }
        self.handle.run_upkeep();
    }

    /// The text that answers a scrape.
    pub fn render(&mut self, now: Instant) -> String {
        self.hand_over(now);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }
}

/// Names things in the recorder.
struct Register<'a> {
    recorder: &'a PrometheusRecorder,
}

impl Register<'_> {
    fn counter(
        &self,
        into: &mut Vec<(metrics::Counter, Read<u64>)>,
        name: &'static str,
        labels: Vec<Label>,
        read: impl Fn(&Counters) -> u64 + 'static,
    ) {
        let key = metrics::Key::from_parts(name, labels);
        into.push((self.recorder.register_counter(&key, &METADATA), Box::new(read)));
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&metrics::Key::from_parts(name, labels), &METADATA)
    }

    fn certificate_expiry(&self) -> Gauge {
        let name = "wsgate_tls_certificate_expiry_timestamp_seconds";
        self.describe_gauge(
            name,
            "When the first of the TLS certificates in use expires, in seconds since 1970.",
        );
        self.gauge(name, Vec::new())
    }

    fn describe_gauge(&self, name: &'static str, text: &'static str) {
        self.recorder.describe_gauge(name.into(), None, text.into());
    }

    fn counters(
        &self,
        protocol_errors: &'static [&'static str],
    ) -> Vec<(metrics::Counter, Read<u64>)> {
        let mut all = Vec::new();
        let describe = |name: &'static str, text: &'static str| {
            self.recorder.describe_counter(name.into(), None, text.into());
        };
        type Plain = fn(&Counters) -> u64;
        let plain: [(&'static str, &'static str, Plain); 15] = [
            ("wsgate_connections_accepted_total", "Sockets accepted.", |from| {
                from.connections_accepted.value()
            }),
            (
                "wsgate_connections_aged_total",
                "Connections closed since they had lasted as long as they may.",
                |from| from.connections_aged.value(),
            ),
            ("wsgate_console_requests_total", "Requests answered with the console page.", |from| {
                from.console_requests.value()
            }),
            ("wsgate_received_bytes_total", "Bytes of frames read from clients.", |from| {
                from.received_bytes.value()
            }),
            ("wsgate_sent_bytes_total", "Bytes of frames written to clients.", |from| {
                from.sent_bytes.value()
            }),
            (
                "wsgate_deliveries_total",
                "Publications handed to subscribers, each counted once for each of them.",
                |from| from.deliveries.value(),
            ),
            (
                "wsgate_mailbox_full_total",
                "Times that a shard's mailbox was full and the publisher had to wait.",
                |from| from.mailbox_full.value(),
            ),
            (
                "wsgate_token_expirations_total",
                "Connections closed since their token had expired.",
                |from| from.token_expirations.value(),
            ),
            (
                "wsgate_forbidden_publications_total",
                "Messages that were not published, and ended their connection, since it may not publish.",
                |from| from.forbidden_publications.value(),
            ),
            (
                "wsgate_compression_fallbacks_total",
                "Connections with shared compression since no memory for dedicated was left.",
                |from| from.compression_fallbacks.value(),
            ),
            (
                "wsgate_deflate_input_bytes_total",
                "Bytes of frames that were to be deflated, before.",
                |from| from.deflate_input_bytes.value(),
            ),
            (
                "wsgate_deflate_output_bytes_total",
                "Bytes of frames that were to be deflated, after.",
                |from| from.deflate_output_bytes.value(),
            ),
            (
                "wsgate_inflate_input_bytes_total",
                "Bytes of payloads of deflated messages from clients, before they were inflated.",
                |from| from.inflate_input_bytes.value(),
            ),
            (
                "wsgate_inflate_output_bytes_total",
                "Bytes of payloads of deflated messages from clients, after they were inflated.",
                |from| from.inflate_output_bytes.value(),
            ),
            ("wsgate_panics_total", "Bugs that ended a connection with 1011.", |from| {
                from.panics.value()
            }),
        ];
        for (name, text, read) in plain {
            describe(name, text);
            self.counter(&mut all, name, Vec::new(), read);
        }

        let name = "wsgate_connections_rejected_total";
        describe(name, "Sockets and requests that did not become a connection, by reason.");
        for (index, reason) in Rejection::LABELS.into_iter().enumerate() {
            let labels = vec![Label::new("reason", reason)];
            self.counter(&mut all, name, labels, move |from| {
                from.connections_rejected[index].value()
            });
        }

        let name = "wsgate_handshakes_total";
        describe(name, "Opening handshakes that succeeded, by the version of HTTP.");
        for (index, version) in HTTP_VERSIONS.into_iter().enumerate() {
            let labels = vec![Label::new("http", version)];
            self.counter(&mut all, name, labels, move |from| from.handshakes[index].value());
        }

        let name = "wsgate_tls_handshakes_total";
        describe(name, "TLS handshakes that succeeded, by version.");
        for (index, version) in TLS_VERSIONS.into_iter().enumerate() {
            let labels = vec![Label::new("version", version)];
            self.counter(&mut all, name, labels, move |from| from.tls_handshakes[index].value());
        }

        let name = "wsgate_tls_reloads_total";
        describe(name, "Times that TLS certificates were loaded anew, by result.");
        for (index, result) in RELOAD_RESULTS.into_iter().enumerate() {
            let labels = vec![Label::new("result", result)];
            self.counter(&mut all, name, labels, move |from| from.tls_reloads[index].value());
        }

        let name = "wsgate_token_rejections_total";
        describe(name, "Tokens that were not believed, in handshakes and refreshes, by reason.");
        for (index, reason) in TOKEN_REJECTIONS.into_iter().enumerate() {
            let labels = vec![Label::new("reason", reason)];
            self.counter(&mut all, name, labels, move |from| from.token_rejections[index].value());
        }

        let name = "wsgate_connections_closed_total";
        describe(name, "Connections that ended, by close code and by who began to close.");
        for (code, code_label) in CLOSE_CODES.into_iter().enumerate() {
            for (initiator, initiator_label) in INITIATORS.into_iter().enumerate() {
                let labels =
                    vec![Label::new("code", code_label), Label::new("initiator", initiator_label)];
                let index = closed_index(code, initiator);
                self.counter(&mut all, name, labels, move |from| {
                    from.connections_closed[index].value()
                });
            }
        }

        describe("wsgate_messages_received_total", "Data messages from clients, by kind.");
        describe(
            "wsgate_messages_sent_total",
            "Data messages handed to connections, by kind; those of them that full outbound queues \
             cost are in wsgate_dropped_messages_total too.",
        );
        for (index, kind) in MESSAGE_KINDS.into_iter().enumerate() {
            let labels = || vec![Label::new("kind", kind)];
            self.counter(&mut all, "wsgate_messages_received_total", labels(), move |from| {
                from.messages_received[index].value()
            });
            self.counter(&mut all, "wsgate_messages_sent_total", labels(), move |from| {
                from.messages_sent[index].value()
            });
        }

        let name = "wsgate_publications_total";
        describe(name, "Messages published to channels, by where they came from.");
        let sources: [(&str, Plain); 2] = [
            ("connection", |from| from.publications_from_connections.value()),
            ("api", |from| from.publications_from_api.value()),
        ];
        for (source, read) in sources {
            self.counter(&mut all, name, vec![Label::new("source", source)], read);
        }

        describe(
            "wsgate_slow_consumers_total",
            "Times that a connection's outbound queue was full, by what was done.",
        );
        describe(
            "wsgate_dropped_messages_total",
            "Data messages dropped from full outbound queues, by what was done.",
        );
        for (index, action) in SlowConsumer::LABELS.into_iter().enumerate() {
            let label = |name| vec![Label::new(name, action)];
            self.counter(&mut all, "wsgate_slow_consumers_total", label("action"), move |from| {
                from.slow_consumers[index].value()
            });
            self.counter(&mut all, "wsgate_dropped_messages_total", label("reason"), move |from| {
                from.dropped_messages[index].value()
            });
        }

        let name = "wsgate_config_reloads_total";
        describe(name, "Times that the configuration was read anew, by what came of it.");
        for (index, result) in RELOAD_RESULTS.into_iter().enumerate() {
            self.counter(&mut all, name, vec![Label::new("result", result)], move |from| {
                from.config_reloads[index].value()
            });
        }

        let name = "wsgate_rate_limited_total";
        describe(name, "Times that a client sent more than it may, by limit and by what was done.");
        for (limit, limit_label) in
            [RateLimit::Messages, RateLimit::Bytes].into_iter().zip(RateLimit::LABELS)
        {
            for (action, action_label) in RATE_LIMIT_ACTIONS.into_iter().enumerate() {
                let labels =
                    vec![Label::new("limit", limit_label), Label::new("action", action_label)];
                let index = rate_limited_index(limit, action);
                self.counter(&mut all, name, labels, move |from| from.rate_limited[index].value());
            }
        }

        let name = "wsgate_protocol_errors_total";
        describe(name, "Connections failed because the client broke a rule, by the rule.");
        for (index, kind) in protocol_errors.iter().copied().enumerate() {
            self.counter(&mut all, name, vec![Label::new("kind", kind)], move |from| {
                from.protocol_errors[index].value()
            });
        }
        all
    }

    fn gauges(&self) -> Vec<(Gauge, Read<u64>)> {
        type Plain = fn(&Counters) -> u64;
        let plain: [(&'static str, &'static str, Plain); 5] = [
            ("wsgate_outbound_queue_bytes", "Bytes waiting in outbound queues.", |from| {
                from.outbound_queue_bytes.value()
            }),
            (
                "wsgate_compression_memory_bytes",
                "Memory taken for the windows of connections with dedicated compression.",
                |from| from.compression_memory_bytes.value(),
            ),
            ("wsgate_identified_connections", "Connections that came with a token.", |from| {
                from.identified_connections.value()
            }),
            ("wsgate_channels", "Channels that have a subscriber.", |from| from.channels.value()),
            ("wsgate_subscriptions", "Subscriptions of connections to channels.", |from| {
                from.subscriptions.value()
            }),
        ];
        let all = plain.into_iter().map(|(name, text, read)| -> (Gauge, Read<u64>) {
            self.describe_gauge(name, text);
            (self.gauge(name, Vec::new()), Box::new(read))
        });
        let name = "wsgate_compressed_connections";
        self.describe_gauge(name, "Connections that negotiated permessage-deflate, by mode.");
        let by_mode = COMPRESSION_MODES.into_iter().enumerate().map(|(index, mode)| {
            let gauge = self.gauge(name, vec![Label::new("mode", mode)]);
            let read = move |from: &Counters| from.compressed_connections[index].value();
            (gauge, Box::new(read) as Read<u64>)
        });
        all.chain(by_mode).collect()
    }

    fn histograms(&self, sources: usize) -> Vec<HistogramExport> {
        type Plain = fn(&Counters) -> &histogram::Histogram;
        let plain: [(&'static str, &'static str, Plain); 2] = [
            (
                "wsgate_handshake_duration_seconds",
                "From accepting a socket to the end of its opening handshake.",
                |from| &from.handshake_duration,
            ),
            (
                "wsgate_delivery_lag_seconds",
                "From a publication's arrival to the last subscriber's write, for each batch and shard.",
                |from| &from.delivery_lag,
            ),
        ];
        let all = plain.into_iter().map(|(name, text, read)| {
            self.recorder.describe_histogram(name.into(), None, text.into());
            let key = metrics::Key::from_static_name(name);
            let histogram = self.recorder.register_histogram(&key, &METADATA);
            HistogramExport { histogram, read, seen: vec![Snapshot::default(); sources] }
        });
        all.collect()
    }
}
