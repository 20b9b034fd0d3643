//! Certificates and handshakes for the tests of this module.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

use super::{Finding, Handshake, ServerTls, Severity, UnixTime, lint};
use crate::config::{CertificateFiles, Tls};

/// A certificate authority.
pub(super) struct Authority {
    pub(super) pem: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn root(name: &str) -> Self {
        let (params, key) = authority_params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(super) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    pub(super) fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = authority_params(name);
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A server certificate for these names, with its key.
    pub(super) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, ecdsa(), |_| {})
    }

    pub(super) fn issue_with(
        &self,
        names: &[&str],
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let mut params = server_params(names);
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate: pem, key: key.serialize_pem() }
    }
}

/// PEM texts.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Issued {
    pub(super) fn write(&self, directory: &Path, name: &str) -> CertificateFiles {
        CertificateFiles {
            certificate: write(directory, &format!("{name}.pem"), &self.certificate),
            private_key: write(directory, &format!("{name}.key"), &self.key).into(),
            certificate_chain: None,
            private_key_passphrase_file: None,
        }
    }
}

pub(super) fn ecdsa() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub(super) fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

pub(super) fn server_params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, *names.first().unwrap_or(&"ldap.example.com"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2060, 1, 1);
    params
}

/// A file only its owner may read.
pub(super) fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path
}

pub(super) fn load(settings: &Tls) -> ServerTls {
    ServerTls::load(settings, UnixTime::now()).expect("good settings").server
}

/// A client that trusts `authority` and speaks these versions, with a certificate of its own or without.
pub(super) fn client(authority: &Authority, versions: Versions, own: Option<&Issued>) -> Arc<ClientConfig> {
    client_of(rustls::crypto::aws_lc_rs::default_provider(), authority, versions, own)
}

/// The same with suites and groups of its own.
pub(super) fn client_of(
    provider: CryptoProvider,
    authority: &Authority,
    versions: Versions,
    own: Option<&Issued>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    })
}

pub(super) type Versions = &'static [&'static SupportedProtocolVersion];
pub(super) static BOTH: Versions = &[&TLS13, &TLS12];
pub(super) static ONLY_12: Versions = &[&TLS12];
pub(super) static ONLY_13: Versions = &[&TLS13];

/// The server's view of a handshake, and the first certificate the client saw.
pub(super) type Outcome = std::io::Result<(Handshake, CertificateDer<'static>)>;

/// A whole handshake in memory, with the first octets of data both ways so that tickets arrive.
pub(super) async fn handshake(server: &ServerTls, client: &Arc<ClientConfig>, name: &str) -> Outcome {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::clone(client));
    let client_side = async {
        let mut stream = connector.connect(name, near).await?;
        stream.write_all(b"?").await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        let seen = stream.get_ref().1.peer_certificates().expect("a server shows one")[0].clone();
        std::io::Result::Ok(seen)
    };
    let server_side = async {
        let (mut stream, handshake) = server.accept(far).await?;
        let mut question = [0];
        stream.read_exact(&mut question).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        std::io::Result::Ok(handshake)
    };
    let (seen, agreed) = tokio::join!(client_side, server_side);
    Ok((agreed?, seen?))
}

pub(super) const NAMES: &[&str] = &["ldap.example.com", "10.0.0.1"];

/// 2030-01-01, for judging certificates.
pub(super) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000))
}

/// What [`lint`] finds, with a chain or without.
pub(super) fn findings(issued: &Issued, chain: &[&str]) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let mut files = issued.write(dir.path(), "server");
    if !chain.is_empty() {
        files.certificate_chain = Some(write(dir.path(), "chain.pem", &chain.concat()));
    }
    lint(&files, now())
}

/// Exactly one finding, of this severity, about this key, with these words and some help.
#[track_caller]
pub(super) fn expect(found: &[Finding], severity: Severity, key: &str, words: &str) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].severity, found[0].key), (severity, key), "{}", found[0]);
    assert!(found[0].message.contains(words), "{}", found[0]);
    assert!(!found[0].help.is_empty());
}

fn authority_params(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2060, 1, 1);
    (params, ecdsa())
}
