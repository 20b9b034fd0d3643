//! Imports a certificate as ACM does: body, private key and chain, in three files or fewer.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::Finding;
use super::pem::{PemFile, PrivateKey};
use crate::config::CertificateFiles;

/// A certificate, its chain and its key, each readable by itself; [`super::lint`] judges whether they fit.
#[derive(Debug)]
pub(super) struct Import {
    /// The certificate body first, then the chain; never empty, each one parses.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKey,
}

impl Import {
    /// Reads the files; all that can't be read or parsed is reported, each file once.
    pub(super) fn read(files: &CertificateFiles) -> Result<Self, Vec<Finding>> {
        let certificate = PemFile::read("certificate", &files.certificate).and_then(|file| file.certificates());
        let chain = files.certificate_chain.as_deref().map_or(Ok(Vec::new()), |path| {
            PemFile::read("certificate_chain", path).and_then(|file| file.certificates())
        });
        let passphrase = files
            .private_key_passphrase_file
            .as_deref()
            .map(|path| PemFile::read("private_key_passphrase_file", path))
            .transpose();
        let key = passphrase.and_then(|passphrase| {
            PemFile::read("private_key", &files.private_key)?.private_key(passphrase.as_ref().map(PemFile::passphrase))
        });
        match (certificate, chain, key) {
            (Ok(mut certificates), Ok(chain), Ok(key)) => {
                certificates.extend(chain);
                Ok(Self { certificates, key })
            }
            (certificate, chain, key) => {
                Err([certificate.err(), chain.err(), key.err()].into_iter().flatten().collect())
            }
        }
    }

    /// The certificate body.
    pub(super) fn leaf(&self) -> X509Certificate<'_> {
        parsed(&self.certificates[0])
    }

    /// Body and chain, parsed, in their order.
    pub(super) fn parsed(&self) -> Vec<X509Certificate<'_>> {
        self.certificates.iter().map(parsed).collect()
    }
}

/// An imported certificate's contents.
pub(super) fn parsed<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).expect("every imported certificate was parsed once already").1
}
