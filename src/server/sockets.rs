//! Listening sockets and the limit of open files.

use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tracing::{info, warn};

use crate::server::activation::{ADMIN_LISTEN, Inherited, Origin};
use crate::server::settings::ListenAddress;
use crate::server::{ServeError, activation};
use crate::shard::{Entrance, Listener, ListeningSocket, MAX_BACKLOG, MAX_REFUSED};

/// Who may connect to a Unix socket: its user and group. Put a proxy of another user into the group.
const UNIX_SOCKET_MODE: u32 = 0o660;

/// Descriptors kept back for everything that is not a connection: standard streams, listening
/// sockets, admin connections, files.
const RESERVED_DESCRIPTORS: u64 = 64 + super::admin::MAX_CONNECTIONS as u64;

/// Descriptors kept back for each shard: its epoll instance and the like, and the sockets that are
/// only told that there is no room.
const RESERVED_DESCRIPTORS_PER_SHARD: u64 = 16 + MAX_REFUSED as u64;

/// Every shard's listening sockets, and where they are.
pub(super) struct Listening {
    /// One list for each shard.
    pub(super) shards: Vec<Vec<Listener>>,
    /// Another descriptor of each socket by its setting, to be passed on.
    pub(super) shared: Vec<(&'static str, Vec<OwnedFd>)>,
    /// Paths that end with this process.
    pub(super) unix: Vec<UnixPath>,
}

impl Listening {
    pub(super) fn new(shards: u16) -> Self {
        let shards = (0..shards).map(|_| Vec::new()).collect();
        Self { shards, shared: Vec::new(), unix: Vec::new() }
    }

    /// Has every shard listen where `setting` says `wanted`, on sockets of `inherited` as far as there
    /// are such. Returns the addresses that were taken.
    ///
    /// The service manager has the last word on where that is. What it keeps open for others is not
    /// what the settings name, so nothing is opened beside it.
    pub(super) fn add(
        &mut self,
        setting: &'static str,
        wanted: &[ListenAddress],
        inherited: &mut Vec<Inherited>,
        entrance: &Entrance,
    ) -> Result<Vec<ListenAddress>, ServeError> {
        let mut opened = activation::take(inherited, setting, wanted)?;
        let is_managed = opened.iter().any(|one| one.from == Origin::Manager);
        let mut taken = Vec::new();
        for address in wanted {
            let found = opened.iter().position(|one| activation::agrees(&one.address, address));
            match found.map(|index| opened.remove(index)) {
                Some(found) => {
                    // The path ends with the last that listens there, but for the manager's.
                    if let (ListenAddress::Unix(path), Origin::Predecessor) = (address, found.from)
                    {
                        let failed = |source| explain(setting, address.clone(), source);
                        self.unix.push(UnixPath::of_another(path).map_err(failed)?);
                    }
                    self.place(setting, found.sockets, Some(found.from), entrance)?;
                    taken.push(found.address);
                }
                None if is_managed => {}
                None => taken.push(self.open(setting, address, entrance)?),
            }
        }
        for found in opened {
            self.place(setting, found.sockets, Some(found.from), entrance)?;
            taken.push(found.address);
        }
        Ok(taken)
    }

    /// Opens sockets for every shard. Returns `address` with the port that was taken.
    fn open(
        &mut self,
        setting: &'static str,
        address: &ListenAddress,
        entrance: &Entrance,
    ) -> Result<ListenAddress, ServeError> {
        let (taken, sockets) = match address {
            ListenAddress::Tcp(address) => {
                let (taken, sockets) = listen_each(setting, *address, self.shards.len() as u16)?;
                let sockets = sockets.into_iter().map(ListeningSocket::Tcp).collect();
                (ListenAddress::Tcp(taken), sockets)
            }
            ListenAddress::Unix(path) => {
                let failed = |source| explain(setting, address.clone(), source);
                let socket = listen_unix(path).map_err(failed)?;
                self.unix.push(UnixPath::new(path).map_err(failed)?);
                (address.clone(), vec![ListeningSocket::Unix(socket)])
            }
        };
        self.place(setting, sockets, None, entrance)?;
        Ok(taken)
    }

    /// Gives each shard at least one of `sockets`, which are open at one address, and every one of them
    /// to a shard, so that nobody waits in a backlog from which no one accepts. `from`: who has opened
    /// them, if not this process.
    fn place(
        &mut self,
        setting: &'static str,
        mut sockets: Vec<ListeningSocket>,
        from: Option<Origin>,
        entrance: &Entrance,
    ) -> Result<(), ServeError> {
        let shared = sockets.iter().map(|socket| socket.try_clone().map(OwnedFd::from));
        let failed = ServeError::system("share a listening socket");
        let mut shared = shared.collect::<io::Result<Vec<_>>>().map_err(&failed)?;
        let count = sockets.len();
        while sockets.len() < self.shards.len() {
            let known = &sockets[sockets.len() % count];
            // One more of the same address where those that are there allow it; else two shards accept
            // from one socket. Beside those of the manager there must not be another: the next process
            // would not have it, and who waits there when this one ends would be reset.
            let address = known.tcp_address().filter(|_| from != Some(Origin::Manager));
            let more = match address.map(|address| listen(address, true)) {
                Some(Ok(socket)) => {
                    let socket = ListeningSocket::Tcp(socket);
                    shared.push(socket.try_clone().map_err(&failed)?.into());
                    socket
                }
                Some(Err(_)) | None => known.try_clone().map_err(&failed)?,
            };
            sockets.push(more);
        }
        self.shared.push((setting, shared));
        let shards = self.shards.len();
        for (index, socket) in sockets.into_iter().enumerate() {
            self.shards[index % shards].push(Listener { socket, entrance: entrance.clone() });
        }
        Ok(())
    }
}

/// The path of a Unix socket that listens. Dropped, it is gone, if it is this process's.
#[derive(Debug)]
pub(super) struct UnixPath {
    path: PathBuf,
    /// Device and inode. A newer process may have put its own socket there.
    is: (u64, u64),
    is_ours: bool,
}

impl UnixPath {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let found = path.symlink_metadata()?;
        Ok(Self { path: path.to_owned(), is: (found.dev(), found.ino()), is_ours: true })
    }

    /// Of a socket that another process still listens at.
    fn of_another(path: &Path) -> io::Result<Self> {
        let mut path = Self::new(path)?;
        path.leave();
        Ok(path)
    }

    /// From now on it is this process's.
    pub(super) fn take_over(&mut self) {
        self.is_ours = true;
    }

    /// Leaves it to another process.
    pub(super) fn leave(&mut self) {
        self.is_ours = false;
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let found = self.path.symlink_metadata();
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.is) {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let address = SockAddr::unix(path)?;
    if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
        // One that nobody answers at is left over from a process that was killed.
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        probe.set_nonblocking(true)?;
        match probe.connect(&address) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Ok(()) | Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    // Before it listens: until then nobody can connect.
    std::fs::set_permissions(path, Permissions::from_mode(UNIX_SOCKET_MODE))?;
    socket.listen(MAX_BACKLOG.into())?;
    Ok(socket.into())
}

/// One listening socket for each of `count` shards on the same address, and the address with the
/// port that was taken.
pub(super) fn listen_each(
    setting: &'static str,
    address: SocketAddr,
    count: u16,
) -> Result<(SocketAddr, Vec<TcpListener>), ServeError> {
    // SO_REUSEPORT lets any program of this user share the port, and would give it half of the
    // clients. One socket without it finds out whether another program is there already.
    if address.port() != 0 {
        drop(listen_one(setting, address)?);
    }
    let first = bind(setting, address)?;
    let taken = first.local_addr().map_err(ServeError::system("read a socket's address"))?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(bind(setting, taken)?);
    }
    Ok((taken, listeners))
}

/// One listening socket, and the address with the port that was taken.
pub(super) fn listen_one(
    setting: &'static str,
    address: SocketAddr,
) -> Result<(SocketAddr, TcpListener), ServeError> {
    let failed = |source| explain(setting, ListenAddress::Tcp(address), source);
    let listener = listen(address, false).map_err(failed)?;
    let taken = listener.local_addr().map_err(ServeError::system("read a socket's address"))?;
    Ok((taken, listener))
}

fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    listen(address, true).map_err(|source| explain(setting, ListenAddress::Tcp(address), source))
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(MAX_BACKLOG.into())?;
    Ok(socket.into())
}

fn explain(setting: &'static str, address: ListenAddress, source: io::Error) -> ServeError {
    let is_unix = matches!(address, ListenAddress::Unix(_));
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse if is_unix => {
            "Stop the program that listens there, or choose another path; what is no socket is not \
             removed"
        }
        _ if is_unix => {
            "Choose a path of at most 107 bytes in a folder that exists and that this user may write to"
        }
        io::ErrorKind::AddrInUse => "Stop the program that uses it, or choose another port",
        io::ErrorKind::PermissionDenied => {
            "Choose a port from 1024 on, or give the program CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "Choose an address of this machine, or 0.0.0.0 for all",
        _ => "Choose another address",
    };
    ServeError::Listen { setting, address, remedy, source }
}

/// The socket of operators and backends, and its address: one that is inherited, or a new one.
pub(super) fn admin_listener(
    inherited: &mut Vec<Inherited>,
    wanted: SocketAddr,
) -> Result<(SocketAddr, TcpListener), ServeError> {
    let opened = activation::take(inherited, ADMIN_LISTEN, &[ListenAddress::Tcp(wanted)])?;
    let found =
        opened.into_iter().find_map(|one| match (one.address, one.sockets.into_iter().next()) {
            (ListenAddress::Tcp(address), Some(ListeningSocket::Tcp(socket))) => {
                Some((address, socket))
            }
            _ => None,
        });
    found.map_or_else(|| listen_one(ADMIN_LISTEN, wanted), Ok)
}

/// Raises the limit of open files to what is allowed at most, and returns it.
pub(super) fn raise_open_files_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let before = current.unwrap_or(u64::MAX);
    let wanted = maximum.unwrap_or(u64::MAX);
    if before < wanted {
        let raised = Rlimit { current: maximum, maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => {
                info!(before, now = wanted, "raised the limit of open files");
                return wanted;
            }
            Err(error) => warn!(%error, limit = before, "cannot raise the limit of open files"),
        }
    }
    info!(limit = before, "limit of open files");
    before
}

/// How many connections to serve: as many as are asked for, but no more than descriptors allow.
pub(super) fn max_connections(asked_for: Option<usize>, open_files: u64, shards: u16) -> usize {
    let reserved = RESERVED_DESCRIPTORS + RESERVED_DESCRIPTORS_PER_SHARD * u64::from(shards);
    // A limit that leaves nothing still serves somebody, and says so below.
    let possible =
        usize::try_from(open_files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(1);
    match asked_for {
        Some(asked_for) if asked_for > possible => {
            warn!(
                max_connections = asked_for,
                open_files,
                reserved,
                "max_connections is lowered to {possible}, for more there are no descriptors; raise \
                 the hard limit of open files (LimitNOFILE= in systemd, ulimit -Hn)"
            );
            possible
        }
        Some(asked_for) => asked_for,
        None => possible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_bound_the_connections_less_a_reserve() {
        let most = max_connections(None, 20_000, 2);
        assert!((19_000..20_000).contains(&most), "{most}");
        assert_eq!(max_connections(Some(100), 20_000, 2), 100);
        assert_eq!(max_connections(Some(1_000_000), 20_000, 2), most);
        assert_eq!(max_connections(None, 10, 2), 1);
    }

    #[test]
    fn port_zero_takes_one_port_for_all_shards() {
        let (taken, listeners) = listen_each("listen", "127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_ne!(taken.port(), 0);
        for listener in listeners {
            assert_eq!(listener.local_addr().unwrap(), taken);
        }
    }

    #[test]
    fn second_gateway_on_the_same_address_is_refused() {
        let (taken, _listeners) = listen_each("listen", "127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert!(matches!(listen_each("listen", taken, 2), Err(ServeError::Listen { .. })));
    }

    #[test]
    fn unix_socket_that_was_left_over_is_replaced_and_one_in_use_is_not() {
        let path = std::env::temp_dir().join(format!("wsgate-{}.sock", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let address = ListenAddress::Unix(path.clone());
        let mut listening = Listening::new(2);
        let entrance = Entrance::default();
        let add = |listening: &mut Listening| {
            listening.add("listen", std::slice::from_ref(&address), &mut Vec::new(), &entrance)
        };
        assert_eq!(add(&mut listening).unwrap(), std::slice::from_ref(&address));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, UNIX_SOCKET_MODE);
        let error = add(&mut Listening::new(1)).unwrap_err().to_string();
        let begin = format!("listen is {address} and cannot be listened on: ");
        assert!(error.starts_with(&begin) && error.contains("Stop the program"), "{error}");
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn every_shard_gets_an_inherited_socket_and_every_one_of_them_a_shard() {
        for (count, shards, expected) in
            [(3, 2, vec![2, 1]), (2, 2, vec![1, 1]), (1, 3, vec![1, 1, 1])]
        {
            // A socket without SO_REUSEPORT, so that it has to be shared.
            let first = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = ListenAddress::Tcp(first.local_addr().unwrap());
            let sockets = (0..count).map(|_| first.try_clone().unwrap().into()).collect();
            let setting = "listen".to_owned();
            let mut inherited = vec![Inherited { setting, sockets, from: Origin::Predecessor }];
            let mut listening = Listening::new(shards);
            let entrance = Entrance::default();
            let taken = listening
                .add("listen", std::slice::from_ref(&address), &mut inherited, &entrance)
                .unwrap();
            assert_eq!(taken, [address]);
            assert_eq!(listening.shards.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(listening.shared[0].1.len(), count);
        }
    }

    #[test]
    fn nothing_is_opened_beside_what_the_service_manager_passes() {
        let passed = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ListenAddress::Tcp(passed.local_addr().unwrap());
        let setting = "listen".to_owned();
        let sockets = vec![passed.into()];
        let mut inherited = vec![Inherited { setting, sockets, from: Origin::Manager }];
        let wanted = ["127.0.0.2:0", "127.0.0.3:0"]
            .map(|address| ListenAddress::Tcp(address.parse().unwrap()));
        let entrance = Entrance::default();
        let taken = Listening::new(1).add("listen", &wanted, &mut inherited, &entrance).unwrap();
        assert_eq!(taken, [address]);
    }

    #[test]
    fn address_in_use_names_the_setting_its_value_and_the_remedy() {
        let (taken, _listener) =
            listen_one("admin_listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        for again in
            [listen_one("admin_listen", taken).err(), listen_each("listen", taken, 1).err()]
        {
            assert!(matches!(again, Some(ServeError::Listen { .. })), "{again:?}");
        }
        let error = listen_one("admin_listen", taken).unwrap_err().to_string();
        assert!(error.starts_with(&format!("admin_listen is {taken} and cannot")), "{error}");
        assert!(error.ends_with("or choose another port"), "{error}");
    }
}
