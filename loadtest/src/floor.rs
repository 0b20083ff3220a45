//! The floor: a server that does only what the kernel makes every server do. What a gateway costs is
//! told as a multiple of it.
//!
//! - `/echo`: one `recv`, XOR, one `send` back.
//! - `/channels/{name}`: one `recv`, XOR, one `send` to every connection of the channel, in the order
//!   in which they came, the publisher included.
//!
//! It never looks into a frame: what a client sent goes out as it came, masked. So its clients take
//! masked frames, send no Close and no Ping on a channel (everyone there would get it), and a frame
//! that is larger than [`RECEIVE_BYTES`] may have another publisher's bytes in its middle. The opening
//! handshake is answered as if every client sent the sample key of RFC 6455 section 1.3.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use rustix::process::{Resource, Rlimit};

/// The answer to an opening handshake with the key `dGhlIHNhbXBsZSBub25jZQ==`.
const SWITCHING_PROTOCOLS: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

const NOT_FOUND: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The most that one `recv` takes. There is one such buffer for all connections.
pub const RECEIVE_BYTES: usize = 256 * 1024;

/// A request head that is longer than this is not one of a load test.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most that waits for a client that does not read; then it is disconnected. On `/echo` nothing
/// is read from it meanwhile, so that only channels get there.
const MAX_UNSENT_BYTES: usize = 4 * 1024 * 1024;

/// More than any load test has connections; Linux cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Events taken at a time.
const EVENTS: usize = 1024;

/// The descriptors that are asked for: more than one address has ports.
const DESCRIPTORS: u64 = 1 << 17;

/// The epoll data of the listener; those of the connections are their indices.
const LISTENER: u64 = u64::MAX;

/// Why the floor does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not of this machine.
    #[error("the floor cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The port file could not be written.
    #[error("the floor cannot write its port file {}: {source}", path.display())]
    PortFile {
        /// Where it was to be.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The kernel has no more descriptors or memory for this process.
    #[error("the floor cannot accept another connection, see `ulimit -n`: {0}")]
    Accept(std::io::Error),
    /// The kernel refused what it has no reason to refuse.
    #[error("the floor cannot wait for events: {0}")]
    Events(std::io::Error),
}

/// Serves on `listen` until it fails. Port 0 takes a free port.
///
/// Writes `listen=ADDRESS` and a line break to `port_file` once it listens; who sees the file sees all
/// of it.
///
/// # Errors
///
/// It cannot listen, or it is out of descriptors. What a client does is no error.
pub fn serve(listen: SocketAddr, port_file: Option<&Path>) -> Result<Infallible, Error> {
    raise_descriptor_limit();
    let cannot_listen = |source| Error::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).map_err(cannot_listen)?;
    // A second time, since the standard library asks for a backlog of 128.
    rustix::net::listen(&listener, BACKLOG).map_err(|errno| cannot_listen(errno.into()))?;
    listener.set_nonblocking(true).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let mut floor = Floor::new(listener).map_err(Error::Events)?;
    if let Some(path) = port_file {
        write_port_file(path, address)
            .map_err(|source| Error::PortFile { path: path.to_owned(), source })?;
    }
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&floor.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Events(errno.into())),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept()?,
                index => floor.handle_event(index as usize, event.flags),
            }
        }
    }
}

/// Raises the limit of descriptors of this process and of those that it starts, as far as the kernel
/// lets it. Returns the limit.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    // The hard limit can be raised by root alone.
    for wanted in [DESCRIPTORS.max(most), most] {
        let raised = Rlimit { current: Some(wanted), maximum: Some(wanted) };
        if rustix::process::setrlimit(Resource::Nofile, raised).is_ok() {
            return wanted;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

fn write_port_file(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, format!("listen={address}\n"))?;
    std::fs::rename(partial, path)
}

/// All sockets, and who is on which channel.
struct Floor {
    epoll: OwnedFd,
    listener: TcpListener,
    /// By the index that is the connection's epoll data.
    connections: Vec<Option<Connection>>,
    /// Indices of `connections` that are `None`.
    free: Vec<u32>,
    /// Has no channel without members.
    channels: HashMap<String, Rc<Channel>>,
    buffer: Box<[u8]>,
}

struct Connection {
    socket: OwnedFd,
    role: Role,
    /// What the kernel did not take yet. While there is some, the socket is watched for
    /// writability.
    unsent: Vec<u8>,
}

enum Role {
    /// So much of the request head has come.
    Handshake(Vec<u8>),
    Echo,
    Channel(Rc<Channel>),
}

struct Channel {
    name: String,
    /// Indices of connections, oldest first.
    members: RefCell<Vec<u32>>,
}

/// Whether a connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

impl Floor {
    fn new(listener: TcpListener) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            channels: HashMap::new(),
            buffer: vec![0; RECEIVE_BYTES].into(),
        })
    }

    /// Takes all connections that wait.
    fn accept(&mut self) -> Result<(), Error> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                // The client has gone again.
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(errno) => return Err(Error::Accept(errno.into())),
            };
            if rustix::net::sockopt::set_tcp_nodelay(&socket, true).is_err() {
                continue;
            }
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() as u32 - 1
            });
            let data = epoll::EventData::new_u64(index.into());
            if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_err() {
                self.free.push(index);
                continue;
            }
            let role = Role::Handshake(Vec::new());
            self.connections[index as usize] =
                Some(Connection { socket, role, unsent: Vec::new() });
        }
    }

    /// What the kernel says about a connection, once in a turn: a connection is closed here alone, so
    /// that no later event of the same turn can mean another one at its index.
    fn handle_event(&mut self, index: usize, flags: epoll::EventFlags) {
        let mut next = Next::Keep;
        if flags.contains(epoll::EventFlags::OUT) {
            next = self.send_rest(index);
        }
        let readable = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if next == Next::Keep && flags.intersects(readable) {
            next = self.receive(index);
        }
        if next == Next::Close {
            self.close(index);
        }
    }

    fn receive(&mut self, index: usize) -> Next {
        let Some(connection) = &mut self.connections[index] else { return Next::Keep };
        let socket = &connection.socket;
        let bytes = match rustix::net::recv(socket, &mut *self.buffer, RecvFlags::empty()) {
            Ok((0, _)) => return Next::Close,
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Next::Keep,
            Err(_) => return Next::Close,
        };
        let received = &mut self.buffer[..bytes];
        match &mut connection.role {
            Role::Echo => {
                unmask(received);
                send(&self.epoll, index, connection, received)
            }
            Role::Channel(channel) => {
                unmask(received);
                let channel = Rc::clone(channel);
                for &member in channel.members.borrow().iter() {
                    // Who cannot be sent to has an event of its own that tells so.
                    if let Some(connection) = &mut self.connections[member as usize] {
                        _ = send(&self.epoll, member as usize, connection, &self.buffer[..bytes]);
                    }
                }
                Next::Keep
            }
            Role::Handshake(head) => {
                head.extend_from_slice(received);
                self.answer_handshake(index)
            }
        }
    }

    /// Answers when the request head is there. A client waits for the answer before it sends frames,
    /// so that nothing comes behind the head.
    fn answer_handshake(&mut self, index: usize) -> Next {
        let Some(connection) = &mut self.connections[index] else { return Next::Keep };
        let Role::Handshake(head) = &connection.role else { return Next::Keep };
        if !head.ends_with(b"\r\n\r\n") {
            return if head.len() > MAX_HEAD_BYTES { Next::Close } else { Next::Keep };
        }
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let path = String::from_utf8_lossy(path);
        connection.role = match path.strip_prefix("/channels/") {
            Some(name) => {
                let channel = self.channels.entry(name.to_owned()).or_insert_with(|| {
                    Rc::new(Channel { name: name.to_owned(), members: RefCell::default() })
                });
                channel.members.borrow_mut().push(index as u32);
                Role::Channel(Rc::clone(channel))
            }
            None if path == "/echo" => Role::Echo,
            None => {
                _ = send(&self.epoll, index, connection, NOT_FOUND);
                return Next::Close;
            }
        };
        send(&self.epoll, index, connection, SWITCHING_PROTOCOLS)
    }

    /// Sends on what the kernel did not take before.
    fn send_rest(&mut self, index: usize) -> Next {
        let Some(connection) = &mut self.connections[index] else { return Next::Keep };
        let unsent = std::mem::take(&mut connection.unsent);
        let next = send(&self.epoll, index, connection, &unsent);
        if next == Next::Keep && connection.unsent.is_empty() {
            watch(&self.epoll, index, connection, epoll::EventFlags::IN);
        }
        next
    }

    fn close(&mut self, index: usize) {
        // Dropping the socket takes it out of the epoll instance.
        let Some(connection) = self.connections[index].take() else { return };
        self.free.push(index as u32);
        if let Role::Channel(channel) = connection.role {
            let mut members = channel.members.borrow_mut();
            if let Some(place) = members.iter().position(|member| *member as usize == index) {
                members.remove(place);
            }
            if members.is_empty() {
                self.channels.remove(&channel.name);
            }
        }
    }
}

/// XOR over every byte, as a server takes the mask off. The key is zero, so that the frame with its
/// mask can go out again, and hidden, so that the compiler does not leave the work out.
fn unmask(bytes: &mut [u8]) {
    let key = black_box(0_u8);
    // The compiler makes vectors of it. Of `chunks_exact_mut(8)` it made a call of memmove for each
    // word: an echo of 16 KiB took 17 µs instead of 8.
    for byte in bytes {
        *byte ^= key;
    }
}

/// One `send`; what the kernel does not take is kept until it does.
#[inline]
fn send(epoll: &OwnedFd, index: usize, connection: &mut Connection, bytes: &[u8]) -> Next {
    if !connection.unsent.is_empty() {
        return keep(epoll, index, connection, bytes);
    }
    // Without NOSIGNAL it would be the Rust runtime alone that keeps SIGPIPE away.
    match rustix::net::send(&connection.socket, bytes, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == bytes.len() => Next::Keep,
        Ok(sent) => keep(epoll, index, connection, &bytes[sent..]),
        Err(Errno::AGAIN | Errno::INTR) => keep(epoll, index, connection, bytes),
        Err(_) => Next::Close,
    }
}

#[cold]
fn keep(epoll: &OwnedFd, index: usize, connection: &mut Connection, bytes: &[u8]) -> Next {
    if connection.unsent.len() + bytes.len() > MAX_UNSENT_BYTES {
        // Its next event says that it is at its end. It may be another than the one being handled.
        _ = rustix::net::shutdown(&connection.socket, Shutdown::Both);
        connection.unsent = Vec::new();
        watch(epoll, index, connection, epoll::EventFlags::IN);
        return Next::Keep;
    }
    if connection.unsent.is_empty() {
        // Who gets an echo of all it sends is not read from until it takes what is there.
        let flags = match connection.role {
            Role::Channel(_) => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Role::Echo | Role::Handshake(_) => epoll::EventFlags::OUT,
        };
        watch(epoll, index, connection, flags);
    }
    connection.unsent.extend_from_slice(bytes);
    Next::Keep
}

fn watch(epoll: &OwnedFd, index: usize, connection: &Connection, flags: epoll::EventFlags) {
    let data = epoll::EventData::new_u64(index as u64);
    epoll::modify(epoll, &connection.socket, data, flags)
        .expect("the socket was added when it was accepted");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_zeros_leaves_every_byte_as_it_was() {
        for length in 0..40 {
            let mut bytes: Vec<u8> = (0..length).collect();
            unmask(&mut bytes);
            assert_eq!(bytes, (0..length).collect::<Vec<u8>>());
        }
    }
}
