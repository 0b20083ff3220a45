//! `loadtest soak`: against the gateway, and against a server that breaks its promises now and then.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::Value;

fn soak(words: &str, more: &[&str]) -> Output {
    let words = words.split_whitespace();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["soak", "--quiet", "--json", "-"]).args(words).args(more);
    command.output().unwrap()
}

/// The report of a soak that ended with this status.
fn report(output: &Output, status: i32) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(status), "{said}\n{printed}");
    let json: Value = serde_json::from_slice(&output.stdout).expect(&said);
    json["reports"][0].clone()
}

fn finding(report: &Value, label: &str) -> f64 {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["label"] == label);
    found.unwrap_or_else(|| panic!("no \"{label}\" in {findings:?}"))["value"].as_f64().unwrap()
}

/// What was found of the invariants that do not hold.
fn failed(report: &Value) -> HashMap<String, String> {
    let checks = report["checks"].as_array().unwrap().iter();
    let failed = checks.filter(|check| check["passed"] == false);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    failed.map(|check| (text(&check["name"]), text(&check["found"]))).collect()
}

/// The gateway's binary. It is of another package, so Cargo builds it beside ours for a test of the
/// whole workspace, and not for one of this package alone.
fn gateway() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("wsgate");
    let named = std::env::var_os("GATEWAY_BINARY").map(PathBuf::from);
    if let Some(there) = [Some(beside.clone()), named].into_iter().flatten().find(|it| it.is_file())
    {
        return there;
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--package", "wsgate", "--bin", "wsgate"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success() && beside.is_file(), "the gateway cannot be built");
    beside
}

#[test]
fn gateway_keeps_its_promises_under_load_churn_and_faults() {
    let gateway = gateway();
    // On a machine with much else to do a handshake of half a second is no fault.
    let words = "--duration 8s --handshake-timeout 3s --outbound-queue-bytes 256KiB";
    let output = soak(words, &["--gateway", gateway.to_str().unwrap()]);
    let report = report(&output, 0);
    assert_eq!(failed(&report), HashMap::new());
    for done in [
        "publications by WebSocket",
        "publications by the API",
        "messages sent compressed",
        "echoes",
        "visits that ended by Close",
        "visits that ended by reset",
        "visits that ended by half-close",
        "slow readers cut",
        "rules broken",
        "half handshakes",
        "bad requests",
        "oversized messages",
        "Ping floods",
        "clients vanished",
        "quiet points",
    ] {
        assert!(finding(&report, done) >= 1.0, "{done}");
    }
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    let all = [
        "loss",
        "order",
        "shared order",
        "repetition",
        "foreign",
        "content",
        "echo",
        "connections",
        "faults",
        "descriptors",
        "memory",
        "panics",
    ];
    assert_eq!(names, all);
    let open = |key: &str| report["connections"][key].as_u64().unwrap();
    assert_eq!(open("open_at_end"), open("wanted"));
}

/// What a server does wrong now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A delivery gets lost.
    Loses,
    /// Two deliveries to one subscriber change places.
    Swaps,
    Repeats,
    /// A delivery reaches those of another channel.
    Misleads,
    /// A byte of a delivery changes.
    Corrupts,
    /// An echo changes.
    CorruptsEcho,
    /// A subscriber's connection ends.
    Cuts,
}

/// A little server with echo and channels, which does its `fault` at every 1,000th delivery, or every
/// 100th echo.
struct Server {
    fault: Fault,
    channels: HashMap<String, Vec<Arc<Mutex<Member>>>>,
    deliveries: u64,
    echoes: u64,
}

struct Member {
    stream: TcpStream,
    /// Waits until the next one was sent.
    held: Option<Vec<u8>>,
}

impl Member {
    fn send(&mut self, frame: &[u8]) {
        // Who is gone is not missed.
        _ = self.stream.write_all(frame);
        if let Some(held) = self.held.take() {
            _ = self.stream.write_all(&held);
        }
    }
}

impl Server {
    fn start(fault: Fault) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { fault, channels: HashMap::new(), deliveries: 0, echoes: 0 };
        let server = Arc::new(Mutex::new(server));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                std::thread::spawn(move || serve(stream, &server));
            }
        });
        address
    }

    fn publish(&mut self, channel: &str, frame: &[u8]) {
        let members = self.channels.get(channel).map(Vec::as_slice).unwrap_or_default();
        let is_stranger =
            |other: &&Arc<Mutex<Member>>| !members.iter().any(|member| Arc::ptr_eq(member, other));
        let stranger = self.channels.values().flatten().find(is_stranger);
        for member in members {
            let mut member = member.lock().unwrap();
            self.deliveries += 1;
            let is_due = self.deliveries.is_multiple_of(1_000);
            match self.fault {
                Fault::Loses if is_due => {}
                Fault::Swaps if is_due => member.held = Some(frame.to_vec()),
                Fault::Repeats if is_due => {
                    member.send(frame);
                    member.send(frame);
                }
                Fault::Corrupts if is_due => {
                    let mut frame = frame.to_vec();
                    *frame.last_mut().unwrap() ^= 1;
                    member.send(&frame);
                }
                Fault::Cuts if is_due => _ = member.stream.shutdown(Shutdown::Both),
                _ => member.send(frame),
            }
            if self.fault == Fault::Misleads
                && is_due
                && let Some(stranger) = stranger
            {
                stranger.lock().unwrap().send(frame);
            }
        }
    }
}

/// Answers one client until it goes.
fn serve(mut stream: TcpStream, server: &Mutex<Server>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?;
    let named = |name: &str| name.trim_start_matches("/channels/").to_owned();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let own = path.starts_with("/channels/").then(|| named(path));
    let also = query.split('&').filter_map(|pair| pair.strip_prefix("also="));
    let mut hears: Vec<String> = own.iter().cloned().chain(also.map(named)).collect();
    hears.dedup();
    let answer = "HTTP/1.1 101 Switching Protocols\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let member = Member { stream: stream.try_clone().ok()?, held: None };
    let member = Arc::new(Mutex::new(member));
    {
        let mut server = server.lock().unwrap();
        for name in &hears {
            server.channels.entry(name.clone()).or_default().push(Arc::clone(&member));
        }
        // Before anything that is published from now on.
        stream.write_all(answer.as_bytes()).ok()?;
    }
    // A message in fragments is gathered, with the opcode of its first frame.
    let mut message = (0, Vec::new());
    while let Some((first, payload)) = read_frame(&mut stream) {
        match first & 0x0f {
            8 => {
                member.lock().unwrap().send(&frame(0x88, &payload));
                break;
            }
            9 => member.lock().unwrap().send(&frame(0x8a, &payload)),
            10 => {}
            opcode => {
                if opcode != 0 {
                    message.0 = opcode;
                }
                message.1.extend(payload);
                if first & 0x80 == 0 {
                    continue;
                }
                let (opcode, mut payload) = std::mem::take(&mut message);
                let mut server = server.lock().unwrap();
                if let Some(own) = &own {
                    server.publish(own, &frame(0x80 | opcode, &payload));
                    continue;
                }
                server.echoes += 1;
                if server.fault == Fault::CorruptsEcho && server.echoes.is_multiple_of(100) {
                    payload.push(b'x');
                }
                member.lock().unwrap().send(&frame(0x80 | opcode, &payload));
            }
        }
    }
    let mut server = server.lock().unwrap();
    for name in hears {
        let members = server.channels.get_mut(&name)?;
        members.retain(|other| !Arc::ptr_eq(other, &member));
    }
    _ = stream.shutdown(Shutdown::Both);
    Some(())
}

/// The first byte of a masked frame, and its payload without the mask.
fn read_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            usize::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).ok()?;
            usize::try_from(u64::from_be_bytes(length)).ok()?
        }
        short => usize::from(short),
    };
    let mut rest = vec![0; 4 + length];
    stream.read_exact(&mut rest).ok()?;
    let (key, payload) = rest.split_at(4);
    let unmasked = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
    Some((head[0], unmasked.collect()))
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        medium @ 126..=0xffff => {
            frame.push(126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// The invariants that a soak of a server with this fault finds broken.
fn soak_of(fault: Fault, status: i32) -> HashMap<String, String> {
    let address = Server::start(fault);
    let url = format!("ws://{address}");
    // It knows nothing of faults, and has no API.
    let words = "--duration 3s --intruders 0 --visitors 3 --subscribers 30 --idle 5 --echoes 6";
    let output = soak(words, &["--url", &url]);
    let failed = failed(&report(&output, status));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for (name, found) in &failed {
        assert!(said.contains(&format!("soak: {name}: {found}")), "{fault:?}: {said}");
    }
    failed
}

#[test]
fn little_server_without_a_fault_is_found_to_have_none() {
    assert_eq!(soak_of(Fault::None, 0), HashMap::new());
}

#[test]
fn server_that_loses_one_delivery_in_1000_is_found_with_channel_publisher_and_numbers() {
    let failed = soak_of(Fault::Loses, 1);
    let loss = &failed["loss"];
    for part in ["channel ", " has not got message ", " of publisher "] {
        assert!(loss.contains(part), "{loss}");
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
}

#[test]
fn server_that_swaps_two_deliveries_is_found() {
    let failed = soak_of(Fault::Swaps, 1);
    // Of one publisher, or of two.
    assert!(failed.contains_key("order") || failed.contains_key("shared order"), "{failed:?}");
    assert!(failed.keys().all(|name| name.ends_with("order")), "{failed:?}");
}

#[test]
fn server_that_repeats_a_delivery_is_found() {
    let failed = soak_of(Fault::Repeats, 1);
    assert!(failed["repetition"].contains("again"), "{failed:?}");
    assert_eq!(failed.len(), 1, "{failed:?}");
}

#[test]
fn server_that_delivers_to_another_channel_is_found() {
    let failed = soak_of(Fault::Misleads, 1);
    assert!(failed["foreign"].contains("does not hear"), "{failed:?}");
}

#[test]
fn server_that_changes_a_byte_of_a_delivery_or_an_echo_is_found() {
    assert!(soak_of(Fault::Corrupts, 1)["content"].contains("changed"));
    assert!(soak_of(Fault::CorruptsEcho, 1)["echo"].contains("came back as"));
}

#[test]
fn server_that_cuts_a_subscriber_is_found() {
    let failed = soak_of(Fault::Cuts, 1);
    assert!(failed["connections"].contains("ended the connection"), "{failed:?}");
}
