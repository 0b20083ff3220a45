//! Where the parts of a server are, of which version they are, and what to do when they are missing.

use std::path::{Path, PathBuf};

use super::Peer;

/// `loadtest/peers`: the sources of the servers and the script that installs.
pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// Where the script puts what it installs.
pub(super) fn directory() -> PathBuf {
    match std::env::var_os("LOADTEST_PEERS").filter(|path| !path.is_empty()) {
        Some(path) => std::path::absolute(&path).unwrap_or_else(|_| PathBuf::from(path)),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test/peers"),
    }
}

pub(super) fn rust_peer(package: &str) -> PathBuf {
    directory().join("bin").join(package)
}

pub(super) fn nginx() -> PathBuf {
    directory().join("nchan/usr/sbin/nginx")
}

pub(super) fn nchan_module() -> PathBuf {
    directory().join("nchan/usr/lib/nginx/modules/ngx_nchan_module.so")
}

pub(super) fn nats_server() -> PathBuf {
    directory().join("nats/usr/sbin/nats-server")
}

/// Whether [`super::install`] gets it.
pub(super) fn is_installable(peer: Peer) -> bool {
    !matches!(peer, Peer::Gateway | Peer::Floor)
}

/// The first part of a server that is not there. Where the gateway is, the user says.
pub(super) fn find_missing(peer: Peer) -> Option<PathBuf> {
    let parts = match peer {
        Peer::Gateway | Peer::Floor => Vec::new(),
        Peer::Fastwebsockets => vec![rust_peer("peer-fastwebsockets")],
        Peer::Tungstenite => vec![rust_peer("peer-tungstenite")],
        Peer::UWebSockets | Peer::Ws => {
            if !is_command("node") {
                return Some(PathBuf::from("node"));
            }
            // The script writes it when all packages are there.
            vec![directory().join(peer.name()).join("installed.json")]
        }
        Peer::Nchan => vec![nginx(), nchan_module(), directory().join("nchan/version")],
        Peer::Nats => vec![nats_server(), directory().join("nats/version")],
    };
    parts.into_iter().find(|part| !part.is_file())
}

fn is_command(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// What to do when a part is missing.
pub(super) fn remedy(peer: Peer) -> String {
    match peer {
        Peer::Gateway => "Build it with `cargo build --release`, or say where it is.".to_owned(),
        Peer::Floor => "It is a part of this program.".to_owned(),
        Peer::UWebSockets | Peer::Ws if !is_command("node") => {
            format!("Install Node.js 20 and npm, then run `loadtest peers install {peer}`.")
        }
        _ => format!("Run `loadtest peers install {peer}`."),
    }
}

/// The version that is installed or would be; for packages of Debian only the installed one is known.
pub(super) fn version(peer: Peer) -> Option<String> {
    match peer {
        Peer::Gateway => crate_version("wsgate"),
        Peer::Floor => Some(env!("CARGO_PKG_VERSION").to_owned()),
        Peer::Fastwebsockets => crate_version("fastwebsockets"),
        Peer::Tungstenite => crate_version("tokio-tungstenite"),
        Peer::UWebSockets => npm_version(
            include_str!("../../peers/uwebsockets/package.json"),
            "@trufflesuite/uws-js-unofficial",
        ),
        Peer::Ws => npm_version(include_str!("../../peers/ws/package.json"), "ws"),
        Peer::Nchan | Peer::Nats => {
            let version = std::fs::read_to_string(directory().join(peer.name()).join("version"));
            version.ok().map(|version| version.trim().to_owned())
        }
    }
}

/// The version of a crate in the lockfile of the workspace.
fn crate_version(name: &str) -> Option<String> {
    let lockfile: toml::Table = include_str!("../../../Cargo.lock").parse().ok()?;
    let packages = lockfile.get("package")?.as_array()?;
    let package = packages.iter().find(|package| package["name"].as_str() == Some(name))?;
    package.get("version")?.as_str().map(str::to_owned)
}

/// The version of a package in `package.json`, where they are exact.
fn npm_version(manifest: &str, name: &str) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).ok()?;
    manifest["dependencies"][name].as_str().map(str::to_owned)
}
