//! One running gateway.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use http::Method;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use tokio::task::JoinSet;
use wsgate::broker::Broker;
use wsgate::broker::memory::{self, Bounds, MemoryBroker};
use wsgate::pubsub::{ChannelName, ShardId};

use crate::support::admin::{self, Answer, Requests};
use crate::support::client::Client;
use crate::support::freeze::Frozen;
use crate::support::metrics::Metrics;
use crate::support::place::Place;
use crate::support::raw::RawClient;
use crate::support::until;

/// The binary under test, serving on free ports. It is killed when this is dropped.
pub(crate) struct Gateway {
    process: Child,
    /// Holds its port file and its log.
    folder: Place,
    /// Where clients connect.
    pub(crate) listen: SocketAddr,
    /// Where operators and backends connect.
    pub(crate) admin_listen: SocketAddr,
    /// Its port file.
    pub(crate) ports: String,
}

impl Gateway {
    /// Starts `wsgate serve` with these flags and waits until it serves.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::start_binary(env!("CARGO_BIN_EXE_wsgate"), flags).await
    }

    /// The same with another build of it.
    pub(crate) async fn start_binary(binary: &str, flags: &[&str]) -> Self {
        Self::start_by(quiet(binary), flags).await
    }

    /// The same with these variables in its environment, where nothing else is.
    pub(crate) async fn start_with_variables(variables: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut command = quiet(env!("CARGO_BIN_EXE_wsgate"));
        command.envs(variables.iter().copied());
        Self::start_by(command, flags).await
    }

    /// Starts it with these listening sockets, as a service manager does: for clients, and for
    /// operators.
    pub(crate) async fn start_with_sockets(
        listen: &TcpListener,
        admin_listen: &TcpListener,
        flags: &[&str],
    ) -> Self {
        let mut shell = quiet("sh");
        let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2 \
                      LISTEN_FDNAMES=listen:admin; exec \"$0\" \"$@\"";
        shell.args(["-c", script, env!("CARGO_BIN_EXE_wsgate")]);
        let passed = |socket: &TcpListener| {
            OwnedFd::from(socket.try_clone().expect("there are descriptors left"))
        };
        shell.stdin(passed(listen)).stdout(passed(admin_listen));
        Self::start_by(shell, flags).await
    }

    /// Starts it where another one was.
    pub(crate) async fn start_at(listen: &str, flags: &[&str]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_wsgate"));
        Self::start_listening(command, listen, flags).await
    }

    /// Starts it where a process may have `open_files` descriptors, and no more.
    pub(crate) async fn start_with_open_files(open_files: u32, flags: &[&str]) -> Self {
        let mut shell = quiet("sh");
        let script = format!("ulimit -n {open_files}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_wsgate")]);
        Self::start_by(shell, flags).await
    }

    async fn start_by(command: Command, flags: &[&str]) -> Self {
        Self::start_listening(command, "127.0.0.1:0", flags).await
    }

    async fn start_listening(mut command: Command, listen: &str, flags: &[&str]) -> Self {
        let folder = Place::folder("gateway");
        let log = File::create(folder.join("log")).expect("the folder is ours");
        let port_file = folder.join("ports");
        command
            .arg("serve")
            .args(["--listen", listen, "--admin-listen", "127.0.0.1:0"])
            .arg("--port-file")
            .arg(&port_file)
            .args(flags)
            .stderr(log);
        let process = command.spawn().expect("wsgate starts");
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listen, admin_listen) = (unknown, unknown);
        let mut gateway = Self { process, folder, listen, admin_listen, ports: String::new() };
        let ports = until("the port file", async || {
            let ended = gateway.process.try_wait().expect("it is our child");
            assert_eq!(ended, None, "the gateway ended instead of serving");
            fs::read_to_string(&port_file).ok()
        });
        let ports = ports.await;
        let address = |name: &str| -> SocketAddr {
            let line = ports.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.expect("the port file names both listeners").parse().expect("an address")
        };
        (gateway.listen, gateway.admin_listen) = (address("listen"), address("admin_listen"));
        gateway.ports = ports;
        gateway
    }

    /// A WebSocket client, once its handshake is over.
    pub(crate) async fn connect(&self, path: &str) -> Client {
        Client::connect(self.listen, path).await
    }

    /// A WebSocket client that the given shard serves.
    pub(crate) async fn connect_to_shard(&self, shard: usize, path: &str) -> Client {
        Client::connect_to_shard(self.listen, shard, path).await
    }

    /// A client for bytes as given, once its handshake is over.
    pub(crate) async fn open_raw(&self, path: &str) -> RawClient {
        let mut client = RawClient::connect(self.listen).await;
        client.upgrade(path).await;
        client
    }

    /// A client for bytes as given that the given shard serves; see [`Gateway::connect_to_shard`].
    pub(crate) async fn open_raw_on_shard(&self, shard: usize, path: &str) -> RawClient {
        let mut others = Vec::new();
        for _ in 0..200 {
            let mut client = RawClient::connect(self.listen).await;
            if shard_of(&client.upgrade(path).await) == shard {
                return client;
            }
            others.push(client);
        }
        panic!("of 200 connections none was served by shard {shard}");
    }

    /// A client for bytes as given that takes little when it does not read, once its handshake is
    /// over.
    pub(crate) async fn open_stalled(&self, path: &str) -> RawClient {
        let mut client = RawClient::connect_with_receive_buffer(self.listen, 4096).await;
        client.upgrade(path).await;
        client
    }

    /// The same where neither end's kernel has room for much, so that a few messages are too many.
    pub(crate) async fn open_narrow(&self, path: &str) -> RawClient {
        let mut client = RawClient::connect_with_little_room(self.listen).await;
        client.upgrade(path).await;
        client
    }

    /// As [`Gateway::open_narrow`], served by the given shard; see [`Gateway::connect_to_shard`].
    pub(crate) async fn open_narrow_on_shard(&self, shard: usize, path: &str) -> RawClient {
        let mut others = Vec::new();
        for _ in 0..200 {
            let mut client = RawClient::connect_with_little_room(self.listen).await;
            if shard_of(&client.upgrade(path).await) == shard {
                return client;
            }
            others.push(client);
        }
        panic!("of 200 connections none was served by shard {shard}");
    }

    /// `count` clients for bytes as given, once their handshakes are over.
    pub(crate) async fn open_many_raw(&self, path: &str, count: usize) -> Vec<RawClient> {
        let mut clients = Vec::with_capacity(count);
        while clients.len() < count {
            // As many handshakes at a time as do not fill the backlog of a listener.
            let together = (count - clients.len()).min(32);
            let mut opening = JoinSet::new();
            for _ in 0..together {
                let (listen, path) = (self.listen, path.to_owned());
                opening.spawn(async move {
                    let mut client = RawClient::connect(listen).await;
                    client.upgrade(&path).await;
                    client
                });
            }
            clients.extend(opening.join_all().await);
        }
        clients
    }

    /// GET `path` from the admin port.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        admin::ask(self.admin_listen, Method::GET, path, String::new()).await
    }

    /// Calls a method of the API and returns its result.
    pub(crate) async fn call(&self, method: &str, parameters: Value) -> Value {
        let path = format!("/api/{method}");
        let body = parameters.to_string();
        let answer = admin::ask(self.admin_listen, Method::POST, &path, body).await.json();
        answer.get("result").unwrap_or_else(|| panic!("{method}: {answer}")).clone()
    }

    /// A connection to the admin port for many requests.
    pub(crate) async fn requests(&self) -> Requests {
        Requests::connect(self.admin_listen).await
    }

    /// What Prometheus would see now.
    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").await.body)
    }

    /// Waits until the sum of the series of `name` with these labels is `expected`.
    pub(crate) async fn until_metric(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        let mut last = f64::NAN;
        let what = format!("{name} {labels:?} to be {expected}");
        let seen = async || {
            last = self.metrics().await.sum(name, labels);
            (last == expected).then_some(())
        };
        let result = tokio::time::timeout(crate::support::PATIENCE, until(&what, seen)).await;
        assert!(result.is_ok(), "waited in vain for {what}; it is {last}");
    }

    /// Waits until it has no more descriptors, connections and memory than at a scrape from `before`, but
    /// for memory that is allocated once. Asks on a connection that was there then.
    pub(crate) async fn until_back_at(&self, before: &Metrics, requests: &mut Requests) {
        const ONCE_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
        let allowed = [
            ("process_open_fds", 0.0),
            ("wsgate_connections", 0.0),
            ("process_resident_memory_bytes", ONCE_BYTES),
        ];
        let mut grown = [f64::NAN; 3];
        let is_back = async || {
            let now = requests.scrape().await;
            grown = allowed.map(|(name, _)| now.sum(name, &[]) - before.sum(name, &[]));
            let is_within = |(grown, (_, most)): (&f64, &(_, f64))| grown <= most;
            grown.iter().zip(&allowed).all(is_within).then_some(())
        };
        let result =
            tokio::time::timeout(crate::support::PATIENCE, until("all to be back", is_back)).await;
        let names = allowed.map(|(name, _)| name);
        println!("{names:?} have grown by {grown:?}");
        assert!(result.is_ok(), "{names:?} have grown by {grown:?}");
    }

    /// Waits until the sum of all series of `name` is more than `least`.
    pub(crate) async fn until_metric_above(&self, name: &str, least: f64) {
        let what = format!("more than {least} of {name}");
        let seen = async || (self.metrics().await.sum(name, &[]) > least).then_some(());
        until(&what, seen).await;
    }

    /// Has one shard stand still. Its sockets, its mailbox and the other threads go on without it.
    pub(crate) fn freeze(&self, shard: usize) -> Frozen<'_> {
        Frozen::thread(self, self.process.id(), &format!("shard-{shard}"))
    }

    /// Memory that is its own: neither code nor pages of files, and none of the kernel's, such as what
    /// sockets hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect(&status);
        kibibytes.parse::<usize>().expect("a number") * 1_024
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).expect("the log is there from the start")
    }

    /// Waits until it has logged `text`.
    pub(crate) async fn until_logged(&self, text: &str) {
        let what = format!("{text:?} in the log");
        until(&what, async || self.log().contains(text).then_some(())).await;
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// The numbers of the descriptors that it has open.
    pub(crate) fn descriptors(&self) -> BTreeSet<u64> {
        let path = format!("/proc/{}/fd", self.process.id());
        let numbers = fs::read_dir(path).expect("the gateway runs").filter_map(|entry| {
            // What is closed while this looks is not open.
            entry.ok()?.file_name().to_str()?.parse().ok()
        });
        numbers.collect()
    }

    /// Has it get no descriptor with a higher number than `most` - 1 from now on; those that it has
    /// it keeps.
    pub(crate) fn limit_open_files(&self, most: u64) {
        let process = Some(Pid::from_child(&self.process));
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // The hard limit stays, so that this can be taken back.
        let limit = Rlimit { current: Some(most), maximum };
        prlimit(process, Resource::Nofile, limit).expect("a process may limit its child");
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let process = &mut self.process;
        until("the end of the gateway", async || process.try_wait().expect("it is our child")).await
    }
}

/// A command with an empty environment that reads and writes nothing.
fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The first channel `{prefix}-{number}` whose home is shard `home` of `shards`.
pub(crate) fn channel_with_home(prefix: &str, home: usize, shards: u16) -> String {
    let (mut seats, _) = memory::connect(shards, Bounds { entries: 1, bytes: 1 });
    let broker = MemoryBroker::new(seats.remove(0), Arc::default());
    let is_at_home = |name: &String| {
        let name = ChannelName::new(name).expect("a short name");
        broker.home(&name) == ShardId::new(home as u16)
    };
    let mut names = (0..).map(|number| format!("{prefix}-{number}"));
    names.find(is_at_home).expect("a hash that spreads")
}

/// The shard that serves a connection with this id: the lower twelve bits of the third group of the
/// UUID.
pub(crate) fn shard_of(id: &str) -> usize {
    let group = id.split('-').nth(2).expect("a UUID has five groups");
    usize::from_str_radix(&group[1..], 16).expect("a UUID has hexadecimal digits")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.process.kill();
        _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- the gateway's log ----\n{}", self.log());
        }
    }
}
