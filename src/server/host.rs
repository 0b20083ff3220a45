//! What the settings want and this host does not give, each with its remedy. Limits that the kernel
//! keeps without a word are told here, once, at the start.
//!
//! The limit of open files is not among them: `sockets` raises it and says what is left.

use std::fs;

use tracing::warn;

use crate::server::settings::{ListenAddress, Settings};
use crate::shard::MAX_BACKLOG;

/// What the kernel says of itself. `None`: it does not, so nothing is said of it here either.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Most connections that wait for one listening socket.
    somaxconn: Option<u64>,
    /// Most open files of the whole machine.
    file_max: Option<u64>,
    /// Most connections that the firewall keeps in mind, where it keeps any.
    conntrack_max: Option<u64>,
    /// First and last port from which this machine connects.
    local_ports: Option<(u64, u64)>,
}

/// Logs every conflict between `settings` and this host.
pub(super) fn warn_of_conflicts(settings: &Settings) {
    let listen = settings.listen.iter().chain(&settings.plain_listen);
    // A Unix socket takes no ports.
    let mut addresses = listen.filter_map(|address| match address {
        ListenAddress::Tcp(address) => Some(address.ip()),
        ListenAddress::Unix(_) => None,
    });
    let is_local = addresses.next().is_some_and(|first| first.is_loopback())
        && addresses.all(|other| other.is_loopback());
    let host = Host::read(|name| fs::read_to_string(format!("/proc/sys/{name}")).ok());
    for conflict in host.conflicts(settings.max_connections, is_local) {
        warn!("{conflict}");
    }
}

impl Host {
    /// Asks for files below `/proc/sys`, by their names.
    fn read(text_of: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name| text_of(name)?.trim().parse().ok();
        let local_ports = text_of("net/ipv4/ip_local_port_range").and_then(|text| {
            let mut ports = text.split_whitespace().map(str::parse);
            Some((ports.next()?.ok()?, ports.next()?.ok()?))
        });
        Self {
            somaxconn: number("net/core/somaxconn"),
            file_max: number("fs/file-max"),
            conntrack_max: number("net/netfilter/nf_conntrack_max"),
            local_ports,
        }
    }

    /// What cannot be had here, in words. `max_connections` is what the operator asked for, if anything:
    /// what the host allows by itself is in no conflict with it. `is_local`: only this machine can
    /// connect.
    fn conflicts(&self, max_connections: Option<usize>, is_local: bool) -> Vec<String> {
        let mut conflicts = Vec::new();
        let backlog = u64::from(MAX_BACKLOG);
        if let Some(most) = self.somaxconn.filter(|most| *most < backlog) {
            conflicts.push(format!(
                "up to {backlog} new connections may wait for each shard but net.core.somaxconn is \
                 {most}: in a storm of them more are dropped, and tried again after a second or more. \
                 Raise it (sysctl -w net.core.somaxconn={backlog})"
            ));
        }
        let Some(wanted) = max_connections.map(|most| most as u64) else {
            return conflicts;
        };
        if let Some(most) = self.file_max.filter(|most| *most < wanted) {
            conflicts.push(format!(
                "max_connections is {wanted} but fs.file-max is {most}: the machine has no more open \
                 files. Raise it (sysctl -w fs.file-max={}) or lower max_connections",
                wanted.saturating_mul(2)
            ));
        }
        if let Some(most) = self.conntrack_max.filter(|most| *most < wanted) {
            conflicts.push(format!(
                "max_connections is {wanted} but net.netfilter.nf_conntrack_max is {most}: where the \
                 firewall tracks them, packets of further connections are dropped. Raise it (sysctl -w \
                 net.netfilter.nf_conntrack_max={}) or exempt the port from tracking",
                wanted.saturating_mul(2)
            ));
        }
        if let Some((first, last)) = self.local_ports.filter(|_| is_local) {
            let ports = last.saturating_add(1).saturating_sub(first);
            if ports < wanted {
                conflicts.push(format!(
                    "max_connections is {wanted} but listen is a loopback address, and to one address \
                     this machine connects from the {ports} ports of net.ipv4.ip_local_port_range. Widen \
                     it (sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"), or have the proxy in \
                     front connect from several addresses"
                ));
            }
        }
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that says this of itself.
    fn host(files: &[(&str, &str)]) -> Host {
        Host::read(|asked| {
            let file = files.iter().find(|(name, _)| *name == asked);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    /// What conflicts are about: what each of them names as too small.
    fn limits(host: &Host, max_connections: Option<usize>, is_local: bool) -> Vec<&'static str> {
        let names = [
            "net.core.somaxconn is",
            "fs.file-max is",
            "nf_conntrack_max is",
            "ports of net.ipv4.ip_local_port_range",
        ];
        let conflicts = host.conflicts(max_connections, is_local);
        let name = |text: &String| *names.iter().find(|name| text.contains(**name)).expect(text);
        conflicts.iter().map(name).collect()
    }

    const USUAL: [(&str, &str); 4] = [
        ("net/core/somaxconn", "4096\n"),
        ("fs/file-max", "9223372036854775807\n"),
        ("net/netfilter/nf_conntrack_max", "262144\n"),
        ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ];

    #[test]
    fn usual_host_and_the_defaults_are_in_no_conflict() {
        assert_eq!(limits(&host(&USUAL), None, false), [""; 0]);
        assert_eq!(limits(&host(&USUAL), None, true), [""; 0]);
        assert_eq!(limits(&host(&USUAL), Some(262_144), false), [""; 0]);
        assert_eq!(limits(&host(&USUAL), Some(28_232), true), [""; 0]);
    }

    #[test]
    fn each_limit_that_is_too_small_is_named_with_its_remedy() {
        let old = host(&[("net/core/somaxconn", "128\n")]);
        assert_eq!(limits(&old, None, false), ["net.core.somaxconn is"]);
        let text = &old.conflicts(None, false)[0];
        assert!(text.contains("is 128: ") && text.contains("somaxconn=4096"), "{text}");

        let usual = host(&USUAL);
        assert_eq!(limits(&usual, Some(262_145), false), ["nf_conntrack_max is"]);
        let local = limits(&usual, Some(28_233), true);
        assert_eq!(local, ["ports of net.ipv4.ip_local_port_range"]);
        let small = host(&[("fs/file-max", "50000\n")]);
        assert_eq!(limits(&small, Some(100_000), false), ["fs.file-max is"]);
    }

    #[test]
    fn host_that_says_nothing_or_nonsense_is_not_complained_of() {
        for text in ["", "many\n", "1", "-1 -1", "99999999999999999999999"] {
            let odd = host(&[("fs/file-max", "?"), ("net/ipv4/ip_local_port_range", text)]);
            assert_eq!(limits(&odd, Some(1 << 30), true), [""; 0], "{text:?}");
        }
        // A range that is none has no ports.
        let upside_down = host(&[("net/ipv4/ip_local_port_range", "60999 32768")]);
        assert_eq!(limits(&upside_down, Some(1), true).len(), 1);
    }
}
