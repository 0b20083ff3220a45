//! TLS as a client speaks it: plaintext in, records out, and the other way round. The socket is the
//! caller's.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use thiserror::Error;

/// Whom a client believes to be the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust<'a> {
    /// Who has a certificate by one of those in this PEM file, for the name in the URL.
    Authorities(&'a Path),
    /// Whoever answers.
    Anybody,
}

/// TLS cannot be spoken.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The certificates cannot be read.
    #[error("ca is {path}, but that {problem}: name a PEM file with certificates")]
    Authorities {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The host is no name that a certificate can be for.
    #[error("the host \"{0}\" is no name that a certificate can be for")]
    Name(String),
}

/// How all clients of a run speak TLS: 1.3 or 1.2, without ALPN, so that what follows is HTTP/1.1. No
/// session is resumed: each handshake is a whole one, as that of a client that comes for the first time.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl Tls {
    /// For a server at `host`, a name or an address without a port.
    ///
    /// # Errors
    ///
    /// Who is to be trusted cannot be read, or the host has no name for a certificate.
    pub(crate) fn new(host: &str, trust: Trust<'_>) -> Result<Self, TlsError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server = ServerName::try_from(bare).map_err(|_| TlsError::Name(host.to_owned()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has suites for both versions");
        let builder = match trust {
            Trust::Authorities(path) => builder.with_root_certificates(authorities(path)?),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(BelievesAnybody(provider))),
        };
        let mut config = builder.with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), server })
    }

    /// The session of one connection.
    pub(crate) fn session(&self) -> Session {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.server.clone());
        let mut connection = connection.expect("the configuration goes with every name");
        // What is not taken by the socket is the caller's to bound, as without TLS.
        connection.set_buffer_limit(None);
        Session(connection)
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let wrong =
        |problem: String| TlsError::Authorities { path: path.display().to_string(), problem };
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<CertificateDer<'static>> =
        certificates.map_err(|error| wrong(format!("cannot be read ({error})")))?;
    let mut store = RootCertStore::empty();
    // A system's own bundle may have some that nobody understands any more.
    match store.add_parsable_certificates(certificates) {
        (0, _) => Err(wrong("has no certificate".to_owned())),
        _ => Ok(store),
    }
}

/// One connection's session.
pub(crate) struct Session(ClientConnection);

impl Session {
    /// Takes `plaintext`, and appends the records that are to be sent to `output`. Before the handshake is
    /// over they are the handshake's, and the plaintext follows with those of [`Session::decrypt`].
    pub(crate) fn encrypt(&mut self, plaintext: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        self.0.writer().write_all(plaintext)?;
        self.write_records(output)
    }

    /// Takes `ciphertext` as it was read, and puts its plaintext into `buffer` from `start` on, which
    /// grows where that is needed. Appends what has to be sent in answer to `output`. Returns how many
    /// bytes of plaintext there are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidData`] where the server is not believed, or breaks the protocol.
    pub(crate) fn decrypt(
        &mut self,
        mut ciphertext: &[u8],
        buffer: &mut Vec<u8>,
        start: usize,
        output: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let mut end = start;
        while !ciphertext.is_empty() {
            // None is taken behind a close_notify.
            if self.0.read_tls(&mut ciphertext)? == 0 {
                break;
            }
            let processed = self.0.process_new_packets();
            let state = processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let wanted = end + state.plaintext_bytes_to_read();
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
            self.0.reader().read_exact(&mut buffer[end..wanted])?;
            end = wanted;
        }
        self.write_records(output)?;
        Ok(end - start)
    }

    fn write_records(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(output)?;
        }
        Ok(())
    }
}

/// Checks that the server has the key of the certificate that it shows, and not whose that is.
#[derive(Debug)]
struct BelievesAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for BelievesAnybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// A server with a certificate of its own for 127.0.0.1, in a file, without a socket.
    fn server(name: &str) -> (ServerConnection, std::path::PathBuf) {
        let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let path = std::env::temp_dir().join(format!("loadtest-{}-{name}", std::process::id()));
        std::fs::write(&path, signed.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        (ServerConnection::new(Arc::new(config)).unwrap(), path)
    }

    /// Lets both talk until neither has anything to say. Returns what the client heard.
    fn talk(client: &mut Session, server: &mut ServerConnection) -> io::Result<Vec<u8>> {
        let (mut to_server, mut heard) = (Vec::new(), vec![b'.'; 3]);
        let mut end = 3;
        client.encrypt(b"hello", &mut to_server)?;
        while !to_server.is_empty() {
            let mut input = &std::mem::take(&mut to_server)[..];
            while !input.is_empty() {
                server.read_tls(&mut input)?;
                server.process_new_packets().map_err(io::Error::other)?;
            }
            let mut plaintext = [0; 64];
            if let Ok(bytes) = server.reader().read(&mut plaintext) {
                server.writer().write_all(&plaintext[..bytes])?;
            }
            let mut to_client = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut to_client)?;
            }
            // It comes in pieces that nobody has chosen.
            for piece in to_client.chunks(7) {
                end += client.decrypt(piece, &mut heard, end, &mut to_server)?;
            }
        }
        Ok(heard[3..end].to_vec())
    }

    #[test]
    fn plaintext_goes_through_before_and_after_the_handshake_is_over() {
        let (mut server, path) = server("through");
        let tls = Tls::new("127.0.0.1", Trust::Authorities(&path)).unwrap();
        let mut client = tls.session();
        assert_eq!(talk(&mut client, &mut server).unwrap(), b"hello");
        assert_eq!(talk(&mut client, &mut server).unwrap(), b"hello");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn server_that_is_not_the_one_meant_is_believed_only_where_anybody_is() {
        let (mut server, path) = server("meant");
        let tls = Tls::new("127.0.0.2", Trust::Authorities(&path)).unwrap();
        let error = talk(&mut tls.session(), &mut server).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let mut server = self::server("meant").0;
        let tls = Tls::new("127.0.0.2", Trust::Anybody).unwrap();
        assert_eq!(talk(&mut tls.session(), &mut server).unwrap(), b"hello");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn file_without_certificates_is_named() {
        for (path, problem) in [("/nowhere/ca.pem", "cannot be read"), ("/dev/null", "has no")] {
            let error = Tls::new("localhost", Trust::Authorities(Path::new(path))).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(path) && text.contains(problem), "{text}");
        }
    }
}
