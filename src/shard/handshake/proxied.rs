//! Who is at the other end of a new socket? What a trusted proxy says first is read here, before
//! anything else: the PROXY header and not a byte more, so that TLS or HTTP can follow.

use std::io;
use std::net::IpAddr;

use rustix::net::sockopt::socket_domain;
use rustix::net::{AddressFamily, RecvFlags, recv};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::admission::proxies::Peer;
use crate::admission::proxy_protocol::{MAX_V2_BYTES, ProxyHeader, ProxyHeaderError, Source};
use crate::shard::settings::{Admission, ProxyProtocol};

/// Who is at the other end of a socket, as far as its requests need not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    /// Where it is. `None` at the end of a Unix socket.
    pub(super) address: Option<IpAddr>,
    /// What is there.
    pub(super) role: Role,
}

/// What is at the other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A client; its address is the socket's.
    Client,
    /// A client for whom a trusted proxy speaks; its address is what that said.
    ProxiedClient,
    /// A trusted proxy, which says in each request for whom it speaks.
    Proxy,
    /// A trusted proxy on its own account, or for somebody whom it does not name.
    ProxyAlone,
}

/// Why nothing is known of the other end, so that the socket is closed.
#[derive(Debug, Error)]
pub(super) enum RemoteError {
    /// It has gone.
    #[error("the peer is gone")]
    Gone,
    /// A trusted proxy does not say for whom it speaks.
    #[error(transparent)]
    Header(#[from] ProxyHeaderError),
}

/// Finds out who is at the other end of `socket`. Takes from it the PROXY header, where there has to be
/// one, and nothing else.
///
/// Can be cancelled; then the socket is of no use any more.
///
/// # Errors
///
/// The socket is to be closed.
pub(super) async fn remote(
    socket: &TcpStream,
    settings: &Admission,
) -> Result<Remote, RemoteError> {
    let peer = match socket.peer_addr() {
        Ok(peer) => Peer::ip(peer.ip()),
        // std carries any socket as one of TCP, and knows no address of this kind.
        Err(_) if socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX) => {
            Peer::Unix
        }
        Err(_) => return Err(RemoteError::Gone),
    };
    if !settings.trusted_proxies.trusts(peer) {
        return Ok(Remote { address: peer.address(), role: Role::Client });
    }
    match settings.proxy_protocol {
        ProxyProtocol::Off => Ok(Remote { address: peer.address(), role: Role::Proxy }),
        ProxyProtocol::Required => match read_header(socket).await? {
            // The next proxy of a chain.
            Source::Address(address) if settings.trusted_proxies.trusts_address(address) => {
                Ok(Remote { address: Some(address), role: Role::Proxy })
            }
            Source::Address(address) => {
                Ok(Remote { address: Some(address), role: Role::ProxiedClient })
            }
            // What follows may be anybody's, so no header of it is believed.
            Source::Unnamed => Ok(Remote { address: peer.address(), role: Role::ProxyAlone }),
        },
    }
}

/// Reads exactly the PROXY header that `socket` begins with.
///
/// It is looked at before it is taken. What is no whole header yet belongs to it in any case, so that is
/// taken too: what has been looked at and left would not make the socket ready again.
async fn read_header(socket: &TcpStream) -> Result<Source, RemoteError> {
    let mut taken = Vec::new();
    let mut read = || {
        let mut buffer = [0; MAX_V2_BYTES];
        loop {
            buffer[..taken.len()].copy_from_slice(&taken);
            let room = &mut buffer[taken.len()..];
            let (looked_at, _) = recv(socket, room, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            if looked_at == 0 {
                return Ok(Err(RemoteError::Gone));
            }
            let known = taken.len() + looked_at;
            let (to_take, source) = match ProxyHeader::parse(&buffer[..known]) {
                Ok(Some(header)) => (header.bytes - taken.len(), Some(header.source)),
                Ok(None) => (looked_at, None),
                Err(error) => return Ok(Err(error.into())),
            };
            let room = &mut buffer[taken.len()..taken.len() + to_take];
            let (bytes, _) = recv(socket, room, RecvFlags::DONTWAIT)?;
            taken.extend_from_slice(&buffer[taken.len()..taken.len() + bytes]);
            if let Some(source) = source
                && bytes == to_take
            {
                return Ok(Ok(source));
            }
        }
    };
    let result: io::Result<Result<Source, RemoteError>> =
        socket.async_io(Interest::READABLE, &mut read).await;
    result.map_err(|_| RemoteError::Gone)?
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";

    fn settings() -> Admission {
        let proxies = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        Admission {
            trusted_proxies: crate::admission::proxies::TrustedProxies::new(proxies),
            ..Admission::default()
        }
    }

    /// What is found out of a socket to which these pieces are sent one after the other, and what is
    /// left in it.
    async fn after(
        pieces: &[&[u8]],
        settings: &Admission,
    ) -> (Result<Remote, RemoteError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                // The reader looks between two of them.
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        };
        let (remote, ()) = tokio::join!(remote(&socket, settings), send);
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        (remote, rest)
    }

    fn proxied(address: &str) -> Remote {
        Remote { address: Some(address.parse().unwrap()), role: Role::ProxiedClient }
    }

    #[tokio::test]
    async fn header_is_taken_to_the_byte_in_whichever_pieces_it_comes() {
        let follows = b"GET / HTTP/1.1\r\n\r\n";
        let whole = [V1, follows].concat();
        for split in 0..=whole.len() {
            let (first, second) = whole.split_at(split);
            let (remote, rest) = after(&[first, second], &settings()).await;
            assert_eq!(remote.unwrap(), proxied("192.0.2.1"), "split at {split}");
            assert_eq!(rest, follows, "split at {split}");
        }
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        let (remote, rest) = after(&bytes, &settings()).await;
        assert_eq!((remote.unwrap(), &rest[..]), (proxied("192.0.2.1"), &follows[..]));
    }

    #[tokio::test]
    async fn proxy_that_is_in_a_chain_or_alone_is_told_apart() {
        let own = Some("127.0.0.1".parse().unwrap());
        let unknown = b"PROXY UNKNOWN\r\n".as_slice();
        let (remote, _) = after(&[unknown], &settings()).await;
        assert_eq!(remote.unwrap(), Remote { address: own, role: Role::ProxyAlone });
        let (remote, _) = after(&[b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"], &settings()).await;
        let next = Some("10.0.0.1".parse().unwrap());
        assert_eq!(remote.unwrap(), Remote { address: next, role: Role::Proxy });
        let off = Admission { proxy_protocol: ProxyProtocol::Off, ..settings() };
        let (remote, rest) = after(&[V1], &off).await;
        assert_eq!(remote.unwrap(), Remote { address: own, role: Role::Proxy });
        assert_eq!(rest, V1);
        let (remote, rest) = after(&[V1], &Admission::default()).await;
        assert_eq!(remote.unwrap(), Remote { address: own, role: Role::Client });
        assert_eq!(rest, V1);
    }

    #[tokio::test]
    async fn peer_of_a_unix_socket_is_a_proxy_where_the_settings_say_so() {
        for (proxies, role) in
            [(vec!["unix".parse().unwrap()], Role::ProxiedClient), (vec![], Role::Client)]
        {
            let (socket, mut client) = std::os::unix::net::UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = std::net::TcpStream::from(std::os::fd::OwnedFd::from(socket));
            let socket = TcpStream::from_std(socket).unwrap();
            std::io::Write::write_all(&mut client, V1).unwrap();
            let settings = Admission {
                trusted_proxies: crate::admission::proxies::TrustedProxies::new(proxies),
                ..Admission::default()
            };
            let remote = remote(&socket, &settings).await.unwrap();
            let address = (role == Role::ProxiedClient).then(|| "192.0.2.1".parse().unwrap());
            assert_eq!(remote, Remote { address, role });
        }
    }

    #[tokio::test]
    async fn socket_without_a_whole_header_is_of_no_use() {
        for pieces in [&[][..], &[&V1[..20]], &[b"PROXY", b" "]] {
            let (remote, _) = after(pieces, &settings()).await;
            assert!(matches!(remote, Err(RemoteError::Gone)), "{remote:?}");
        }
        let (remote, rest) = after(&[b"GET / HTTP/1.1\r\n"], &settings()).await;
        assert!(matches!(remote, Err(RemoteError::Header(ProxyHeaderError::Missing))));
        assert!(rest.starts_with(b"GET"), "nothing is taken");
        let endless = vec![b'x'; 200];
        let (remote, _) = after(&[b"PROXY TCP4 ", &endless], &settings()).await;
        assert!(matches!(remote, Err(RemoteError::Header(ProxyHeaderError::TooLong(107)))));
    }
}
