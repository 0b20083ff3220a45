//! Listening sockets and the limit of open files.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{info, warn};

use crate::server::ServeError;
use crate::shard::{MAX_BACKLOG, MAX_REFUSED};

/// Descriptors kept back for everything that is not a connection: standard streams, listening
/// sockets, admin connections, files.
const RESERVED_DESCRIPTORS: u64 = 64 + super::admin::MAX_CONNECTIONS as u64;

/// Descriptors kept back for each shard: its epoll instance and the like, and the sockets that are
/// only told that there is no room.
const RESERVED_DESCRIPTORS_PER_SHARD: u64 = 16 + MAX_REFUSED as u64;

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
    let listener = listen(address, false).map_err(|source| explain(setting, address, source))?;
    let taken = listener.local_addr().map_err(ServeError::system("read a socket's address"))?;
    Ok((taken, listener))
}

fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    listen(address, true).map_err(|source| explain(setting, address, source))
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

fn explain(setting: &'static str, address: SocketAddr, source: io::Error) -> ServeError {
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse => "Stop the program that uses it, or choose another port",
        io::ErrorKind::PermissionDenied => {
            "Choose a port from 1024 on, or give the program CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "Choose an address of this machine, or 0.0.0.0 for all",
        _ => "Choose another address",
    };
    ServeError::Listen { setting, address, remedy, source }
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
