//! The servers that a gateway is compared with: what can each do, how is it started and ended?
//!
//! - [`Peer`], [`Peer::start`], [`Running`]: one of them, and while it runs. Each is given the same:
//!   one thread for what the gateway does on one shard, TCP_NODELAY, no compression but where it is
//!   asked for, no log of messages.
//! - [`list`], [`install`]: which are there, and how the others come.
//! - `process`: a child that does not outlive us.
//! - `installed`: where the parts of a peer are, and their versions.
//!
//! The servers themselves are in `loadtest/peers`.

mod installed;
mod process;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use self::process::{Directory, Process};
pub use crate::target::Dialect;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(10);

/// How often nginx is started when another process takes the port that it was told.
const PORTS_TRIED: usize = 3;

/// How often NATS pings where nobody asks for a heartbeat: its default, since it cannot be told never
/// to.
const NATS_PING_INTERVAL: Duration = Duration::from_secs(120);

/// A server of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The gateway.
    Gateway,
    /// What the kernel makes every server do, see [`crate::floor`].
    Floor,
    /// The echo loop of the Rust library fastwebsockets.
    Fastwebsockets,
    /// The Rust library tokio-tungstenite.
    Tungstenite,
    /// uWebSockets.js: the C++ server under Node.js.
    UWebSockets,
    /// npm's ws under Node.js.
    Ws,
    /// nginx with the module nchan.
    Nchan,
    /// The NATS server with its own protocol over WebSocket.
    Nats,
}

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The binary `wsgate`.
    pub gateway: PathBuf,
    /// Threads that serve, for those that can have several: the gateway, nchan and NATS. The others
    /// have one.
    pub shards: usize,
    /// What it agrees to when a client offers permessage-deflate; with `None` what it does by itself,
    /// which is nothing for the others than the gateway. Only who can compress ([`Peer::can_compress`])
    /// looks at it.
    pub compression: Option<ServerCompression>,
    /// Whether the gateway's clients come over TLS, to a certificate for 127.0.0.1 that is made for it.
    pub is_tls: bool,
    /// More arguments for the gateway, behind the others.
    pub gateway_arguments: Vec<String>,
    /// How often clients are pinged, in whole seconds; with `None` as often as the server does by
    /// itself, which is every 25 s for the gateway, every 2 minutes for NATS and never for the others.
    /// A server that cannot ping ([`Peer::can_ping`]) ignores it, and uWebSockets takes the next that
    /// it can count: 24 s for 25 s.
    pub heartbeat: Option<Duration>,
}

/// How a server compresses, by the names of the gateway's `--compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerCompression {
    /// Not at all.
    Off,
    /// With `server_no_context_takeover`.
    Shared,
    /// With a window for each connection.
    Dedicated,
}

impl ServerCompression {
    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
        }
    }
}

impl FromStr for ServerCompression {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found =
            [Self::Off, Self::Shared, Self::Dedicated].into_iter().find(|it| it.name() == name);
        found.ok_or_else(|| format!("\"{name}\" is none of off, shared and dedicated"))
    }
}

/// A server while it runs. It is ended, waited for and cleaned up after when this is dropped, and
/// ends by itself when this process does.
#[derive(Debug)]
pub struct Running {
    /// Which server it is.
    pub peer: Peer,
    /// Its process. Its children serve too, see [`Running::processes`].
    pub pid: u32,
    /// Where it takes WebSocket connections.
    pub address: SocketAddr,
    /// Where its clients come over TLS: the PEM file with its certificate, which has signed itself. It is
    /// removed with all else.
    pub certificate: Option<PathBuf>,
    /// How a client speaks to it.
    pub dialect: Dialect,
    /// Where an echo is. With `{connection}` in it, every connection puts a word of its own there: it
    /// is a channel that must not be shared.
    pub echo_path: &'static str,
    /// Where a channel is: its name stands for `{channel}`.
    pub channel_path: &'static str,
    /// Where the gateway takes HTTP requests that publish. The others have nothing like it.
    pub api: Option<SocketAddr>,
    process: Process,
}

/// Why a server is not running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A part of it is missing.
    #[error("{peer} is not installed: there is no {}. {remedy}", missing.display())]
    Missing {
        /// The server.
        peer: Peer,
        /// The file or command.
        missing: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// The system did not start it.
    #[error("{peer} cannot be started: {source}")]
    System {
        /// The server.
        peer: Peer,
        /// What the system says.
        source: std::io::Error,
    },
    /// It ended before it listened.
    #[error("{peer} ended before it listened. It says:\n{log}")]
    Ended {
        /// The server.
        peer: Peer,
        /// What it wrote to standard error.
        log: String,
    },
    /// It did not listen in time.
    #[error("{peer} does not listen after {} seconds. It says:\n{log}", START.as_secs())]
    Silent {
        /// The server.
        peer: Peer,
        /// What it wrote to standard error.
        log: String,
    },
}

/// Why servers were not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The script could not be run.
    #[error("{} cannot be run: {source}", script.display())]
    Script {
        /// The script that installs.
        script: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Some could not be had. The script has said which and why.
    #[error("not all of them could be installed, see above")]
    Failed,
}

/// What [`list`] says about one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The server.
    pub peer: Peer,
    /// Its version; `None` where only the installed one tells.
    pub version: Option<String>,
    /// Whether it echoes.
    pub can_echo: bool,
    /// Whether it has channels.
    pub can_fan_out: bool,
    /// Whether it can ping its clients.
    pub can_ping: bool,
    /// How to get it; `None` when it is there.
    pub remedy: Option<String>,
}

/// All servers, in the order in which they are compared.
pub fn list() -> Vec<Listed> {
    let listed = Peer::ALL.into_iter().map(|peer| Listed {
        peer,
        version: installed::version(peer),
        can_echo: peer.can_echo(),
        can_fan_out: peer.can_fan_out(),
        can_ping: peer.can_ping(),
        remedy: installed::find_missing(peer).map(|_| installed::remedy(peer)),
    });
    listed.collect()
}

/// Gets the servers that are not part of this workspace, or all of them without names. Those that are
/// there already stay. What goes on is printed.
///
/// # Errors
///
/// One of them could not be had; the others were tried.
pub fn install(peers: &[Peer]) -> Result<(), InstallError> {
    let script = installed::sources().join("install");
    // The gateway and the floor are built here and need nothing.
    let names = peers.iter().filter(|peer| installed::is_installable(**peer));
    let names: Vec<String> = names.map(Peer::to_string).collect();
    if names.is_empty() && !peers.is_empty() {
        return Ok(());
    }
    let status = Command::new(&script).args(names).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(InstallError::Failed),
        Err(source) => Err(InstallError::Script { script, source }),
    }
}

impl Peer {
    /// All of them, in the order in which they are compared.
    pub const ALL: [Self; 8] = [
        Self::Gateway,
        Self::Floor,
        Self::Fastwebsockets,
        Self::Tungstenite,
        Self::UWebSockets,
        Self::Ws,
        Self::Nchan,
        Self::Nats,
    ];

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "wsgate",
            Self::Floor => "floor",
            Self::Fastwebsockets => "fastwebsockets",
            Self::Tungstenite => "tokio-tungstenite",
            Self::UWebSockets => "uwebsockets",
            Self::Ws => "ws",
            Self::Nchan => "nchan",
            Self::Nats => "nats",
        }
    }

    /// Whether it sends a message back to who sent it, and to nobody else. nchan and NATS do so with a
    /// channel of one member.
    pub fn can_echo(self) -> bool {
        true
    }

    /// Whether it has channels: fastwebsockets is a library of frames, without any.
    pub fn can_fan_out(self) -> bool {
        self != Self::Fastwebsockets
    }

    /// Whether it pings its clients, if asked to: see [`StartOptions::heartbeat`].
    pub fn can_ping(self) -> bool {
        !matches!(self, Self::Floor | Self::Fastwebsockets)
    }

    /// Whether it compresses, if asked to: see [`StartOptions::compression`].
    pub fn can_compress(self) -> bool {
        matches!(self, Self::Gateway | Self::Ws)
    }

    /// How a client speaks to it.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Floor => Dialect::MaskedFrames,
            Self::Nats => Dialect::Nats,
            Self::Gateway
            | Self::Fastwebsockets
            | Self::Tungstenite
            | Self::UWebSockets
            | Self::Ws
            | Self::Nchan => Dialect::WebSocket,
        }
    }

    /// Starts it on a free port of 127.0.0.1 and waits until it listens.
    ///
    /// This process' limit of descriptors is raised first, since the server gets the same.
    ///
    /// # Errors
    ///
    /// It is not installed, or it does not come up. The error says what to do, or what the server says.
    pub fn start(self, options: &StartOptions) -> Result<Running, StartError> {
        if self == Self::Gateway && !options.gateway.is_file() {
            return Err(self.missing(options.gateway.clone()));
        }
        if let Some(missing) = installed::find_missing(self) {
            return Err(self.missing(missing));
        }
        crate::floor::raise_descriptor_limit();
        let seconds = options.heartbeat.map(whole_seconds);
        match self {
            Self::Gateway => self.start_gateway(options),
            Self::Floor => {
                let program = std::env::current_exe().map_err(|source| self.refused(source))?;
                let mut arguments = words(&["floor", "--listen", "127.0.0.1:0", "--port-file"]);
                arguments.push("@port_file@".to_owned());
                self.start_with_port_file(&program, arguments, &[])
            }
            Self::Fastwebsockets => {
                let program = installed::rust_peer("peer-fastwebsockets");
                self.start_with_port_file(&program, words(&["127.0.0.1:0", "@port_file@"]), &[])
            }
            Self::Tungstenite => {
                let program = installed::rust_peer("peer-tungstenite");
                let mut arguments = words(&["127.0.0.1:0", "@port_file@"]);
                arguments.extend(seconds.map(|seconds| seconds.to_string()));
                self.start_with_port_file(&program, arguments, &[])
            }
            Self::UWebSockets | Self::Ws => {
                let script = installed::sources().join(self.name()).join("server.js");
                let mut arguments =
                    vec![script.to_string_lossy().into_owned(), "@port_file@".to_owned()];
                let compression = options.compression.filter(|_| self.can_compress());
                // Its place is behind the seconds, and 0 of them is never.
                let seconds = seconds.or(compression.map(|_| 0));
                arguments.extend(seconds.map(|seconds| seconds.to_string()));
                arguments.extend(compression.map(|compression| compression.name().to_owned()));
                let modules = installed::directory().join(self.name()).join("node_modules");
                let modules = modules.to_string_lossy().into_owned();
                self.start_with_port_file(Path::new("node"), arguments, &[("NODE_PATH", modules)])
            }
            Self::Nchan => self.start_nchan(options),
            Self::Nats => self.start_nats(options),
        }
    }

    fn start_gateway(self, options: &StartOptions) -> Result<Running, StartError> {
        let listen = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut arguments = words(&listen);
        arguments.extend(["--shards".to_owned(), options.shards.to_string()]);
        arguments.extend(words(&["--log-level", "warn", "--port-file", "@port_file@"]));
        if let Some(heartbeat) = options.heartbeat {
            arguments
                .extend(["--ping-interval".to_owned(), format!("{}s", whole_seconds(heartbeat))]);
        }
        arguments.extend(options.compression.map(|it| format!("--compression={}", it.name())));
        arguments.extend_from_slice(&options.gateway_arguments);
        if !options.is_tls {
            return self.start_with_port_file(&options.gateway, arguments, &[]);
        }
        let directory = Directory::create(self.name()).map_err(|source| self.refused(source))?;
        let [certificate, key] = ["certificate", "key"].map(|name| directory.path().join(name));
        let signed = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]);
        let signed = signed.expect("an address is a good name, and a key can be made");
        for (path, pem) in
            [(&certificate, signed.cert.pem()), (&key, signed.signing_key.serialize_pem())]
        {
            std::fs::write(path, pem).map_err(|source| self.refused(source))?;
        }
        for (flag, path) in [("--tls-cert", &certificate), ("--tls-key", &key)] {
            arguments.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
        }
        let mut running = self.start_in(directory, &options.gateway, arguments, &[])?;
        running.certificate = Some(certificate);
        Ok(running)
    }

    /// Starts what writes the address on which it listens to `@port_file@`.
    fn start_with_port_file(
        self,
        program: &Path,
        arguments: Vec<String>,
        environment: &[(&str, String)],
    ) -> Result<Running, StartError> {
        let directory = Directory::create(self.name()).map_err(|source| self.refused(source))?;
        self.start_in(directory, program, arguments, environment)
    }

    /// The same, with its files in `directory`.
    fn start_in(
        self,
        directory: Directory,
        program: &Path,
        mut arguments: Vec<String>,
        environment: &[(&str, String)],
    ) -> Result<Running, StartError> {
        let port_file = directory.path().join("port");
        for word in &mut arguments {
            if word == "@port_file@" {
                *word = port_file.to_string_lossy().into_owned();
            }
        }
        let process = Process::start(directory, program, &arguments, environment)
            .map_err(|source| self.refused(source))?;
        let ports = self.wait_for(&process, || std::fs::read_to_string(&port_file).ok())?;
        let address = |key: &str| {
            let line = ports.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|address| address.parse::<SocketAddr>().ok())
        };
        let Some(listen) = address("listen=") else {
            let log = format!("its port file has no line \"listen=ADDRESS\": {ports}");
            return Err(StartError::Silent { peer: self, log });
        };
        Ok(self.running(process, listen, address("admin_listen=")))
    }

    fn start_nchan(self, options: &StartOptions) -> Result<Running, StartError> {
        let mut tried = 1;
        loop {
            match self.start_nchan_on_a_port(options) {
                // Between our look at a port and nginx's, another process may take it.
                Err(StartError::Ended { log, .. })
                    if log.contains("Address already in use") && tried < PORTS_TRIED =>
                {
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    fn start_nchan_on_a_port(self, options: &StartOptions) -> Result<Running, StartError> {
        let refused = |source| self.refused(source);
        let directory = Directory::create(self.name()).map_err(refused)?;
        let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
        let address = unused.local_addr().map_err(refused)?;
        drop(unused);
        let configuration = fill(
            include_str!("../../peers/nchan/nginx.conf"),
            &[
                ("module", installed::nchan_module().to_string_lossy().into_owned()),
                ("workers", options.shards.to_string()),
                ("port", address.port().to_string()),
                ("ping_seconds", options.heartbeat.map_or(0, whole_seconds).to_string()),
            ],
        );
        let path = directory.path().join("nginx.conf");
        std::fs::write(&path, configuration).map_err(refused)?;
        let arguments = [
            "-e".to_owned(),
            "stderr".to_owned(),
            "-p".to_owned(),
            directory.path().to_string_lossy().into_owned(),
            "-c".to_owned(),
            path.to_string_lossy().into_owned(),
        ];
        let process =
            Process::start(directory, &installed::nginx(), &arguments, &[]).map_err(refused)?;
        self.wait_for(&process, || TcpStream::connect(address).ok())?;
        Ok(self.running(process, address, None))
    }

    fn start_nats(self, options: &StartOptions) -> Result<Running, StartError> {
        let refused = |source| self.refused(source);
        let directory = Directory::create(self.name()).map_err(refused)?;
        let ping_interval = options.heartbeat.unwrap_or(NATS_PING_INTERVAL);
        let configuration = fill(
            include_str!("../../peers/nats/nats.conf"),
            &[
                ("directory", directory.path().to_string_lossy().into_owned()),
                ("ping_seconds", whole_seconds(ping_interval).to_string()),
            ],
        );
        let path = directory.path().join("nats.conf");
        std::fs::write(&path, configuration).map_err(refused)?;
        let arguments = ["-c".to_owned(), path.to_string_lossy().into_owned()];
        // As many threads as the gateway has: with more, Go wakes the others up for every message.
        let environment = [("GOMAXPROCS", options.shards.to_string())];
        let process =
            Process::start(directory, &installed::nats_server(), &arguments, &environment)
                .map_err(refused)?;
        let ports_file = process.directory().join(format!("nats-server_{}.ports", process.id()));
        let address = self.wait_for(&process, || {
            // It is written in place; until it is whole it does not parse.
            let ports = std::fs::read(&ports_file).ok()?;
            let ports: serde_json::Value = serde_json::from_slice(&ports).ok()?;
            let url = ports["websocket"][0].as_str()?;
            url.strip_prefix("ws://")?.parse::<SocketAddr>().ok()
        })?;
        Ok(self.running(process, address, None))
    }

    /// Waits until `look` finds something.
    fn wait_for<T>(
        self,
        process: &Process,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, StartError> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            // Looking again without a pause would take the processor from who is looked for.
            if process.wait(Duration::from_millis(2)) {
                return Err(StartError::Ended { peer: self, log: process.log() });
            }
            if Instant::now() >= deadline {
                return Err(StartError::Silent { peer: self, log: process.log() });
            }
        }
    }

    fn running(self, process: Process, address: SocketAddr, api: Option<SocketAddr>) -> Running {
        let echo_path = match self {
            Self::Nchan | Self::Nats => "/echo/{connection}",
            Self::Gateway
            | Self::Floor
            | Self::Fastwebsockets
            | Self::Tungstenite
            | Self::UWebSockets
            | Self::Ws => "/echo",
        };
        Running {
            peer: self,
            pid: process.id(),
            address,
            certificate: None,
            dialect: self.dialect(),
            echo_path,
            channel_path: "/channels/{channel}",
            api,
            process,
        }
    }

    fn missing(self, missing: PathBuf) -> StartError {
        StartError::Missing { peer: self, missing, remedy: installed::remedy(self) }
    }

    fn refused(self, source: std::io::Error) -> StartError {
        StartError::System { peer: self, source }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no server of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no server \"{0}\"; there are {names}", names = Peer::ALL.map(Peer::name).join(", "))]
pub struct UnknownPeer(String);

impl FromStr for Peer {
    type Err = UnknownPeer;

    fn from_str(name: &str) -> Result<Self, UnknownPeer> {
        let found = Self::ALL.into_iter().find(|peer| peer.name() == name);
        found.ok_or_else(|| UnknownPeer(name.to_owned()))
    }
}

impl Running {
    /// The processes that serve: [`Running::pid`] and its children, as nginx's workers are.
    pub fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.pid];
        all.extend(process::children(self.pid));
        all
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Ends it at once, with SIGKILL, as a crash does.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// At least one: zero means never to several servers.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Puts values in for the words between @.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let put =
        |text: String, (word, value): &(&str, String)| text.replace(&format!("@{word}@"), value);
    values.iter().fold(template.to_owned(), put)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_as_it_is_written() {
        for peer in Peer::ALL {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
        let error = "nginx".parse::<Peer>().expect_err("it has no such name").to_string();
        assert!(error.contains("nginx") && error.contains("nchan"), "{error}");
    }

    #[test]
    fn templates_have_no_word_that_is_not_filled_in() {
        let words = ["module", "workers", "port", "ping_seconds", "directory"];
        let values = words.map(|word| (word, "1".to_owned()));
        for template in [
            include_str!("../../peers/nchan/nginx.conf"),
            include_str!("../../peers/nats/nats.conf"),
        ] {
            let filled = fill(template, &values);
            let settings = filled.lines().filter(|line| !line.trim_start().starts_with('#'));
            assert!(settings.into_iter().all(|line| !line.contains('@')), "{filled}");
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_named_with_the_remedy() {
        let options = StartOptions {
            gateway: PathBuf::from("/nowhere/wsgate"),
            shards: 1,
            compression: None,
            is_tls: false,
            gateway_arguments: Vec::new(),
            heartbeat: None,
        };
        let error = Peer::Gateway.start(&options).expect_err("there is none").to_string();
        assert!(error.contains("/nowhere/wsgate"), "{error}");
        assert!(error.contains("cargo build --release"), "{error}");
    }

    #[test]
    fn versions_are_those_of_the_lockfiles() {
        let versions = list().into_iter().map(|listed| (listed.peer, listed.version));
        for (peer, version) in versions {
            let locked = !matches!(peer, Peer::Nchan | Peer::Nats);
            assert!(version.is_some() || !locked, "{peer}");
        }
    }
}
