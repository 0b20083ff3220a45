//! What does a deflated message cost, and what does it save?
//!
//! - `deflate`, `inflate`: JSON of several sizes that stands alone; what it becomes is in the name.
//! - `takeover`: JSON of 1 KiB that refers to windows of several sizes.
//! - `negotiate`: the offer of a browser.
//!
//! What a publication to 1,000 subscribers costs is in `fan_out`, group `shard`.
//!
//! `cargo bench --bench compression -- --test` runs each once.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use http::HeaderMap;
use http::header::{HeaderValue, SEC_WEBSOCKET_EXTENSIONS};
use wsgate::wire::deflate::{Deflater, Inflater};
use wsgate::wire::extensions::{Readiness, WindowBits, negotiate};
use wsgate::wire::frame::{self, MessageKind};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    alone(&mut criterion);
    takeover(&mut criterion);
    negotiation(&mut criterion);
    criterion.final_summary();
}

/// Trades as a feed has them, about `bytes` long: what is alike in JSON and what is not.
fn json(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = String::from("{\"type\":\"trades\",\"items\":[");
    while text.len() < bytes.saturating_sub(100) {
        let symbol = ["BTC", "ETH", "SOL", "XRP", "ADA"][next(5) as usize];
        text += &format!(
            "{{\"id\":{},\"symbol\":\"{symbol}-USD\",\"price\":{}.{:02},\"quantity\":0.{:04},\
             \"side\":\"{}\",\"time\":\"2026-11-21T{:02}:{:02}:{:02}.{:03}Z\"}},",
            next(1_000_000),
            next(100_000),
            next(100),
            next(10_000),
            ["buy", "sell"][next(2) as usize],
            next(24),
            next(60),
            next(60),
            next(1_000),
        );
    }
    text.pop();
    text += "]}";
    text.into_bytes()
}

/// The frame of a message, deflated.
fn deflated(deflater: &mut Deflater, payload: &[u8], dictionary: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    assert!(deflater.append_frame(&mut frame, MessageKind::Text, payload, dictionary));
    frame
}

/// `1024_to_37_percent`
fn label(payload: &[u8], frame: &[u8]) -> String {
    format!("{}_to_{}_percent", payload.len(), 100 * frame.len() / payload.len())
}

fn alone(criterion: &mut Criterion) {
    for bytes in [256, 1_024, 4_096, 65_536] {
        let payload = json(bytes, 1);
        let mut deflater = Deflater::new(WindowBits::MAX);
        let frame = deflated(&mut deflater, &payload, b"");
        let label = label(&payload, &frame);
        let mut output = Vec::new();
        let mut group = criterion.benchmark_group("deflate");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(&label, |bencher| {
            bencher.iter(|| {
                output.clear();
                deflater.append_frame(&mut output, MessageKind::Text, black_box(&payload), b"")
            });
        });
        group.finish();
        let (_, wire) = frame::open(&frame);
        let mut inflater = Inflater::default();
        let mut group = criterion.benchmark_group("inflate");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(&label, |bencher| {
            bencher.iter(|| {
                output.clear();
                inflater.inflate(black_box(wire), b"", payload.len(), &mut output)
            });
        });
        group.finish();
    }
}

fn takeover(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("takeover");
    let payload = json(1_024, 1);
    for window in [9, 12, 13, 15].map(|bits| WindowBits::new(bits).expect("one of the sizes")) {
        let mut said = json(window.bytes() + 200, 2);
        said.truncate(window.bytes());
        let mut deflater = Deflater::new(window);
        let frame = deflated(&mut deflater, &payload, &said);
        let label = format!("{}_window_{}", label(&payload, &frame), window.bytes());
        let mut output = Vec::new();
        group.bench_function(BenchmarkId::new("deflate", &label), |bencher| {
            bencher.iter(|| {
                output.clear();
                deflater.append_frame(&mut output, MessageKind::Text, black_box(&payload), &said)
            });
        });
        let (_, wire) = frame::open(&frame);
        let mut inflater = Inflater::default();
        group.bench_function(BenchmarkId::new("inflate", &label), |bencher| {
            bencher.iter(|| {
                output.clear();
                inflater.inflate(black_box(wire), &said, payload.len(), &mut output)
            });
        });
    }
    group.finish();
}

fn negotiation(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    let offer = HeaderValue::from_static("permessage-deflate; client_max_window_bits");
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, offer);
    criterion.bench_function("negotiate", |bencher| {
        bencher.iter(|| {
            let agreement = negotiate(black_box(&headers), Readiness::NoTakeover);
            agreement.map(|agreement| agreement.to_string())
        });
    });
}
