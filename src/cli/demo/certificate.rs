//! A certificate authority for one demo, and the certificate it issues.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::config::CertificateFiles;

/// Long enough that nothing warns of its end.
const VALIDITY: Duration = Duration::days(365);
/// Clocks differ.
const BACKDATED: Duration = Duration::hours(1);

/// The files, in a temporary directory. Anyone may read them but the key. Dropping it removes them.
pub(super) struct Certificates {
    authority: PathBuf,
    server: CertificateFiles,
    _files: TempDir,
}

impl Certificates {
    /// Makes an authority, whose key is forgotten at once, and a certificate for every name this machine goes by.
    pub(super) fn create() -> io::Result<Self> {
        let (authority, certificate, key) = issue(&names()).map_err(io::Error::other)?;
        let files = tempfile::Builder::new().prefix("ldaps-proxy-demo-").tempdir()?;
        Ok(Self {
            authority: write(files.path(), "ca.pem", &authority, 0o644)?,
            server: CertificateFiles {
                certificate: write(files.path(), "certificate.pem", &certificate, 0o644)?,
                private_key: write(files.path(), "private_key.pem", &key, 0o600)?.into(),
                certificate_chain: None,
                private_key_passphrase_file: None,
            },
            _files: files,
        })
    }

    /// The authority's certificate, which clients must trust.
    pub(super) fn authority(&self) -> &Path {
        &self.authority
    }

    /// The server's certificate and key.
    pub(super) fn server(&self) -> &CertificateFiles {
        &self.server
    }
}

/// Where clients on this machine may think they are connecting to. libldap looks for the host's own name when it is told
/// `localhost`.
fn names() -> Vec<String> {
    let mut names = ["127.0.0.1", "::1", "localhost"].map(str::to_owned).to_vec();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    names.extend(host.filter(|name| !name.is_empty() && name.is_ascii() && name != "localhost"));
    names
}

/// The PEM texts of the authority's certificate, of the server's, and of the server's key.
fn issue(names: &[String]) -> Result<(String, String, String), rcgen::Error> {
    let mut authority = params(&[], "ldaps-proxy demo authority")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();

    let mut server = params(names, "ldaps-proxy demo")?;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
    Ok((authority_pem, certificate.pem(), key.serialize_pem()))
}

fn params(names: &[String], common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + VALIDITY;
    Ok(params)
}

fn write(directory: &Path, name: &str, text: &str, mode: u32) -> io::Result<PathBuf> {
    let path = directory.join(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use std::sync::Arc;

    #[test]
    fn clients_that_trust_the_authority_accept_every_name() {
        let certificates = Certificates::create().expect("a temporary directory");
        let der = |path: &Path| CertificateDer::from_pem_file(path).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(certificates.authority())).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("roots");
        let server = der(&certificates.server().certificate);
        let accepts = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            verifier.verify_server_cert(&server, &[], &name, &[], UnixTime::now())
        };
        for name in names() {
            accepts(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(accepts("corp.example.com").is_err());
    }
}
