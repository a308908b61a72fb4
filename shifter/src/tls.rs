//! TLS to a server that is asked something (a backend, Prometheus, a webhook), and
//! who may have signed its certificate.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use crate::model::health::Tls;

/// Where distributions keep those who sign certificates, the first that is there.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A file with them is read again after this long.
const FRESH: Duration = Duration::from_secs(30);
/// A larger file is not what it should be.
const MAX_FILE: u64 = 8 << 20;

/// Why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TlsError {
    /// By what was asked for, or by what this host has.
    #[error("{0}")]
    Config(String),
    /// By what the server said.
    #[error("{0}")]
    Handshake(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Config(format!("TLS: {error}"))
    }
}

/// How certificates are verified and the protocol within (ALPN, RFC 7301).
type Key = (Tls, &'static str);
type Read = (Instant, Result<Arc<ClientConfig>, TlsError>);

/// Configurations of TLS, each read once in a while.
#[derive(Default, Debug)]
pub struct Trust {
    read: Mutex<HashMap<Key, Read>>,
}

impl Trust {
    /// Does the handshake on a connection to `addr`, whose certificate must be of
    /// `host` (a port is left out) or, where there is none, of the address.
    pub async fn connect(
        &self,
        tls: &Tls,
        alpn: &'static str,
        host: Option<&str>,
        addr: SocketAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let config = self.config(tls, alpn).await?;
        let connector = TlsConnector::from(config);
        let name = server_name(host, addr)?;
        connector
            .connect(name, stream)
            .await
            .map_err(|error| handshake_error(&error))
    }

    async fn config(&self, tls: &Tls, alpn: &'static str) -> Result<Arc<ClientConfig>, TlsError> {
        let key = (tls.clone(), alpn);
        if let Some((at, config)) = self.lock().get(&key)
            && at.elapsed() < FRESH
        {
            return config.clone();
        }
        let wanted = key.clone();
        let made = tokio::task::spawn_blocking(move || make(&wanted.0, wanted.1)).await;
        let made = made.unwrap_or_else(|error| Err(TlsError::Config(error.to_string())));
        let mut read = self.lock();
        read.retain(|_, (at, _)| at.elapsed() < 2 * FRESH);
        read.insert(key, (Instant::now(), made.clone()));
        made
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Read>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name that the certificate must have, sent as SNI (RFC 6066) but for addresses.
fn server_name(host: Option<&str>, addr: SocketAddr) -> Result<ServerName<'static>, TlsError> {
    let Some(host) = host else {
        return Ok(ServerName::IpAddress(addr.ip().into()));
    };
    let bare = match host.rsplit_once(':') {
        // host:port, but no address of IPv6 without brackets.
        Some((bare, _)) if !bare.contains(':') || bare.ends_with(']') => bare,
        _ => host,
    };
    let bare = bare.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned())
        .map_err(|_| TlsError::Config(format!("no certificate can have the name {bare:?}")))
}

fn handshake_error(error: &io::Error) -> TlsError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    TlsError::Handshake(match inner {
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!("its certificate is not accepted: {why}")
        }
        Some(error) => format!("TLS failed: {error}"),
        None => format!("TLS failed: {error}"),
    })
}

fn make(tls: &Tls, alpn: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = if tls.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(roots(tls.ca.as_deref())?)
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    // A session that goes on is not verified again: each check is to see the
    // certificate that clients see.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(ca: Option<&str>) -> Result<RootCertStore, TlsError> {
    let system = || SYSTEM.into_iter().find(|path| Path::new(path).exists());
    let Some(path) = ca.or_else(system) else {
        let text = "this host has no list of those who sign certificates: install ca-certificates, or write the key ca";
        return Err(TlsError::Config(text.to_owned()));
    };
    let wrong = |why: String| TlsError::Config(format!("reading {path} failed: {why}"));
    let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if !length.is_file() || length.len() > MAX_FILE {
        return Err(wrong("it is no file of certificates in PEM".to_owned()));
    }
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(wrong("it has no certificate in PEM".to_owned()));
    }
    Ok(roots)
}

/// Takes any certificate; that the server has its key is verified all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
