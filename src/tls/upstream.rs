//! The upstream side: TLS to a backend, whose certificate is verified (RFC 4513 §3.1.3).

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::pem::PemFile;
use super::{Finding, client_auth, policy};
use crate::config::{Pool, TlsPolicy, TlsVersion};

/// What a pool's connections to its backends have in common: trust anchors, and sessions to resume.
pub struct UpstreamTls {
    connector: TlsConnector,
    /// `server_name`
    server_name: Option<ServerName<'static>>,
    /// The certificates of `ca_file`.
    anchors: Vec<CertificateDer<'static>>,
}

impl UpstreamTls {
    /// Reads `ca_file`, or the system's roots where there is none (slow: some 100 ms).
    ///
    /// # Errors
    /// No trust anchors, or a `server_name` that is neither a host name nor an address.
    pub fn new(pool: &Pool) -> Result<Self, Finding> {
        let server_name = pool.server_name.as_deref().map(|name| parse_name(name).map_err(bad_server_name));
        let (roots, anchors) = match pool.ca_file.as_deref() {
            Some(path) => {
                let file = PemFile::read("ca_file", path)?;
                (client_auth::roots(&file)?, file.certificates()?)
            }
            None => (system_roots()?, Vec::new()),
        };
        let connector = TlsConnector::from(Arc::new(config(roots, anchors.clone())?));
        Ok(Self { connector, server_name: server_name.transpose()?, anchors })
    }

    /// Whether `ca_file` held the same for both.
    pub fn trusts_as(&self, other: &Self) -> bool {
        self.anchors == other.anchors
    }

    /// Makes the handshake on a connection to `host`, the backend's host name or address as configured. Its certificate
    /// must be for that, or for `server_name`. Put a timeout around it: it has none.
    ///
    /// # Errors
    /// Whatever ends the handshake, worded for an operator.
    pub async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(host)?,
        };
        self.connector
            .connect_with(name, tcp, |connection| connection.set_buffer_limit(Some(BUFFER_LIMIT)))
            .await
            .map_err(|error| io::Error::new(error.kind(), explain(&error)))
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

fn parse_name(name: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("\"{name}\" is neither a host name nor an IP address"))
    })
}

fn bad_server_name(error: io::Error) -> Finding {
    Finding::error("server_name", error.to_string(), "write the name as it stands in the backend's certificate")
}

fn system_roots() -> Result<RootCertStore, Finding> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let help = "install the package ca-certificates, or name the issuer of the backends' certificates in ca_file";
        return Err(Finding::error("ca_file", "this system has no trusted certificate authorities", help));
    }
    Ok(roots)
}

fn config(roots: RootCertStore, pinned: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Finding> {
    let policy = if cfg!(feature = "fips") { TlsPolicy::Fips } else { TlsPolicy::Intermediate };
    let provider = policy::provider(policy);
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Finding::error("ca_file", error.to_string(), "name a file of certificate authorities"))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(policy::versions(policy, TlsVersion::V1_2))
        .expect("the provider has suites for both versions, which a test checks")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BackendVerifier { pinned, webpki }))
        .with_no_client_auth();
    config.require_ems = policy == TlsPolicy::Fips;
    Ok(config)
}

/// The usual verifier, but for two things: a certificate that stands itself in `ca_file` is good for every name, as Samba's
/// self-made ones have none; and of an issuer that isn't trusted it says who that is.
#[derive(Debug)]
struct BackendVerifier {
    pinned: Vec<CertificateDer<'static>>,
    webpki: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for BackendVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).map_err(|error| {
            match (&error, X509Certificate::from_der(intermediates.last().unwrap_or(end_entity))) {
                (Error::InvalidCertificate(CertificateError::UnknownIssuer), Ok((_, last))) => {
                    let untrusted = OtherError(Arc::new(UntrustedIssuer(last.issuer().to_string())));
                    Error::InvalidCertificate(CertificateError::Other(untrusted))
                }
                _ => error,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// The issuer's distinguished name.
#[derive(Debug)]
struct UntrustedIssuer(String);

impl fmt::Display for UntrustedIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it comes from \"{}\", which isn't trusted: add that issuer to ca_file", self.0)
    }
}

impl std::error::Error for UntrustedIssuer {}

fn explain(error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "the backend closed the connection during the handshake: does it have a certificate?".into()
            }
            _ => format!("the handshake with the backend failed: {error}"),
        };
    };
    match tls {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => {
            let expected = expected.to_str();
            if presented.is_empty() {
                format!(
                    "the backend's certificate has no subject alternative name, so it isn't for \"{expected}\": have it \
                     issued with one, or put that very certificate into ca_file"
                )
            } else {
                let presented = presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ");
                format!(
                    "the backend's certificate is for {presented}, not for \"{expected}\": connect by that name, or set \
                     server_name"
                )
            }
        }
        Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => {
            format!("the backend's certificate is refused: {error}")
        }
        Error::InvalidCertificate(error) => format!("the backend's certificate is refused: {error}"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the backend doesn't speak TLS on this port: is it 636 for protocol \"ldaps\"? else try \"starttls\"".into()
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the backend has neither TLS 1.2 nor 1.3 (alert protocol_version)".into()
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "no shared cipher suite with the backend (alert handshake_failure)".into()
        }
        other => format!("the handshake with the backend failed: {other}"),
    }
}

/// `DnsName("dc1.example.com")` and `IpAddress(10.0.0.1)`, as rustls has them, without the words around.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

/// Bytes that may wait in a connection for a backend that doesn't read.
const BUFFER_LIMIT: usize = 36 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::super::testing::*;
    use super::super::{Handshake, ServerTls};
    use super::*;
    use crate::config::BackendProtocol;
    use crate::config::Tls;

    /// A pool of no backends that trusts `authority`.
    fn pool(directory: &std::path::Path, authority: &Authority, server_name: Option<&str>) -> Pool {
        let mut pool = Pool::new("simple-ad", Vec::new());
        pool.protocol = BackendProtocol::Ldaps;
        pool.ca_file = Some(write(directory, "ca.pem", &authority.pem));
        pool.server_name = server_name.map(str::to_owned);
        pool
    }

    /// One connection to a backend; the backend's view of it.
    async fn connect(upstream: &UpstreamTls, backend: &ServerTls, host: &str) -> io::Result<Handshake> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tcp = TcpStream::connect(listener.local_addr()?).await?;
        let (accepted, _) = listener.accept().await?;
        let backend = async {
            let (mut stream, handshake) = backend.accept(accepted).await?;
            stream.write_all(b"!").await?;
            io::Result::Ok(handshake)
        };
        let client = async {
            let mut stream = upstream.connect(host, tcp).await?;
            tokio::io::AsyncReadExt::read_u8(&mut stream).await
        };
        let (agreed, done) = tokio::join!(backend, client);
        done.and(agreed)
    }

    #[tokio::test]
    async fn a_backend_is_verified_by_the_name_it_is_configured_with() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("corp root");
        let backend = load(&Tls::new(root.issue(&["dc1.example.com", "127.0.0.11"]).write(directory.path(), "dc1")));
        let upstream = UpstreamTls::new(&pool(directory.path(), &root, None)).unwrap();
        let agreed = connect(&upstream, &backend, "dc1.example.com").await.unwrap();
        assert_eq!((agreed.version, agreed.sni.as_deref()), ("1.3", Some("dc1.example.com")));
        let agreed = connect(&upstream, &backend, "127.0.0.11").await.unwrap();
        assert_eq!(agreed.sni, None);
        let error = connect(&upstream, &backend, "dc2.example.com").await.unwrap_err().to_string();
        assert!(error.contains("is for dc1.example.com, 127.0.0.11, not for \"dc2.example.com\""), "{error}");
        let named = UpstreamTls::new(&pool(directory.path(), &root, Some("dc1.example.com"))).unwrap();
        connect(&named, &backend, "10.9.9.9").await.unwrap();
    }

    #[tokio::test]
    async fn an_untrusted_issuer_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("corp root");
        let backend = load(&Tls::new(root.issue(&["dc1.example.com"]).write(directory.path(), "dc1")));
        let upstream = UpstreamTls::new(&pool(directory.path(), &Authority::root("other"), None)).unwrap();
        let error = connect(&upstream, &backend, "dc1.example.com").await.unwrap_err().to_string();
        assert!(error.contains("\"CN=corp root\", which isn't trusted"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_without_names_is_for_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("corp root");
        let backend = load(&Tls::new(root.issue(&[]).write(directory.path(), "dc1")));
        let upstream = UpstreamTls::new(&pool(directory.path(), &root, None)).unwrap();
        let error = connect(&upstream, &backend, "ldap.example.com").await.unwrap_err().to_string();
        assert!(error.contains("no subject alternative name"), "{error}");
    }

    /// Samba makes itself a certificate without names (and a root for it).
    #[tokio::test]
    async fn a_certificate_that_stands_in_ca_file_is_good_for_every_name() {
        let directory = tempfile::tempdir().unwrap();
        let own = Authority::root("corp root").issue(&[]);
        let backend = load(&Tls::new(own.write(directory.path(), "dc1")));
        let mut pool = pool(directory.path(), &Authority::root("other"), None);
        pool.ca_file = Some(directory.path().join("dc1.pem"));
        let upstream = UpstreamTls::new(&pool).unwrap();
        connect(&upstream, &backend, "dc1.example.com").await.unwrap();
        let other = load(&Tls::new(Authority::root("corp root").issue(&[]).write(directory.path(), "dc2")));
        connect(&upstream, &other, "dc1.example.com").await.unwrap_err();
    }

    #[tokio::test]
    async fn sessions_are_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("corp root");
        let mut settings = Tls::new(root.issue(&["dc1.example.com"]).write(directory.path(), "dc1"));
        settings.session_tickets = crate::config::SessionTickets::All;
        let backend = load(&settings);
        let upstream = UpstreamTls::new(&pool(directory.path(), &root, None)).unwrap();
        assert!(!connect(&upstream, &backend, "dc1.example.com").await.unwrap().resumed);
        assert!(connect(&upstream, &backend, "dc1.example.com").await.unwrap().resumed);
    }

    #[tokio::test]
    async fn a_port_without_tls_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let upstream = UpstreamTls::new(&pool(directory.path(), &Authority::root("corp root"), None)).unwrap();
        for (answer, words) in [(&b"\x30\x0c\x02\x01\x00"[..], "doesn't speak TLS"), (b"", "closed the connection")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut backend, _) = listener.accept().await.unwrap();
            backend.write_all(answer).await.unwrap();
            backend.shutdown().await.unwrap();
            let error = upstream.connect("dc1.example.com", tcp).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn bad_settings_are_findings() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("corp root");
        let bad_name = UpstreamTls::new(&pool(directory.path(), &root, Some("no name"))).unwrap_err();
        assert_eq!(bad_name.key, "server_name");
        let mut pool = pool(directory.path(), &root, None);
        write(directory.path(), "ca.pem", "");
        assert_eq!(UpstreamTls::new(&pool).unwrap_err().key, "ca_file");
        pool.ca_file = Some("/nonexistent".into());
        assert!(UpstreamTls::new(&pool).unwrap_err().message.contains("doesn't exist"));
    }
}
