//! Certificates made for a test, and clients that speak TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::place::Place;
use crate::support::within;

/// Signs certificates, and is trusted by the clients of a test.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Holds what was signed.
    folder: Place,
}

/// A certificate and its key, as PEM files.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = Place::folder("certificates");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("keys are made of random numbers");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it signs itself");
        Self { issuer, folder }
    }

    /// Signs a certificate for these names, and writes it and its key to files called `name`.
    pub(crate) fn sign(&self, name: &str, names: &[&str]) -> Pair {
        let pair = Pair {
            cert: self.folder.join(&format!("{name}.crt")),
            key: self.folder.join(&format!("{name}.key")),
        };
        let (cert, key) = self.sign_pem(names);
        replace(&pair.cert, &cert);
        replace(&pair.key, &key);
        pair
    }

    /// A certificate for these names and its key, PEM.
    pub(crate) fn sign_pem(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names of hosts");
        let key = KeyPair::generate().expect("keys are made of random numbers");
        let cert = params.signed_by(&key, &self.issuer).expect("the issuer signs anything");
        (cert.pem(), key.serialize_pem())
    }

    /// Its own certificate, as a PEM file.
    pub(crate) fn cert(&self) -> PathBuf {
        let path = self.folder.join("authority.crt");
        replace(&path, &self.issuer.pem());
        path
    }

    /// What a client that trusts it begins TLS with.
    pub(crate) fn connector(&self) -> TlsConnector {
        self.connector_with(rustls::ALL_VERSIONS, &[], None)
    }

    /// The same with these versions, these protocols (ALPN), and a certificate of its own.
    pub(crate) fn connector_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
        own: Option<&Pair>,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("the provider has ciphers for them")
            .with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let cert = CertificateDer::from_pem_file(&pair.cert).expect("it was written");
                let key = PrivateKeyDer::from_pem_file(&pair.key).expect("it was written");
                config.with_client_auth_cert(vec![cert], key).expect("they are a pair")
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // Every handshake is a whole one and shows a certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config).into()
    }
}

impl Pair {
    /// The flags by which a gateway uses it.
    pub(crate) fn flags(&self) -> [String; 2] {
        [format!("--tls-cert={}", self.cert.display()), format!("--tls-key={}", self.key.display())]
    }
}

/// Puts `text` in the place of `path`, at once or not at all.
pub(crate) fn replace(path: &Path, text: &str) {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text).expect("the folder is ours");
    fs::rename(&unfinished, path).expect("the folder is ours");
}

/// A socket to `address` that has asked for `name`, once TLS is agreed on.
pub(crate) async fn connect(
    connector: &TlsConnector,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name of a host");
    let connecting = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        connector.connect(name, socket).await
    };
    within("the end of a TLS handshake", connecting).await
}

/// What the other end of `socket` has shown.
pub(crate) fn shown_certificate(socket: &TlsStream<TcpStream>) -> Vec<u8> {
    let (_, session) = socket.get_ref();
    session.peer_certificates().expect("the handshake is over")[0].to_vec()
}
