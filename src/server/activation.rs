//! Listening sockets that are open before this process: from the service manager, by the rules of
//! `sd_listen_fds(3)`, or from the gateway that ran before (`handover`).
#![expect(unsafe_code, reason = "a descriptor is known by its number only, argued below")]

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use tracing::warn;

use crate::server::ServeError;
use crate::server::settings::ListenAddress;
use crate::shard::ListeningSocket;

/// What the setting of clients' addresses is called, as the name of a passed socket.
pub(super) const LISTEN: &str = "listen";

/// What that of addresses without TLS in any case is called. systemd's units may say `plain`.
pub(super) const PLAIN_LISTEN: &str = "plain_listen";

/// What that of the admin address is called. systemd's units may say `admin`.
pub(super) const ADMIN_LISTEN: &str = "admin_listen";

/// Listening sockets of one setting that others have opened.
#[derive(Debug)]
pub(super) struct Inherited {
    /// [`LISTEN`], [`PLAIN_LISTEN`] or [`ADMIN_LISTEN`]; others are closed.
    pub(super) setting: String,
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) from: Origin,
}

/// Who has opened a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The service manager: what it passes counts for more than the settings.
    Manager,
    /// A gateway that this one follows: an address that the settings do not name any more is left to
    /// end with it.
    Predecessor,
}

/// The sockets that the service manager has passed, if any. To be called once.
///
/// # Errors
///
/// The variables that tell of them make no sense.
pub(super) fn passed() -> Result<Vec<Inherited>, ServeError> {
    let passed = sd_notify::listen_fds_with_names()
        .map_err(ServeError::system("use the sockets that the service manager passes"))?;
    let mut inherited: Vec<Inherited> = Vec::new();
    for (index, (descriptor, name)) in passed.enumerate() {
        // SAFETY: by the protocol descriptors from 3 on, as many as LISTEN_FDS says, are open and this
        // process's own to use when LISTEN_PID is this process, which was checked. They were open
        // before `main`, so nothing here owns one of these numbers, and this is called once.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let Some(setting) = setting_of(&name, index) else {
            warn!(name, "a passed socket has a name that is none of ours; it is closed");
            continue;
        };
        match inherited.iter_mut().find(|known| known.setting == setting) {
            Some(known) => known.sockets.push(socket),
            None => inherited.push(Inherited {
                setting: setting.to_owned(),
                sockets: vec![socket],
                from: Origin::Manager,
            }),
        }
    }
    Ok(inherited)
}

/// Which setting a socket called `name` stands for. Where the manager says nothing of names, or those
/// of its socket units, the first is for clients and the second for operators.
fn setting_of(name: &str, index: usize) -> Option<&'static str> {
    match (name, index) {
        ("listen", _) => Some(LISTEN),
        ("plain" | "plain_listen" | "plain-listen", _) => Some(PLAIN_LISTEN),
        ("admin" | "admin_listen" | "admin-listen", _) => Some(ADMIN_LISTEN),
        ("unknown", 0) => Some(LISTEN),
        ("unknown", 1) => Some(ADMIN_LISTEN),
        (name, 0) if name.ends_with(".socket") => Some(LISTEN),
        (name, 1) if name.ends_with(".socket") => Some(ADMIN_LISTEN),
        _ => None,
    }
}

/// Sockets that are open at one address.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) address: ListenAddress,
    /// At least one.
    pub(super) sockets: Vec<ListeningSocket>,
    pub(super) from: Origin,
}

/// Takes what is inherited for `setting` out of `inherited`, as far as it can be used where the settings
/// say `wanted`.
///
/// # Errors
///
/// The service manager passed something that is no socket that listens.
pub(super) fn take(
    inherited: &mut Vec<Inherited>,
    setting: &'static str,
    wanted: &[ListenAddress],
) -> Result<Vec<Opened>, ServeError> {
    let mut opened: Vec<Opened> = Vec::new();
    for Inherited { sockets, from, .. } in
        inherited.extract_if(.., |inherited| inherited.setting == setting)
    {
        for socket in sockets {
            let unusable = |problem| ServeError::PassedSocket { setting, problem };
            let (address, socket) = listening(socket).map_err(unusable)?;
            if let Some(known) = opened.iter_mut().find(|known| known.address == address) {
                known.sockets.push(socket);
                continue;
            }
            match from {
                Origin::Predecessor if !wanted.iter().any(|wanted| agrees(&address, wanted)) => {
                    warn!(%address, "{setting} names another address now; nobody listens here any more");
                    continue;
                }
                Origin::Manager if !wanted.iter().any(|wanted| serves(&address, wanted)) => {
                    warn!(%address, "{setting} names another address, but the service manager passes this");
                }
                Origin::Predecessor | Origin::Manager => {}
            }
            opened.push(Opened { address, sockets: vec![socket], from });
        }
    }
    Ok(opened)
}

/// Whether a socket at `address` is one that `wanted` asks for.
pub(super) fn agrees(address: &ListenAddress, wanted: &ListenAddress) -> bool {
    match (address, wanted) {
        (ListenAddress::Tcp(address), ListenAddress::Tcp(wanted)) => {
            address.ip() == wanted.ip() && (wanted.port() == 0 || address.port() == wanted.port())
        }
        (ListenAddress::Unix(path), ListenAddress::Unix(wanted)) => path == wanted,
        (ListenAddress::Tcp(_), ListenAddress::Unix(_))
        | (ListenAddress::Unix(_), ListenAddress::Tcp(_)) => false,
    }
}

/// Whether who comes to `wanted` comes to a socket at `address`. All of IPv6 is all of IPv4, too, unless the
/// service manager was told otherwise.
fn serves(address: &ListenAddress, wanted: &ListenAddress) -> bool {
    match (address, wanted) {
        (ListenAddress::Tcp(address), ListenAddress::Tcp(wanted))
            if address.ip() == Ipv6Addr::UNSPECIFIED && wanted.ip() == Ipv4Addr::UNSPECIFIED =>
        {
            address.port() == wanted.port()
        }
        _ => agrees(address, wanted),
    }
}

/// `socket` as what it has to be.
fn listening(socket: OwnedFd) -> Result<(ListenAddress, ListeningSocket), &'static str> {
    const NO_SOCKET: &str = "it is no socket";
    const BLOCKING: &str = "it cannot be made non-blocking";
    let domain = socket_domain(&socket).map_err(|_| NO_SOCKET)?;
    if !socket_acceptconn(&socket).map_err(|_| NO_SOCKET)? {
        return Err("it does not listen");
    }
    if domain == AddressFamily::UNIX {
        let socket = UnixListener::from(socket);
        socket.set_nonblocking(true).map_err(|_| BLOCKING)?;
        let address = socket.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        let path = path.ok_or("it is a Unix socket without a path")?;
        return Ok((ListenAddress::Unix(path.to_owned()), ListeningSocket::Unix(socket)));
    }
    if ![AddressFamily::INET, AddressFamily::INET6].contains(&domain) {
        return Err("it is neither a TCP nor a Unix socket");
    }
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().map_err(|_| "it has no address")?;
    // Accepted sockets inherit the second.
    let set = listener
        .set_nonblocking(true)
        .and_then(|()| socket2::SockRef::from(&listener).set_tcp_nodelay(true));
    set.map_err(|_| BLOCKING)?;
    Ok((ListenAddress::Tcp(address), ListeningSocket::Tcp(listener)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(from: Origin, addresses: &[&str]) -> (Vec<ListenAddress>, Vec<Inherited>) {
        let sockets = addresses.iter().map(|address| TcpListener::bind(address).unwrap());
        let (addresses, sockets) = sockets
            .map(|socket| (ListenAddress::Tcp(socket.local_addr().unwrap()), OwnedFd::from(socket)))
            .unzip();
        (addresses, vec![Inherited { setting: LISTEN.to_owned(), sockets, from }])
    }

    fn tcp(address: &str) -> ListenAddress {
        ListenAddress::Tcp(address.parse().unwrap())
    }

    #[test]
    fn names_and_places_tell_what_a_socket_is_for() {
        for (name, index, setting) in [
            ("listen", 3, Some(LISTEN)),
            ("plain", 1, Some(PLAIN_LISTEN)),
            ("admin", 0, Some(ADMIN_LISTEN)),
            ("unknown", 0, Some(LISTEN)),
            ("unknown", 1, Some(ADMIN_LISTEN)),
            ("unknown", 2, None),
            ("wsgate.socket", 0, Some(LISTEN)),
            ("web", 0, None),
        ] {
            assert_eq!(setting_of(name, index), setting, "{name} {index}");
        }
    }

    #[test]
    fn managers_socket_counts_for_more_than_the_setting_and_a_predecessors_for_less() {
        let wanted = [tcp("127.0.0.1:1")];
        let (addresses, mut sockets) = inherited(Origin::Manager, &["127.0.0.1:0"]);
        let opened = take(&mut sockets, LISTEN, &wanted).unwrap();
        assert_eq!(opened.len(), 1);
        assert_eq!((&opened[0].address, opened[0].sockets.len()), (&addresses[0], 1));
        assert!(sockets.is_empty());

        let (_, mut sockets) = inherited(Origin::Predecessor, &["127.0.0.1:0"]);
        assert!(take(&mut sockets, LISTEN, &wanted).unwrap().is_empty());
        let (addresses, mut sockets) = inherited(Origin::Predecessor, &["127.0.0.1:0"; 2]);
        let any_port = [tcp("127.0.0.1:0")];
        assert!(take(&mut sockets, ADMIN_LISTEN, &any_port).unwrap().is_empty());
        let opened = take(&mut sockets, LISTEN, &any_port).unwrap();
        assert_eq!(
            opened.iter().map(|one| &one.address).collect::<Vec<_>>(),
            [&addresses[0], &addresses[1]]
        );
    }

    #[test]
    fn who_comes_to_all_of_ipv4_comes_to_all_of_ipv6_too() {
        for (address, wanted, expected) in [
            ("[::]:8080", "0.0.0.0:8080", true),
            ("[::]:8080", "[::]:8080", true),
            ("0.0.0.0:8080", "[::]:8080", false),
            ("[::]:8081", "0.0.0.0:8080", false),
            ("[::]:8080", "127.0.0.1:8080", false),
        ] {
            assert_eq!(serves(&tcp(address), &tcp(wanted)), expected, "{address} {wanted}");
        }
    }

    #[test]
    fn what_does_not_listen_is_refused_with_the_setting_named() {
        let datagrams = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let unix = OwnedFd::from(std::os::unix::net::UnixDatagram::unbound().unwrap());
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for (socket, problem) in [
            (datagrams, "it does not listen"),
            (unix, "it does not listen"),
            (file, "it is no socket"),
        ] {
            let from = Origin::Manager;
            let setting = LISTEN.to_owned();
            let mut sockets = vec![Inherited { setting, sockets: vec![socket], from }];
            let error = take(&mut sockets, LISTEN, &[tcp("127.0.0.1:1")]).unwrap_err();
            assert!(error.to_string().contains("listen") && error.to_string().contains(problem));
        }
    }
}
