//! Replacing a running gateway without a connection refused: it passes its listening sockets, and with
//! them whoever waits in their backlogs, to the process that follows it.
//!
//! Both sides speak over a Unix stream socket that only this user may use, in lines of JSON:
//!
//! ```text
//! successor                                  running gateway
//!    | {"wsgate_handover":1}              -->   |
//!    |   <-- {"wsgate_handover":1,"sockets":[{"setting":"listen","count":2},…]}
//!    |   <-- the sockets, by SCM_RIGHTS         |   still accepts
//!    | starts its shards on them                |
//!    | {"ready":true}                     -->   |
//!    |                     <-- {"leaving":true} |   accepts no more, and drains
//! ```
//!
//! Until the line `ready` nothing has changed for the running gateway, whatever becomes of the
//! other one. A number tells the version, and one that is not known is refused.
//!
//! - [`take_over`], [`Succession`]: the side of the successor.
//! - [`Office`]: the side of the running gateway.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

use crate::server::ServeError;
use crate::server::activation::{Inherited, Origin};
use crate::server::sockets::UnixPath;

/// Of what is said here.
const VERSION: u32 = 1;

/// Time for each line and for the sockets.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a successor waits for an answer. Longer than what somebody else who has connected, and says
/// nothing, can keep it from.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for a successor to start its shards. Longer than any start, since a running gateway serves on
/// meanwhile.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest line in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Most sockets that are taken. A gateway has one for each shard, and may have been given as many.
const MAX_SOCKETS: usize = 4_096;

/// Sockets in one message. The kernel takes 253 (`SCM_MAX_FD`).
const SOCKETS_PER_MESSAGE: usize = 64;

/// Times that a gateway is asked that was there and is gone before it answers: it has just been
/// followed by another one.
const ATTEMPTS: u32 = 5;

/// How long to leave it alone between two of them.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);

/// How long to leave the socket alone when accepting fails.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait for the one that is served.
const BACKLOG: i32 = 16;

/// Why a handover came to nothing.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The other side was gone, or too slow, or the system refused something.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side ended the conversation.
    #[error("the other process was gone")]
    Gone,
    /// The other side said something that is none of the lines above.
    #[error("the other process said something else: {0}")]
    Nonsense(String),
    /// Another user.
    #[error("user {0} asked, who is another one")]
    Stranger(u32),
    /// The other side is of another time.
    #[error("the other process speaks version {0}; this one speaks {VERSION}")]
    Version(u32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    wsgate_handover: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    wsgate_handover: u32,
    sockets: Vec<Offered>,
}

/// Sockets of one setting. They come in this order.
#[derive(Debug, Serialize, Deserialize)]
struct Offered {
    setting: String,
    count: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    ready: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Leaving {
    leaving: bool,
}

fn to_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("names and numbers");
    line.push(b'\n');
    line
}

fn from_line<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, HandoverError> {
    serde_json::from_slice(line).map_err(|error| HandoverError::Nonsense(error.to_string()))
}

/// A gateway that has passed its sockets and waits for this process to be ready.
#[derive(Debug)]
pub(super) struct Succession {
    stream: StdUnixStream,
}

/// Asks the gateway that runs behind `path` for its sockets. `None`: nobody answers there, so this
/// process is the first.
///
/// # Errors
///
/// Somebody is there and does not hand over.
pub(super) fn take_over(path: &Path) -> Result<Option<(Succession, Vec<Inherited>)>, ServeError> {
    let failed = |source| ServeError::Handover { path: path.to_owned(), source };
    for attempt in 1..=ATTEMPTS {
        let stream = match StdUnixStream::connect(path) {
            Ok(stream) => stream,
            // One of a gateway that has ended without taking it away, or none.
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused]
                    .contains(&error.kind()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error.into())),
        };
        match ask(stream) {
            Ok(taken) => return Ok(Some(taken)),
            Err(HandoverError::Gone) if attempt < ATTEMPTS => thread::sleep(ATTEMPT_PAUSE),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(HandoverError::Gone))
}

fn ask(mut stream: StdUnixStream) -> Result<(Succession, Vec<Inherited>), HandoverError> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(LINE_TIMEOUT))?;
    stream.write_all(&to_line(&Hello { wsgate_handover: VERSION })).map_err(gone)?;
    let line = read_line(&mut stream)?;
    let Hello { wsgate_handover: version } = from_line(&line)?;
    if version != VERSION {
        return Err(HandoverError::Version(version));
    }
    let offer: Offer = from_line(&line)?;
    let count = offer.sockets.iter().map(|offered| offered.count).fold(0, usize::saturating_add);
    if count > MAX_SOCKETS {
        return Err(HandoverError::Nonsense(format!("{count} sockets")));
    }
    let mut sockets = receive_sockets(&stream, count)?.into_iter();
    let inherited = offer.sockets.into_iter().map(|Offered { setting, count }| Inherited {
        setting,
        sockets: sockets.by_ref().take(count).collect(),
        from: Origin::Predecessor,
    });
    let inherited = inherited.collect();
    Ok((Succession { stream }, inherited))
}

/// The next line, without a byte of what comes behind it: that has sockets with it.
fn read_line(stream: &mut StdUnixStream) -> Result<Vec<u8>, HandoverError> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE_BYTES {
        let mut byte = [0];
        if stream.read(&mut byte).map_err(gone)? == 0 {
            return Err(HandoverError::Gone);
        }
        if byte == *b"\n" {
            return Ok(line);
        }
        line.extend(byte);
    }
    Err(HandoverError::Nonsense("a line without an end".to_owned()))
}

fn receive_sockets(stream: &StdUnixStream, count: usize) -> Result<Vec<OwnedFd>, HandoverError> {
    let mut sockets = Vec::new();
    while sockets.len() < count {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        let received = recvmsg(stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| gone(error.into()))?;
        if received.bytes == 0 {
            return Err(HandoverError::Gone);
        }
        let before = sockets.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        if sockets.len() == before || sockets.len() > count {
            return Err(HandoverError::Nonsense("another number of sockets".to_owned()));
        }
    }
    Ok(sockets)
}

/// What a socket says of a peer that has ended.
fn gone(error: io::Error) -> HandoverError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => HandoverError::Gone,
        _ => HandoverError::Io(error),
    }
}

impl Succession {
    /// Tells the other gateway that this one serves, and waits until that one leaves. Where it is gone,
    /// which its end or a drain of its own can bring about, its sockets are this one's all the same.
    ///
    /// # Errors
    ///
    /// It is there and does not leave: there would be two, so this one must not go on.
    pub(super) async fn ready(self, path: &Path) -> Result<(), ServeError> {
        let failed = |source| ServeError::Handover { path: path.to_owned(), source };
        let told = async {
            self.stream.set_nonblocking(true)?;
            let mut stream = UnixStream::from_std(self.stream)?;
            match write(&mut stream, &to_line(&Ready { ready: true })).await {
                // It may have said before that it stays.
                Ok(()) | Err(HandoverError::Gone) => {}
                Err(error) => return Err(error),
            }
            let Leaving { leaving } = from_line(&read(&mut stream, LINE_TIMEOUT).await?)?;
            if leaving { Ok(()) } else { Err(HandoverError::Nonsense("it stays".to_owned())) }
        };
        match told.await {
            Err(HandoverError::Gone) => {
                warn!("the gateway that ran before was gone before it was told to leave");
                Ok(())
            }
            told => told.map_err(failed),
        }
    }
}

/// A line, while there is one within `limit`.
async fn read(stream: &mut UnixStream, limit: Duration) -> Result<Vec<u8>, HandoverError> {
    let line = async {
        let mut line = Vec::new();
        while line.len() < MAX_LINE_BYTES {
            match stream.read_u8().await {
                Ok(b'\n') => return Ok(line),
                Ok(byte) => line.push(byte),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(HandoverError::Gone);
                }
                Err(error) => return Err(gone(error)),
            }
        }
        Err(HandoverError::Nonsense("a line without an end".to_owned()))
    };
    tokio::time::timeout(limit, line).await.unwrap_or_else(|_| Err(too_slow()))
}

async fn write(stream: &mut UnixStream, line: &[u8]) -> Result<(), HandoverError> {
    let written = tokio::time::timeout(LINE_TIMEOUT, stream.write_all(line)).await;
    written.map_err(|_| too_slow())?.map_err(gone)
}

fn too_slow() -> HandoverError {
    HandoverError::Io(io::ErrorKind::TimedOut.into())
}

/// Where a running gateway hands over.
pub(super) struct Office {
    /// A successor puts its own socket in this place, which stays there.
    path: UnixPath,
    listener: UnixListener,
    /// By setting; another descriptor of every socket that a shard or the admin listener has.
    sockets: Vec<(&'static str, Vec<OwnedFd>)>,
    /// Somebody has been passed the sockets, and is not known to have failed.
    has_successor: bool,
}

impl Office {
    /// Opens it, in the place of one that nobody answers at any more.
    ///
    /// # Errors
    ///
    /// The socket cannot be made there.
    pub(super) fn open(
        path: &Path,
        sockets: Vec<(&'static str, Vec<OwnedFd>)>,
    ) -> Result<Self, ServeError> {
        let failed = |source| ServeError::HandoverSocket { path: path.to_owned(), source };
        let listener = listen(path).and_then(UnixListener::from_std).map_err(failed)?;
        let path = UnixPath::new(path).map_err(failed)?;
        Ok(Self { path, listener, sockets, has_successor: false })
    }

    /// Resolves when another process has taken over and is told that this one leaves. Whatever else
    /// comes here changes nothing.
    pub(super) async fn succeeded(&mut self) {
        loop {
            let mut stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept at handover_socket for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.hand_over(&mut stream).await {
                Ok(()) => return,
                Err(error) => warn!("handover came to nothing; serving on: {error}"),
            }
            if std::mem::take(&mut self.has_successor) {
                // It may be there still, and only be late. There must not be two.
                _ = write(&mut stream, &to_line(&Leaving { leaving: false })).await;
            }
        }
    }

    /// Closes it. Returns whether another process listens on these sockets now, or is about to; then what
    /// is at the path is that one's, or will be.
    pub(super) fn close(mut self) -> bool {
        if self.has_successor {
            self.path.leave();
        }
        self.has_successor
    }

    async fn hand_over(&mut self, stream: &mut UnixStream) -> Result<(), HandoverError> {
        let user = socket_peercred(&*stream).map_err(io::Error::from)?.uid;
        if user != geteuid() {
            return Err(HandoverError::Stranger(user.as_raw()));
        }
        let Hello { wsgate_handover: version } = from_line(&read(stream, LINE_TIMEOUT).await?)?;
        let offered = self.sockets.iter().map(|(setting, sockets)| Offered {
            setting: (*setting).to_owned(),
            count: sockets.len(),
        });
        let offer = Offer { wsgate_handover: VERSION, sockets: offered.collect() };
        write(stream, &to_line(&offer)).await?;
        if version != VERSION {
            return Err(HandoverError::Version(version));
        }
        info!("another process takes over; serving on until it is ready");
        self.has_successor = true;
        let sockets: Vec<_> = self.sockets.iter().flat_map(|(_, all)| all).collect();
        for some in sockets.chunks(SOCKETS_PER_MESSAGE) {
            let some: Vec<BorrowedFd<'_>> = some.iter().map(|socket| socket.as_fd()).collect();
            let sent = stream.async_io(Interest::WRITABLE, || send_sockets(stream, &some));
            let sent = tokio::time::timeout(LINE_TIMEOUT, sent).await;
            sent.map_err(|_| too_slow())?.map_err(gone)?;
        }
        let Ready { ready } = from_line(&read(stream, READY_TIMEOUT).await?)?;
        if !ready {
            return Err(HandoverError::Nonsense("it is not ready".to_owned()));
        }
        write(stream, &to_line(&Leaving { leaving: true })).await
    }
}

fn send_sockets(stream: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let has_room = control.push(SendAncillaryMessage::ScmRights(sockets));
    debug_assert!(has_room, "it is made for as many");
    sendmsg(stream, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A Unix socket that listens at `path`, for this user only. It takes the place of another socket there
/// at once, so that whoever looks finds the one or the other.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"));
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    // One of a process that had this number before. There is hardly ever one.
    _ = fs::remove_file(&unfinished);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&unfinished)?)?;
    let made = fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|()| socket.set_nonblocking(true))
        .and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = made {
        _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    Ok(OwnedFd::from(socket).into())
}
