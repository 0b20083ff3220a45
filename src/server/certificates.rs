//! Who is the gateway, to clients that speak TLS? Certificates and keys out of PEM files, chosen by the
//! name that a client asks for, and exchanged while connections are open.
//!
//! - [`load`]: reads and checks everything, for `wsgate check` too.
//! - `Certificates`: keeps what holds, and loads it anew when it is told to or when the files change.
//!
//! Nothing is ever served of which a part does not fit: a certificate goes with its key or not at all.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tracing::{error, info};
use x509_parser::extensions::GeneralName;

use crate::server::settings::{CertificatePair, ClientAuth, Http2, TlsSettings};
use crate::shard::Identity;
use crate::telemetry::counters::{Counters, RELOAD_FAILED, RELOAD_SUCCEEDED};

/// How often the files are looked at. What has changed is loaded once it was found the same twice, so that
/// no half-written file is taken for a whole one.
///
/// Reading a few small files costs microseconds, and unlike a watch of the kernel it sees through the
/// symbolic links that Kubernetes swaps.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Largest file that is read: far more than any chain of certificates, and a bound for what was named by
/// mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why a certificate cannot be used. The operator erred.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file that cannot be read.
    #[error("{setting} is {path:?}, which cannot be read: {error}. Name a readable PEM file")]
    Unreadable {
        /// Which setting names it.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file without what it should hold.
    #[error("{setting} is {path:?}, which holds {problem}. {remedy}")]
    Content {
        /// Which setting names it.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The key is another certificate's.
    #[error(
        "tls_key is {key:?} but tls_cert is {cert:?}: the key is not that of the certificate. Name the \
         files of one pair, in the same order in both settings"
    )]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// What holds: to be handed to the shards.
pub struct Loaded {
    /// For new handshakes.
    pub config: Arc<ServerConfig>,
    /// When the first of the certificates in use expires, in seconds since 1970.
    pub expires_at: u64,
}

/// Reads and checks everything that `settings` names.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn load(settings: &TlsSettings, http2: Http2) -> Result<Loaded, CertificateError> {
    Contents::read(settings)?.load(settings, http2)
}

/// The bytes of the files that the settings name.
#[derive(PartialEq, Eq)]
struct Contents {
    /// Certificate and key, as paired.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(settings: &TlsSettings) -> Result<Self, CertificateError> {
        let pairs = settings.pairs.iter();
        let pairs = pairs.map(|CertificatePair { cert, key }| {
            Ok((read("tls_cert", cert)?, read("tls_key", key)?))
        });
        let client_ca = settings.client_ca.as_deref().map(|path| read("tls_client_ca", path));
        Ok(Self { pairs: pairs.collect::<Result<_, _>>()?, client_ca: client_ca.transpose()? })
    }

    fn load(&self, settings: &TlsSettings, http2: Http2) -> Result<Loaded, CertificateError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pairs = settings.pairs.iter().zip(&self.pairs);
        let named = pairs.map(|(paths, (cert, key))| Named::parse(paths, cert, key, &provider));
        let named: Vec<Named> = named.collect::<Result<_, _>>()?;
        let expires_at = named.iter().map(|named| named.expires_at).min().unwrap_or_default();

        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for TLS 1.2 and 1.3");
        let config = match (&self.client_ca, settings.client_auth) {
            (Some(pem), ClientAuth::Optional | ClientAuth::Required) => {
                let path = settings.client_ca.as_deref().unwrap_or(Path::new(""));
                let roots = Arc::new(parse_roots(path, pem)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                if settings.client_auth == ClientAuth::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                config.with_client_cert_verifier(
                    verifier.build().expect("there are roots, and no revocation lists"),
                )
            }
            (None, _) | (Some(_), ClientAuth::Off) => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(Arc::new(ByName { named }));
        // New keys for tickets with every load: nobody resumes what was agreed under other certificates,
        // or with a client certificate that is trusted no more.
        if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
            config.ticketer = ticketer;
        }
        config.alpn_protocols = match http2 {
            Http2::Off => vec![b"http/1.1".to_vec()],
            Http2::Tls | Http2::All => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(Loaded { config: Arc::new(config), expires_at })
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, CertificateError> {
    use std::io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(std::io::Error::other("it is longer than 4 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|error| CertificateError::Unreadable { setting, path: path.to_owned(), error })
}

fn parse_roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let wrong = |problem| CertificateError::Content {
        setting: "tls_client_ca",
        path: path.to_owned(),
        problem,
        remedy: "Name a PEM file with the certificates of those who sign clients' certificates",
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(format!("no PEM ({error})")))?;
        let added = roots.add(certificate);
        added.map_err(|error| wrong(format!("a certificate that is none ({error})")))?;
    }
    if roots.is_empty() { Err(wrong("no certificate".to_owned())) } else { Ok(roots) }
}

/// A certificate, its key, and the names that it is for.
#[derive(Debug)]
struct Named {
    key: Arc<CertifiedKey>,
    /// In lower case; `*.example.com` stands for one label more.
    names: Vec<String>,
    expires_at: u64,
}

impl Named {
    fn parse(
        paths: &CertificatePair,
        cert: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let wrong_cert = |problem| CertificateError::Content {
            setting: "tls_cert",
            path: paths.cert.clone(),
            problem,
            remedy: "Name a PEM file with the certificate first and those that sign it behind",
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong_cert(format!("no PEM ({error})")))?;
        let first = chain.first().ok_or_else(|| wrong_cert("no certificate".to_owned()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first)
            .map_err(|error| wrong_cert(format!("a certificate that is none ({error})")))?;
        let expires_at = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
        let names = alternatives.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let names = names.collect();

        let wrong_key = |problem| CertificateError::Content {
            setting: "tls_key",
            path: paths.key.clone(),
            problem,
            remedy: "Name a PEM file with the private key of the certificate, not encrypted",
        };
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| wrong_key(format!("no private key ({error})")))?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                CertificateError::Mismatch { cert: paths.cert.clone(), key: paths.key.clone() }
            }
            error => wrong_key(format!("a private key that cannot be used ({error})")),
        })?;
        Ok(Self { key: Arc::new(key), names, expires_at })
    }

    fn is_for(&self, asked: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => asked.split_once('.').is_some_and(|(_, rest)| rest == domain),
            None => name == asked,
        })
    }
}

/// Chooses by the name that the client asks for, and the signatures that it can check.
#[derive(Debug)]
struct ByName {
    /// In the order of the settings; never empty.
    named: Vec<Named>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        let is_for = |named: &&Named| asked.as_ref().is_some_and(|asked| named.is_for(asked));
        let can_check =
            |named: &&Named| named.key.key.choose_scheme(hello.signature_schemes()).is_some();
        // Whoever names nobody that we are, or comes by address, sees the first: most likely it is told
        // to trust that, and its complaint then names what it saw.
        let mut candidates = self.named.iter().filter(is_for).chain(&self.named);
        Some(Arc::clone(&candidates.find(can_check)?.key))
    }
}

/// What holds now, and how it changes.
pub(super) struct Certificates {
    settings: RefCell<TlsSettings>,
    http2: Http2,
    identity: Arc<Identity>,
    counters: Arc<Counters>,
    /// What was loaded last, or was tried to.
    known: RefCell<Contents>,
}

impl Certificates {
    /// Loads for the first time.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(super) fn new(
        settings: TlsSettings,
        http2: Http2,
        counters: Arc<Counters>,
    ) -> Result<Self, CertificateError> {
        let contents = Contents::read(&settings)?;
        let Loaded { config, expires_at } = contents.load(&settings, http2)?;
        counters.tls_certificate_expiry.set(expires_at);
        let (identity, known) = (Arc::new(Identity::new(config)), RefCell::new(contents));
        Ok(Self { settings: RefCell::new(settings), http2, identity, counters, known })
    }

    /// For the listeners, which see every change of it.
    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    /// Loads everything anew, from now on by `settings`. What holds stays where that fails.
    pub(super) fn reload(&self, settings: &TlsSettings) {
        self.settings.replace(settings.clone());
        match self.read() {
            Ok(contents) => self.load(contents),
            Err(error) => self.take(Err(error)),
        }
    }

    fn read(&self) -> Result<Contents, CertificateError> {
        Contents::read(&self.settings.borrow())
    }

    fn load(&self, contents: Contents) {
        self.take(contents.load(&self.settings.borrow(), self.http2));
        self.known.replace(contents);
    }

    fn take(&self, loaded: Result<Loaded, CertificateError>) {
        let result = match loaded {
            Ok(Loaded { config, expires_at }) => {
                self.identity.replace(config);
                self.counters.tls_certificate_expiry.set(expires_at);
                info!(expires_at, "TLS certificates loaded; open connections keep theirs");
                RELOAD_SUCCEEDED
            }
            Err(error) => {
                error!(%error, "TLS certificates did not load; those from before stay in use");
                RELOAD_FAILED
            }
        };
        self.counters.tls_reloads[result].increment();
    }

    /// Loads the files anew whenever they have changed.
    pub(super) async fn watch(self: Rc<Self>) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut before, mut unreadable) = (None, Unreadable::default());
        loop {
            interval.tick().await;
            let found = match self.read() {
                Ok(found) => found,
                Err(error) => {
                    before = None;
                    if unreadable.is_to_be_told(&error) {
                        self.take(Err(error));
                    }
                    continue;
                }
            };
            unreadable = Unreadable::default();
            if *self.known.borrow() == found {
                before = None;
            } else if before.as_ref() == Some(&found) {
                self.load(found);
                before = None;
            } else {
                before = Some(found);
            }
        }
    }
}

/// What could not be read the last time, and whether that was told.
#[derive(Default)]
struct Unreadable {
    what: String,
    is_told: bool,
}

impl Unreadable {
    /// Once, when it is found the second time: a file that is missing for a moment is being replaced.
    fn is_to_be_told(&mut self, error: &CertificateError) -> bool {
        let what = error.to_string();
        if self.what != what {
            *self = Self { what, is_told: false };
            return false;
        }
        !std::mem::replace(&mut self.is_told, true)
    }
}
