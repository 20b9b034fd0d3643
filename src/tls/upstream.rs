//! The upstream side: TLS to a backend, whose certificate is verified (RFC 4513 §3.1.3).

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
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
}

impl UpstreamTls {
    /// Reads `ca_file`, or the system's roots where there is none (slow: some 100 ms).
    ///
    /// # Errors
    /// No trust anchors, or a `server_name` that is neither a host name nor an address.
    pub fn new(pool: &Pool) -> Result<Self, Finding> {
        let server_name = pool.server_name.as_deref().map(|name| parse_name(name).map_err(bad_server_name));
        let roots = match pool.ca_file.as_deref() {
            Some(path) => client_auth::roots(&PemFile::read("ca_file", path)?)?,
            None => system_roots()?,
        };
        let provider = policy::provider(TlsPolicy::Intermediate);
        Ok(Self { connector: TlsConnector::from(Arc::new(config(roots, provider)?)), server_name: server_name.transpose()? })
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

fn config(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<ClientConfig, Finding> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Finding::error("ca_file", error.to_string(), "name a file of certificate authorities"))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(policy::versions(TlsPolicy::Intermediate, TlsVersion::V1_2))
        .expect("the provider has suites for both versions, which a test checks")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NamingIssuer(verifier)))
        .with_no_client_auth();
    Ok(config)
}

/// The usual verifier; of an issuer that isn't trusted it says who that is.
#[derive(Debug)]
struct NamingIssuer(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for NamingIssuer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).map_err(|error| {
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
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
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
                     issued with one (the common name doesn't count)"
                )
            } else {
                let presented = presented.join(", ");
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

/// Bytes that may wait in a connection for a backend that doesn't read.
const BUFFER_LIMIT: usize = 36 * 1024;
